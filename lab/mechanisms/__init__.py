# SPDX-License-Identifier: GPL-2.0-or-later
"""Every way to move a guest that the lab knows, one class for each.

A mechanism says what it needs, prepares both QEMUs, and starts the move.  Waiting, measuring and
judging are the same for all of them and are done elsewhere.
"""

from __future__ import annotations

from lab.base.errors import PreconditionError, UsageError
from lab.mechanisms.base import Asked, Mechanism
from lab.mechanisms.localhost import Copy, Flip, FlipLate, Gift, Handover, localhost_block
from lab.mechanisms.upstream import (
    CprExec,
    CprTransfer,
    IgnoreShared,
    Multifd,
    Postcopy,
    Precopy,
    StopCopy,
)
from lab.model import Pages
from lab.vm.binary import Binary
from lab.vm.cmdline import Backing

__all__ = [
    "MECHANISMS",
    "Asked",
    "Copy",
    "CprExec",
    "CprTransfer",
    "Flip",
    "FlipLate",
    "Gift",
    "Handover",
    "IgnoreShared",
    "Mechanism",
    "Multifd",
    "Postcopy",
    "Precopy",
    "StopCopy",
    "backing",
    "check_asked",
    "choose",
    "localhost_block",
    "named",
]

#: Best for private memory first: the default is the first that both binaries have.
MECHANISMS: tuple[Mechanism, ...] = (
    Flip(),
    FlipLate(),
    Gift(),
    Copy(),
    Handover(),
    Postcopy(),
    Precopy(),
    Multifd(),
    StopCopy(),
    CprTransfer(),
    CprExec(),
    IgnoreShared(),
)


def named(name: str) -> Mechanism | None:
    """Return the mechanism of that name, None for ``auto``; raise UsageError for an unknown one."""
    if name == "auto":
        return None
    for mechanism in MECHANISMS:
        if mechanism.name == name:
            return mechanism
    known = "".join(f"\n    {one.name:<13} {one.summary}" for one in MECHANISMS)
    hint = f"take one of these, or auto for the best that both QEMUs have:{known}"
    raise UsageError(f"there is no mechanism {name!r}", hint)


def backing(mechanism: Mechanism, pages: Pages) -> Backing:
    """Return what guest RAM is made of; raise PreconditionError when it cannot be moved so."""
    if pages is Pages.THP:
        return mechanism.backing
    if not mechanism.pool:
        able = ", ".join(one.name for one in MECHANISMS if one.pool)
        raise PreconditionError(
            f"mechanism {mechanism.name} does not move private huge pages of the kernel's pool",
            hint=f"take one of {able}, or leave out --pages",
        )
    return Backing.HUGETLB


def check_asked(mechanism: Mechanism, asked: Asked) -> None:
    """Raise PreconditionError for what the mechanism knows nothing of."""
    if (asked.rehearse or asked.verify) and not mechanism.rehearses:
        able = ", ".join(one.name for one in MECHANISMS if one.rehearses)
        raise PreconditionError(
            f"mechanism {mechanism.name} can be neither rehearsed nor verified",
            hint=f"take one of {able}",
        )


def choose(name: str, old: Binary, new: Binary) -> Mechanism:
    """Return the mechanism of that name, or for ``auto`` the best that this pair has.

    Raises UsageError for an unknown name and PreconditionError when the pair lacks it.
    """
    mechanism = named(name)
    if mechanism is None:
        return next(m for m in MECHANISMS if not m.missing(old, new))
    if lacking := mechanism.missing(old, new):
        raise PreconditionError(f"mechanism {name} is not possible: {lacking}")
    return mechanism
