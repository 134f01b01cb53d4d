# SPDX-License-Identifier: GPL-2.0-or-later
"""What is to be done with a running QEMU: how it will be upgraded, or every reason why not."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from lab import mechanisms
from lab.base.errors import PreconditionError
from lab.base.identity import Who
from lab.base.progress import note
from lab.live import journal, look, outside, preflight
from lab.live.look import Connect, Running
from lab.live.preflight import Preflight
from lab.live.successor import Successor
from lab.mechanisms import Asked, Mechanism
from lab.transplant import devices
from lab.vm.binary import Binary


@dataclass(frozen=True)
class Plan:
    """One QEMU, what preflight found, and how it will be moved."""

    found: Running
    seen: Preflight
    mechanism: Mechanism
    successor: Successor
    asked: Asked
    #: Files that its manager opened for the old QEMU's process, and that no successor has open.
    own: tuple[Path, ...] = ()
    #: Where what the old QEMU says ends up, if its manager has a log.
    log: Path | None = None


def plan(
    what: str,
    new: Binary,
    wanted: str,
    asked: Asked | None = None,
    connect: Connect = look.connected,
    *,
    managed: bool = False,
) -> Plan:
    """Look at a QEMU; raise PreconditionError with every reason when it cannot be upgraded.

    `managed` says that it has a manager.
    """
    journal.check_free(Who.of(look.find(what)[0]))
    found = look.look(what, connect)
    made = preflight.successor(found, new)
    seen = preflight.examine(found, new, made, managed=managed)
    chosen = mechanisms.named(seen.best or seen.ways[0].mechanism if wanted == "auto" else wanted)
    assert chosen is not None
    way = next(one for one in seen.ways if one.mechanism == chosen.name)
    reasons = list(way.reasons)
    if chosen.in_place:
        reasons.append("it is for guests of the lab's own: nothing could be put aside for it")
    asked, what_is = asked or Asked(), "upgraded"
    if asked.patience_ms is not None and not chosen.rehearses:
        raise PreconditionError(
            f"mechanism {chosen.name} does not give up, however long the guest stands still",
            hint="leave --patience out, or take another mechanism",
        )
    if asked.rehearse and not chosen.rehearses:
        chosen, what_is = mechanisms.DeviceLoad(), "rehearsed"
        reasons += filter(None, [chosen.missing(found.binary, new)])
        reasons += (f"{path} is the memory of both" for path in preflight.shared_files(found))
    if reasons:
        raise PreconditionError(
            f"process {found.pid} cannot be {what_is} by {way.mechanism}: {'; '.join(reasons)}",
            hint=f"all ways: ./pageflip preflight {what} --new {new.path}",
        )
    mechanisms.check_asked(chosen, asked)
    return Plan(
        found, seen, chosen, outside.inheriting(made) if chosen.from_outside else made, asked
    )


def rehearsal(plan: Plan) -> Plan | None:
    """Return how an upgrade is to be rehearsed before it is made, if it is to be, and say so."""
    who = f"process {plan.found.pid}: a rehearsal"
    asked = replace(plan.asked, rehearse=True)
    if plan.mechanism.joins:
        note(f"{who} by {mechanisms.Flip.name}, where QEMUs are apart")
        return replace(plan, mechanism=mechanisms.Flip(), asked=asked)
    if plan.mechanism.rolls_back:
        return None
    if lacking := devices.missing(plan.found.binary):
        note(f"{who} is not possible, and {plan.mechanism.name} cannot go back: {lacking}")
        return None
    note(f"{who}: {plan.mechanism.name} cannot go back if the new QEMU does not load the devices")
    made = outside.inheriting(plan.successor)
    return replace(plan, mechanism=mechanisms.DeviceLoad(), successor=made, asked=asked)
