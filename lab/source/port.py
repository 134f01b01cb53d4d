# SPDX-License-Identifier: GPL-2.0-or-later
"""A series brought to another QEMU: which patches apply there, which conflict, and where.

Each patch is tried by itself with git-am(1), then with a three-way merge against the files it was
made for.  One that conflicts is committed with its own side of each conflict, and marked, so that
the next one is judged by itself: without it, all that build on it would conflict as well.
"""

from __future__ import annotations

import enum
import re
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from lab.base import process
from lab.base.errors import UsageError
from lab.base.progress import step
from lab.source import fetch, worktree
from lab.source.series import Series

#: How the subject of a commit begins that has to be made again.
CONFLICT = "CONFLICT: "
_MARKER = "<<<<<<< "
#: What git-am says of a file that is not there to be merged.
_MISSING = re.compile(
    r"^(?:error: )?(.+): (does not exist in index|already exists in .+)$", re.MULTILINE
)


class How(enum.StrEnum):
    """What became of a patch."""

    APPLIES = "applies"
    MERGED = "applies by a three-way merge"
    CONFLICTS = "conflicts"


@dataclass(frozen=True)
class Ported:
    """One patch."""

    patch: str
    how: How
    #: Files with the lines of the conflicts, or those merged into that the patch does not name.
    where: tuple[str, ...] = ()

    def __str__(self) -> str:
        return "\n    ".join([f"{self.patch}: {self.how}", *self.where])


def port(base: Path, series: Series, new: Path, into: Path) -> list[Ported]:
    """Port the series, which was made for the tree `base`, to the tree `new`.

    `into` becomes a git work tree: `new`, tagged, and a commit for each patch.  The branch ``from``
    holds the files that the series was made for, so that git can merge there.  Raises UsageError
    when there is something at `into`, or when `new` is no QEMU.
    """
    if into.exists():
        raise UsageError(f"{into} is there already", hint="remove it, or name another directory")
    if not (new / "VERSION").is_file() or not (new / "migration").is_dir():
        raise UsageError(f"{new} is not QEMU's source", hint="name the top of its tree")
    with fetch.scratch(into) as scratch:
        tree, made_for = scratch / into.name, scratch / "made-for"
        with step(f"copying {new}"):
            shutil.copytree(new, tree, symlinks=True, ignore=_is_git)
            worktree.make_repository(tree)
        with step(f"trying {len(series.patches)} patches"):
            worktree.small_tree(base, series, made_for)
            worktree.make_repository(made_for)
            worktree.commit_all(made_for, series)
            worktree.git(tree, "fetch", "--quiet", str(made_for), "series:from")
            worktree.git(tree, "config", "advice.mergeConflict", "false")
            found = list(_each(tree, series))
        tree.rename(into)
    return found


def _is_git(_directory: str, names: list[str]) -> list[str]:
    return [name for name in names if name == ".git"]


def _each(tree: Path, series: Series) -> Iterator[Ported]:
    """Try each patch, and yield what became of it."""
    made_for = worktree.git(tree, "rev-list", "--reverse", "--min-parents=1", "from").split()
    for patch, commit in zip(series.patches, made_for, strict=True):
        how, where = _one(tree, patch)
        if how is How.CONFLICTS:
            _take_theirs(tree, commit)
        yield Ported(patch.name, how, where)


def _one(tree: Path, patch: Path) -> tuple[How, tuple[str, ...]]:
    for how, options in ((How.APPLIES, ()), (How.MERGED, ("--3way",))):
        try:
            worktree.git(tree, "am", "--quiet", "--keep-cr", *options, str(patch.absolute()))
        except process.CommandError as error:
            where = tuple(_conflicts(tree, error.output))
            worktree.git(tree, "am", "--abort")
        else:
            touched = worktree.touched(Series("", (patch,)))
            changed = worktree.git(tree, "show", "--format=", "--name-only", "HEAD").splitlines()
            # git takes a file that is much the same as one that was renamed, and may be mistaken.
            return how, tuple(f"{name}: merged into it" for name in changed if name not in touched)
    return How.CONFLICTS, where


def _take_theirs(tree: Path, commit: str) -> None:
    """Commit a patch with its own side of each conflict, and say so in the subject."""
    with suppress(process.CommandError):  # a file that is gone on one side is still a conflict
        worktree.git(tree, "cherry-pick", "--no-commit", "--strategy-option=theirs", commit)
    worktree.git(tree, "add", "--all", "--force")
    text = worktree.git(tree, "log", "-1", "--format=%B", commit)
    message = f"{CONFLICT}{text}"
    worktree.git(tree, "commit", "--quiet", "--no-verify", "--allow-empty", f"--message={message}")


def _conflicts(tree: Path, output: str) -> Iterator[str]:
    """Yield the files that could not be merged, and where."""
    for line in worktree.git(tree, "status", "--porcelain", "--untracked-files=no").splitlines():
        state, name = line[:2], line[3:]
        if "U" in state or state in {"AA", "DD"}:
            yield f"{name}: {_places(tree / name)}"
    for match in _MISSING.finditer(output):
        yield f"{match[1]}: {match[2]}"


def _places(file: Path) -> str:
    """Return the lines of the conflicts in a file (git-merge(1))."""
    try:
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return "is not there any more"
    numbers = [str(number) for number, line in enumerate(lines, 1) if line.startswith(_MARKER)]
    return f"line {', '.join(numbers)}" if numbers else "changed on one side, gone on the other"
