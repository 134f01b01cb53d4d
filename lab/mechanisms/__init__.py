# SPDX-License-Identifier: GPL-2.0-or-later
"""Every way to move a guest that the lab knows, one class for each.

A mechanism says what it needs, prepares both QEMUs, and starts the move.  Waiting, measuring and
judging are the same for all of them and are done elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterable

from lab.base.errors import PreconditionError, UsageError
from lab.mechanisms.base import Asked, Mechanism
from lab.mechanisms.deviceload import DeviceLoad
from lab.mechanisms.localhost import (
    Copy,
    Flip,
    FlipLate,
    Gift,
    Handover,
    Remap,
    localhost_block,
)
from lab.mechanisms.transplant import Transplant
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
    "DeviceLoad",
    "Flip",
    "FlipLate",
    "Gift",
    "Handover",
    "IgnoreShared",
    "Mechanism",
    "Multifd",
    "Postcopy",
    "Precopy",
    "Remap",
    "StopCopy",
    "Transplant",
    "backing",
    "best",
    "check_asked",
    "choose",
    "localhost_block",
    "named",
    "why",
]

#: Best for private memory first: `auto` takes the first that both binaries have and that can go
#: back.
MECHANISMS: tuple[Mechanism, ...] = (
    Flip(),
    FlipLate(),
    Remap(),
    Gift(),
    Copy(),
    Handover(),
    Transplant(),
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
    if pages is not Pages.HUGETLB:
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
    for wanted, able, word in (
        (asked.rehearse, "rehearses", "rehearsed"),
        (asked.verify, "verifies", "verified"),
    ):
        if wanted and not getattr(mechanism, able):
            names = ", ".join(one.name for one in MECHANISMS if getattr(one, able))
            raise PreconditionError(
                f"mechanism {mechanism.name} cannot be {word}", hint=f"take one of {names}"
            )


def choose(name: str, old: Binary, new: Binary, *, room: bool = True) -> Mechanism:
    """Return the mechanism of that name, or for ``auto`` the best that this pair has.

    `room` is whether there is memory for a second copy of the guest.  Raises UsageError for an
    unknown name and PreconditionError when the pair lacks it.
    """
    mechanism = named(name)
    if mechanism is None:
        return best(one for one in MECHANISMS if not _passed_over(one, old, new, room=room))
    if lacking := mechanism.missing(old, new):
        raise PreconditionError(f"mechanism {name} is not possible: {lacking}")
    return mechanism


def best(possible: Iterable[Mechanism]) -> Mechanism:
    """Return the first one that can go back, and if none can the first one; raise IndexError."""
    able = list(possible)
    return next((one for one in able if one.rolls_back), None) or able[0]


def why(chosen: Mechanism, old: Binary, new: Binary, *, room: bool = True) -> str:
    """Say what ``auto`` has chosen, and why not what would have been better."""
    reasons: dict[str, list[str]] = {}
    for one in MECHANISMS[: MECHANISMS.index(chosen)]:
        reason = _passed_over(one, old, new, room=room) or "it cannot go back"
        reasons.setdefault(reason, []).append(one.name)
    text = f"mechanism {chosen.name}: {chosen.summary}"
    if not chosen.rolls_back:
        text += "; if the new QEMU does not load the device state, the guest is lost"
    return "".join([text, *(f"; not {', '.join(them)}: {it}" for it, them in reasons.items())])


def _passed_over(one: Mechanism, old: Binary, new: Binary, *, room: bool) -> str:
    """Return why ``auto`` cannot take a mechanism, or an empty string."""
    if one.backing is not Backing.PRIVATE:
        return "it is for guests that were started with shared memory"
    if one.doubles and not room:
        return "there is no memory for a second copy of the guest"
    return one.missing(old, new)
