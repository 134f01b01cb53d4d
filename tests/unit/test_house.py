# SPDX-License-Identifier: GPL-2.0-or-later
"""The rules of CONTRIBUTING.md that a machine can keep.

``python tests/unit/test_house.py`` writes the table of docs/architecture.md anew.
"""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.base.layout import CHECKOUT

LAB = CHECKOUT / "lab"
PAGE = CHECKOUT / "docs" / "architecture.md"
BEGIN, END = "<!-- rooms -->\n", "<!-- /rooms -->\n"
MODULES = sorted(path for path in LAB.rglob("*.py") if path.name != "__main__.py")


def contract(checkout: Path) -> subprocess.CompletedProcess[str]:
    """Run import-linter on the package `lab` in a checkout."""
    argv = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    return subprocess.run(argv, cwd=checkout, capture_output=True, text=True, check=False)


def summary(path: Path) -> str:
    """Return the first sentence of a module's docstring."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    assert text, f"{path} has no docstring"
    return " ".join(text.split("\n\n")[0].split()).rstrip(".").replace("``", "`")


def table() -> str:
    """Return what the page says of every room and module, top first."""
    layers = PAGE.parents[1] / "pyproject.toml"
    names = layers.read_text(encoding="utf-8").partition("layers = [")[2].partition("]")[0]
    lines = ["| room | module | its one job |", "|---|---|---|"]
    for name in (line.strip(' ",') for line in names.split()):
        if (file := LAB / f"{name}.py").is_file():
            lines.append(f"| `{name}` | | {summary(file)} |")
            continue
        lines.append(f"| **`{name}/`** | | **{summary(LAB / name / '__init__.py')}** |")
        lines += [
            f"| | `{path.relative_to(LAB / name).with_suffix('')}` | {summary(path)} |"
            for path in sorted((LAB / name).rglob("*.py"))
            if path.name != "__init__.py"
        ]
    return "\n".join(lines) + "\n"


def test_imports_point_down() -> None:
    done = contract(CHECKOUT)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("base/errors.py", "from lab.vm import monitor"),  # up
        ("base/deadline.py", "from lab.base import process"),  # round, in one room
        ("newroom/__init__.py", '"""A room that nobody has given a place."""'),
    ],
)
def test_an_import_that_points_up_is_found(tmp_path: Path, module: str, line: str) -> None:
    shutil.copytree(LAB, tmp_path / "lab", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(CHECKOUT / "pyproject.toml", tmp_path)
    file = tmp_path / "lab" / module
    file.parent.mkdir(exist_ok=True)
    with file.open("a", encoding="utf-8") as more:
        more.write(f"\n{line}\n")
    done = contract(tmp_path)
    assert done.returncode == 1
    assert "BROKEN" in done.stdout or "missing layers" in done.stdout.lower(), done.stdout


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(LAB)))
def test_a_module_is_short(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 400


def test_a_class_name_means_one_thing() -> None:
    classes = Counter(
        node.name
        for path in MODULES
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef)
    )
    assert [name for name, number in classes.items() if number > 1] == []


def functions(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Yield every function with its lines."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno
            yield node.name, node.end_lineno - node.lineno + 1


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(LAB)))
def test_a_function_is_short(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    long = {name: lines for name, lines in functions(tree) if lines > 50}
    assert long == {}


def test_the_page_names_every_module() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert page.partition(BEGIN)[2].partition(END)[0] == table(), (
        "docs/architecture.md is behind: python tests/unit/test_house.py"
    )


def test_every_file_has_its_licence_line() -> None:
    argv = ["git", "-C", str(CHECKOUT), "ls-files", "-z"]
    names = subprocess.run(argv, capture_output=True, text=True, check=True).stdout.split("\0")
    without = (".json", ".svg", ".patch")  # data, and patches: their own files have it
    bare = [
        name
        for name in names
        if name
        and (CHECKOUT / name).is_file()
        and not name.endswith(without)
        and name != "LICENSE"
        and b"SPDX-License-Identifier" not in (CHECKOUT / name).read_bytes()[:1000]
    ]
    assert bare == []


def skips(tree: ast.Module) -> Iterator[int]:
    """Yield the lines in which a test is skipped because of an exception."""
    for handler in ast.walk(tree):
        if isinstance(handler, ast.ExceptHandler):
            for node in ast.walk(handler):
                if isinstance(node, ast.Attribute) and node.attr == "skip":
                    yield node.lineno


@pytest.mark.parametrize(
    "path", sorted((CHECKOUT / "tests").glob("[up]*/test_*.py")), ids=lambda path: path.name
)
def test_nothing_is_skipped_because_it_failed(path: Path) -> None:
    """What a test needs is tried before it (tests/unit/needs.py)."""
    assert list(skips(ast.parse(path.read_text(encoding="utf-8")))) == []


if __name__ == "__main__":
    old = PAGE.read_text(encoding="utf-8")
    before, _, rest = old.partition(BEGIN)
    PAGE.write_text(before + BEGIN + table() + END + rest.partition(END)[2], encoding="utf-8")
