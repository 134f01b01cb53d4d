# SPDX-License-Identifier: GPL-2.0-or-later
"""A patch series, applied without fuzz.

It is a directory with a file ``series``, which names the patches in their order, and the patches
in `git format-patch` form.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from lab.base.errors import UsageError
from lab.source import fetch, gnupatch
from lab.source.resolve import Source, unpack


@dataclass(frozen=True)
class Series:
    """Patches in their order; none of them: the release as it is."""

    name: str
    patches: tuple[Path, ...] = ()

    @property
    def digest(self) -> str:
        """What identifies what the series does to a tree: the diffs, in order."""
        digest = hashlib.sha256()
        for patch in self.patches:
            digest.update(hashlib.sha256(diff_of(patch.read_bytes())).digest())
        return digest.hexdigest()


STOCK = Series("stock")


def diff_of(patch: bytes) -> bytes:
    """Return the diff without the message: a reworded patch does not need a new build."""
    begin = re.search(rb"^(?:diff --git |--- (?:a/|/dev/null))", patch, re.MULTILINE)
    diff = patch[begin.start() :] if begin else patch
    return re.sub(rb"^index [0-9a-f]+\.\.[0-9a-f]+", b"index", diff, flags=re.MULTILINE)


def parse_series(text: str) -> list[str]:
    """Return the names in a file ``series``; raise ValueError that says which line is wrong."""
    names: list[str] = []
    for number, line in enumerate(text.splitlines(), 1):
        name = line.split("#", 1)[0].strip()
        if not name:
            continue
        if "/" in name or name in (".", "..") or "\0" in name or len(name.split()) != 1:
            raise ValueError(f"line {number}: {name!r} is not the name of a file beside it")
        if name in names:
            raise ValueError(f"line {number}: {name} is there twice")
        names.append(name)
    return names


def load_series(directory: Path) -> Series:
    """Read the series in `directory`; without a file ``series`` it is the stock one.

    Raises UsageError that names the file and the line.
    """
    listed = directory / "series"
    if not listed.is_file():
        return STOCK
    try:
        names = parse_series(listed.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise UsageError(f"{listed}: {error}", hint="correct the file") from error
    found = tuple(directory / name for name in names)
    for patch in found:
        if not patch.is_file():
            raise UsageError(
                f"{listed}: {patch.name} is not there", hint="restore it, or strike it"
            )
    return Series(directory.name, found) if found else STOCK


def apply(tree: Path, series: Series) -> tuple[str, ...]:
    """Apply the series to `tree`, which nobody else has seen yet; return notes on offsets.

    Raises PatchError that names the patch, the file and the hunk.
    """
    return tuple(line for patch in series.patches for line in gnupatch.apply(tree, patch))


def patched_tree(source: Source, series: Series, into: Path) -> tuple[str, ...]:
    """Unpack `source` as `into` and apply `series`: complete, or not at all.  Returns notes."""
    with fetch.scratch(into) as directory:
        tree = directory / f"qemu-{source.version}"
        unpack(source, tree)
        notes = apply(tree, series)
        tree.rename(into)
    return notes
