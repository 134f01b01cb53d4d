# SPDX-License-Identifier: GPL-2.0-or-later
"""Who has the guest of an upgrade that was left half done, and what is to be done.  Pure.

The old QEMU's word counts: it has the guest until it has given it away.  Where something may still
be going on, one waits and looks again.
"""

from __future__ import annotations

import enum

#: The old QEMU's migration is on its way, and can be cancelled (MigrationStatus of QAPI).
_GIVING = frozenset(
    {"setup", "active", "device", "pre-switchover", "wait-unplug", "cancelling", "colo"}
)


class Has(enum.StrEnum):
    """What a QEMU says, or does not."""

    GONE = "has ended"
    SILENT = "does not answer"
    RUNS = "runs the guest"  # or the guest stands still there for a reason of its own (a panic)
    STANDS = "has the guest, paused"
    GIVES = "is giving the guest away"
    PAST = "is giving the guest away, and cannot go back"
    GAVE = "has given the guest away"
    WAITS = "waits for the guest"


class Action(enum.StrEnum):
    """What is to be done.  All but the last five are followed by another look."""

    WAIT = "wait"
    CANCEL = "cancel the migration"
    RUN_OLD = "let the guest run in the old QEMU"  # the new one is ended first
    RUN_NEW = "let the guest run in the new QEMU"
    STAY = "end the new QEMU"
    MOVED = "end the old QEMU"
    NOBODY = "nobody has the guest any more"
    BOTH = "both run the guest"
    UNKNOWN = "it cannot be told who has the guest"


def old_has(status: str, migration: str) -> Has:
    """Return what the old QEMU's query-status and query-migrate mean."""
    if status == "postmigrate":
        return Has.PAST if migration.startswith("postcopy-") else Has.GAVE
    if migration.startswith("postcopy-"):
        return Has.PAST
    if migration in _GIVING or status == "finish-migrate":
        return Has.GIVES
    return Has.STANDS if status == "paused" else Has.RUNS


def new_has(status: str, migration: str) -> Has:
    """Return what the new QEMU's query-status and query-migrate mean."""
    if status in {"inmigrate", "prelaunch", "postmigrate"}:
        return Has.WAITS
    if status == "paused":
        return Has.STANDS if migration == "completed" else Has.WAITS
    return Has.RUNS


def decide(old: Has, new: Has, *, ran: bool, back: bool, late: bool) -> Action:
    """Return what is to be done.

    `ran`: the guest was running.  `back`: the new QEMU cannot have run it, so that it may run in an
    old one that has given it away and still has everything.  `late`: there was time enough.
    """
    wait = Action.UNKNOWN if late else Action.WAIT
    arrived = {Has.RUNS: Action.MOVED, Has.STANDS: Action.RUN_NEW if ran else Action.MOVED}
    stays = Action.RUN_OLD if ran else Action.STAY
    match old:
        case Has.RUNS:
            rest = Action.STAY if late or new is not Has.SILENT else Action.WAIT
            return Action.BOTH if new is Has.RUNS else rest
        case Has.STANDS if new is Has.RUNS:
            return Action.MOVED if late else Action.WAIT
        case Has.STANDS:
            return wait if new is Has.SILENT else stays
        case Has.GIVES if new is not Has.RUNS:
            return Action.UNKNOWN if late else Action.CANCEL
        case Has.GAVE | Has.GONE if new in arrived:
            return arrived[new]
        case Has.GAVE | Has.GONE if new is Has.GONE or (new is Has.WAITS and late):
            return Action.RUN_OLD if back and old is Has.GAVE else Action.NOBODY
    return wait
