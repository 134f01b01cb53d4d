# SPDX-License-Identifier: GPL-2.0-or-later
"""Series as commits: into a git work tree, and back, byte for byte.

What git writes must depend on the patches alone: not on the user's configuration, on git's choice
of abbreviations, or on how many patches there are.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from lab.base import process
from lab.base.errors import CannotTellError, UsageError
from lab.base.progress import step
from lab.source import fetch
from lab.source.gnupatch import PatchError
from lab.source.resolve import Source, unpack
from lab.source.series import Series, load_series

BASE_TAG = "pageflip-base"
_IDENTITY = "pageflip"
_ENVIRONMENT = {
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_AUTHOR_NAME": _IDENTITY,
    "GIT_AUTHOR_EMAIL": "pageflip@localhost",
    "GIT_COMMITTER_NAME": _IDENTITY,
    "GIT_COMMITTER_EMAIL": "pageflip@localhost",
    "LC_ALL": "C",
}
# One date for the base: the same source gives the same commit.
_BASE_DATE = {
    "GIT_AUTHOR_DATE": "2000-01-01T00:00:00Z",
    "GIT_COMMITTER_DATE": "2000-01-01T00:00:00Z",
}
_FORMAT = (
    "--no-numbered",
    "--zero-commit",
    "--no-signature",
    "--full-index",
    "--diff-algorithm=myers",
    "--no-renames",
    "--stat=72",
    "--subject-prefix=PATCH",
    "--no-base",
    "--quiet",
)
#: The first line of a file ``series``.
_LICENCE = "# SPDX-License-Identifier: GPL-2.0-or-later"
_FAILED = re.compile(r"^error: patch failed: (.+):(\d+)$", re.MULTILINE)
_MISSING = re.compile(
    r"^error: (.+): (does not exist in index|already exists in .+)$", re.MULTILINE
)


def git(tree: Path, *words: str, env: dict[str, str] | None = None) -> str:
    """Run git in `tree`, deaf to the user's configuration; return what it printed."""
    argv = ["git", "-C", str(tree), "-c", "core.autocrlf=false", "-c", "gc.auto=0", *words]
    return process.run(argv, env={**_ENVIRONMENT, **(env or {})}).stdout


def make_repository(tree: Path) -> None:
    """Make a directory a git repository whose first commit, tagged, is all that is in it."""
    git(tree, "init", "--quiet", "--initial-branch=series")
    # QEMU's own .gitignore must not hide a file that its tarball holds.
    git(tree, "add", "--all", "--force")
    git(tree, "commit", "--quiet", "--no-verify", "-m", "Base", env=_BASE_DATE)
    git(tree, "tag", BASE_TAG)


def _why(output: str, patch: Path) -> str:
    """Return file and hunk, where `git am` says only a file and a line."""
    said = [f"{match[1]}: {match[2]}" for match in _MISSING.finditer(output)]
    said += [
        f"{match[1]}: hunk #{_hunk(patch, match[1], int(match[2]))}, at line {match[2]}"
        for match in _FAILED.finditer(output)
    ]
    return "\n".join(f"    {line}" for line in said or output.strip().splitlines()[-5:])


def _hunk(patch: Path, file: str, line: int) -> int:
    """Return which hunk of `file` in `patch` starts at `line` of the old file (0: none)."""
    number, inside = 0, False
    for text in patch.read_text(encoding="utf-8", errors="replace").splitlines():
        if text.startswith("--- "):
            number, inside = 0, text == f"--- a/{file}"
        elif text.startswith("+++ "):
            inside = inside or text == f"+++ b/{file}"
        elif inside and (match := re.match(r"@@ -(\d+)", text)):
            number += 1
            if int(match[1]) == line:
                return number
    return 0


def commit_all(tree: Path, series: Series, options: Sequence[str] = ()) -> None:
    """Apply each patch as a commit of its own.  Raises PatchError that names patch, file, hunk."""
    for patch in series.patches:
        argv = ["am", "--quiet", "--keep-cr", *options, str(patch.absolute())]
        try:
            git(tree, *argv)
        except process.CommandError as error:
            git(tree, "am", "--abort")
            raise PatchError(
                f"{patch} does not apply to {tree.name}:\n{_why(error.output, patch)}",
                hint="mend it in a work tree: ./pageflip patches apply, then git am, then export",
            ) from error


def work_tree(source: Source, series: Series, into: Path) -> None:
    """Make `into` a git work tree of the source with one commit for each patch.

    A patch that does not apply leaves the tree with those before it, so that it can be mended
    there.  Raises UsageError when there is something at `into` already.
    """
    if into.exists() and (not into.is_dir() or any(into.iterdir())):
        raise UsageError(f"{into} is there already", hint="remove it, or name another directory")
    if into.exists():
        into.rmdir()
    with fetch.scratch(into) as directory:
        tree = directory / into.name
        unpack(source, tree)
        with step("making the first commit"):
            make_repository(tree)
        tree.rename(into)
    commit_all(into, series)


def export(tree: Path, directory: Path, base: str = BASE_TAG) -> list[str]:
    """Write the commits since `base` as the series in `directory`; return the patches' names.

    The old series is replaced when the new one is complete.  Raises UsageError when `tree` has no
    such commit, or changes that are not committed.
    """
    try:
        git(tree, "rev-parse", "--verify", "--quiet", f"{base}^{{commit}}")
    except CannotTellError as error:
        raise UsageError(
            f"{tree} has no commit {base} that the series could begin after",
            hint="make a work tree with ./pageflip patches apply, or name the commit with --base",
        ) from error
    if changed := git(tree, "status", "--porcelain", "--untracked-files=no").strip():
        raise UsageError(
            f"{tree} has changes that are not committed:\n{changed}",
            hint="commit them (git commit --amend), or undo them",
        )
    with fetch.scratch(directory) as scratch:
        made = scratch / directory.name
        made.mkdir()
        git(tree, "format-patch", *_FORMAT, "--output-directory", str(made), f"{base}..HEAD")
        names = sorted(path.name for path in made.iterdir())
        listed = "".join(f"{line}\n" for line in (_LICENCE, *names))
        (made / "series").write_text(listed, encoding="utf-8")
        _replace(made, directory)
    return names


def _replace(made: Path, directory: Path) -> None:
    """Put the patches and the file ``series`` of `made` in the place of those in `directory`."""
    directory.mkdir(parents=True, exist_ok=True)
    for old in (*directory.glob("*.patch"), directory / "series"):
        if not (made / old.name).exists():
            old.unlink(missing_ok=True)
    for new in sorted(made.iterdir(), key=lambda path: path.name == "series"):
        new.replace(directory / new.name)


def touched(series: Series) -> set[str]:
    """Return the files, below the tree, that the patches speak of."""
    named = re.compile(r"^(?:--- a/|\+\+\+ b/|rename from |copy from )(.+?)\t?$", re.MULTILINE)
    return {
        match[1]
        for patch in series.patches
        for match in named.finditer(patch.read_text(encoding="utf-8", errors="replace"))
    }


def small_tree(base: Path, series: Series, into: Path) -> None:
    """Copy what the patches touch out of `base`: enough to apply them to, and quick."""
    into.mkdir(parents=True)
    (into / ".pageflip-base").write_text("a part of the tree\n", encoding="utf-8")
    root = base.resolve()
    for name in sorted(touched(series)):
        found = base / name
        if found.is_file() and found.resolve().is_relative_to(root):
            (into / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(found, into / name)


def round_trip(base: Path, series: Series, scratch: Path) -> Path:
    """Apply the series in `scratch` and export it again; return where to.  Raises PatchError."""
    tree = scratch / "tree"
    small_tree(base, series, tree)
    make_repository(tree)
    commit_all(tree, series)
    written = scratch / "written" / series.name
    export(tree, written)
    return written


def refresh(base: Path, directory: Path) -> list[str]:
    """Apply the series to `base` allowing fuzz and three-way merges, and write it back.

    Returns a line for each patch that changed.  Raises PatchError, with the series as it was.
    """
    series = load_series(directory)
    before = {patch.name: patch.read_bytes() for patch in series.patches}
    with fetch.scratch(directory) as scratch:
        tree = scratch / "tree"
        small_tree(base, series, tree)
        make_repository(tree)
        for patch in series.patches:
            one = Series(series.name, (patch,))
            try:
                commit_all(tree, one)
            except PatchError:
                commit_all(tree, one, ("--3way", "-C1"))
        names = export(tree, directory)
    changed = [name for name in names if (directory / name).read_bytes() != before.get(name)]
    return [f"{directory.name}/{name}: written anew" for name in changed] or ["nothing to refresh"]
