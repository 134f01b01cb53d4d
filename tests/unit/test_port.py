# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from lab.base.errors import UsageError
from lab.source import worktree
from lab.source.port import CONFLICT, How, Ported, port
from lab.source.series import Series, load_series

_LINES = [f"line {number}\n" for number in range(60)]
_OTHERS = [f"row {number}\n" for number in range(60)]


def _tree(path: Path, lines: list[str]) -> Path:
    (path / "migration").mkdir(parents=True)
    (path / "VERSION").write_text("1\n")
    (path / "migration" / "a.c").write_text("".join(lines))
    (path / "migration" / "b.c").write_text("".join(_OTHERS))
    return path


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return _tree(tmp_path / "base", _LINES)


@pytest.fixture
def series(base: Path, tmp_path: Path) -> Series:
    """Three patches of a.c, at lines 10, 30 and 31, and one of b.c; as git writes them."""
    tree = tmp_path / "made"
    subprocess.run(["cp", "-r", str(base), str(tree)], check=True)
    worktree.make_repository(tree)
    for file, number in (("a.c", 10), ("a.c", 30), ("a.c", 31), ("b.c", 10)):
        path = tree / "migration" / file
        path.write_text(path.read_text().replace(f" {number}\n", f" {number} changed\n"))
        worktree.git(tree, "commit", "-aqm", f"migration: change {file} at {number}")
    directory = tmp_path / "patches" / "1"
    worktree.export(tree, directory)
    return load_series(directory)


def _log(tree: Path) -> list[str]:
    said = worktree.git(tree, "log", "--reverse", "--format=%s", f"{worktree.BASE_TAG}..HEAD")
    return said.splitlines()


def _hows(found: list[Ported]) -> list[How]:
    return [one.how for one in found]


def test_nothing_has_moved(base: Path, series: Series, tmp_path: Path) -> None:
    found = port(base, series, base, tmp_path / "into")
    assert _hows(found) == [How.APPLIES] * 4
    assert len(_log(tmp_path / "into")) == 4


def test_what_is_near_is_merged(base: Path, series: Series, tmp_path: Path) -> None:
    lines = [*_LINES]
    lines[8] = "near by\n"  # in the context of the first patch
    found = port(base, series, _tree(tmp_path / "new", lines), tmp_path / "into")
    assert _hows(found) == [How.MERGED, *[How.APPLIES] * 3]
    text = (tmp_path / "into" / "migration" / "a.c").read_text()
    assert "near by\n" in text
    assert "line 10 changed\n" in text


def test_a_conflict_is_placed_and_the_others_are_judged_by_themselves(
    base: Path, series: Series, tmp_path: Path
) -> None:
    lines = [*_LINES]
    lines[10] = "another one\n"
    into = tmp_path / "into"
    found = port(base, series, _tree(tmp_path / "new", lines), into)
    assert _hows(found) == [How.CONFLICTS, *[How.APPLIES] * 3]
    assert found[0].where == ("migration/a.c: line 11",)
    assert str(found[0]).endswith(": conflicts\n    migration/a.c: line 11")
    assert _log(into)[:2] == [
        f"{CONFLICT}migration: change a.c at 10",
        "migration: change a.c at 30",
    ]
    assert "line 10 changed\n" in (into / "migration" / "a.c").read_text()
    assert worktree.git(into, "status", "--porcelain") == ""


def test_what_needs_the_one_before_is_judged_with_it(
    base: Path, series: Series, tmp_path: Path
) -> None:
    lines = [*_LINES]
    lines[30] = "another one\n"
    found = port(base, series, _tree(tmp_path / "new", lines), tmp_path / "into")
    # The third is in the context of the second, and applies to what the second leaves.
    assert _hows(found) == [How.APPLIES, How.CONFLICTS, How.APPLIES, How.APPLIES]


def test_a_file_that_has_gone(base: Path, series: Series, tmp_path: Path) -> None:
    new = _tree(tmp_path / "new", _LINES)
    (new / "migration" / "b.c").unlink()
    found = port(base, series, new, tmp_path / "into")
    assert _hows(found) == [*[How.APPLIES] * 3, How.CONFLICTS]
    assert any(line.startswith("migration/b.c: ") for line in found[3].where)


def test_a_file_that_was_renamed_is_named(base: Path, series: Series, tmp_path: Path) -> None:
    new = _tree(tmp_path / "new", _LINES)
    (new / "migration" / "b.c").rename(new / "migration" / "c.c")
    found = port(base, series, new, tmp_path / "into")
    assert _hows(found) == [*[How.APPLIES] * 3, How.MERGED]
    assert found[3].where == ("migration/c.c: merged into it",)


def test_a_conflict_can_be_merged_by_hand(base: Path, series: Series, tmp_path: Path) -> None:
    lines = [*_LINES]
    lines[30] = "another one\n"
    into = tmp_path / "into"
    port(base, series, _tree(tmp_path / "new", lines), into)
    worktree.git(into, "reset", "--quiet", "--hard", worktree.BASE_TAG)
    argv = ["git", "-C", str(into), "am", "-3", str(series.patches[1])]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "<<<<<<< " in (into / "migration" / "a.c").read_text()


def test_wrong_usage(base: Path, series: Series, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    with pytest.raises(UsageError, match="is there already"):
        port(base, series, base, tmp_path / "there")
    with pytest.raises(UsageError, match="not QEMU's source"):
        port(base, series, tmp_path, tmp_path / "into")


def test_a_git_tree_keeps_its_own_history_out(base: Path, series: Series, tmp_path: Path) -> None:
    new = _tree(tmp_path / "new", _LINES)
    worktree.make_repository(new)
    found = port(base, series, new, tmp_path / "into")
    assert _hows(found) == [How.APPLIES] * 4
    assert len(_log(tmp_path / "into")) == 4
