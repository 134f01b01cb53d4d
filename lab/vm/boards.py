# SPDX-License-Identifier: GPL-2.0-or-later
"""Which machine type a guest is given: one that both QEMUs have.  Pure.

A machine type (``pc-q35-X.Y``) fixes what the guest sees of its machine, so that a newer QEMU shows
it the same.  A guest can only be moved to a QEMU that has the type it was started with; what a
board's name alone means (``q35``) differs from release to release.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from lab.base.errors import UsageError

#: What the versioned types of a board begin with; the last is for guests of ARM.
BOARDS = {"q35": "pc-q35-", "i440fx": "pc-i440fx-", "virt": "virt-"}
_VERSION = re.compile(r"\d+(?:\.\d+)+")


def common(wanted: str, old: Iterable[str], new: Iterable[str]) -> str:
    """Return the machine type for `wanted`, out of those that both QEMUs list.

    `wanted` is a board, which means the newest of its versioned types, or a machine type.  Raises
    UsageError when the two have none in common.
    """
    ours, theirs = frozenset(old), frozenset(new)
    both = ours & theirs
    if prefix := BOARDS.get(wanted):
        if found := newest(both, prefix):
            return found
        mine, others = newest(ours, prefix) or "none", newest(theirs, prefix) or "none"
        raise UsageError(
            f"the two QEMUs have no machine type {prefix}* in common: the newest of the old one is "
            f"{mine}, of the new one {others}",
            hint="a guest cannot be moved between them: releases nearer to each other share some",
        )
    if wanted in both:
        return wanted
    lacking = [name for name, its in (("old", ours), ("new", theirs)) if wanted not in its]
    what = {board: newest(both, prefix) for board, prefix in BOARDS.items()}
    there = {board: name for board, name in what.items() if name}
    offered = [*there, *there.values()]
    raise UsageError(
        f"--machine {wanted}: the {' and the '.join(lacking)} QEMU has no such machine type",
        hint=f"one of: {', '.join(offered)}",
    )


def newest(names: Iterable[str], prefix: str) -> str:
    """Return the type of the highest version among those with `prefix`, "" where there is none."""
    found = [name for name in names if name.startswith(prefix)]
    found = [name for name in found if _VERSION.fullmatch(name.removeprefix(prefix))]
    return max(found, key=lambda name: _order(name.removeprefix(prefix)), default="")


def _order(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))
