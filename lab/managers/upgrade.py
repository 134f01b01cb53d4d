# SPDX-License-Identifier: GPL-2.0-or-later
"""`pageflip upgrade --domain`: the flow, whoever the manager is.

Everything is found out while the manager is at work; then it is kept away once, for all guests.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from lab.base.errors import CannotTellError, LabError, PreconditionError
from lab.base.layout import Layout
from lab.base.progress import note
from lab.live import look, planning
from lab.live.look import Running
from lab.live.move import Mover
from lab.live.moved import Moved
from lab.live.planning import Plan
from lab.live.truth.ask import Talks
from lab.managers import confined
from lab.managers.base import Manager, new_qemu
from lab.managers.journal import Guest
from lab.mechanisms import Asked
from lab.model import Outcome
from lab.vm.binary import Binary


def examine(manager: Manager, guest: Guest) -> Running:
    """Look at a guest's QEMU by way of its manager."""
    return look.look(str(guest.monitor), functools.partial(_through, manager, guest))


def plan(
    manager: Manager, guest: Guest, new: Binary, wanted: str, asked: Asked | None = None
) -> Plan:
    """Plan a guest's upgrade by way of its manager; raise PreconditionError."""
    if refused := confined.refusal(guest.pid, new.path):
        raise PreconditionError(f"{guest.name} cannot be upgraded: {refused}")
    connect = functools.partial(_through, manager, guest)
    return planning.plan(str(guest.monitor), new, wanted, asked, connect, managed=True)


@contextmanager
def _through(manager: Manager, guest: Guest, _pid: int, _path: Path) -> Iterator[Talks]:
    with manager.through(guest) as talks:
        yield talks


def upgrade(
    layout: Layout,
    manager: Manager,
    guests: Sequence[Guest],
    programs: Mapping[str, Binary],
    wanted: str,
    asked: Asked,
    at_once: int,
) -> list[Moved]:
    """Upgrade guests of one manager; the list leaves out those that were not started.

    `programs` are the new QEMUs, by the guests' names.
    """
    for guest in guests:  # what is refused is refused before the manager is disturbed
        plan(manager, guest, programs[guest.name], wanted, asked)
    adopted: dict[str, int] = {}
    with manager.quiesced(guests):
        note(f"{manager.title} is kept away; the guests run on")
        plans = [
            dataclasses.replace(
                planning.plan(
                    str(guest.monitor), programs[guest.name], wanted, asked, managed=True
                ),
                own=guest.own,
                log=guest.log,
            )
            for guest in guests
        ]
        try:
            moved = Mover(layout).all(plans, at_once)
        finally:
            adopted |= adopt(manager, guests)
    _check(moved, set(adopted.values()))
    nobody = {one.pid for one in moved if one.outcome in {Outcome.LOST, Outcome.DOUBLED}}
    for guest in guests:
        if guest.pid not in nobody:
            manager.verify(guest, adopted.get(guest.name, guest.pid))
    return moved


def adopt(manager: Manager, guests: Sequence[Guest]) -> dict[str, int]:
    """Let the manager know every guest's new process; return these by the guests' names.

    Goes by what there is, and not by what was done.  Raises the first guest's error when all others
    have been seen to.
    """
    found: dict[str, int] = {}
    errors: list[LabError] = []
    for guest in guests:
        try:
            new = new_qemu(guest)
            if new and not manager.settled(guest):
                manager.adopt(guest, new)
            if new:
                found[guest.name] = new.pid
        except LabError as error:
            errors.append(error)
    for more in errors[1:]:
        note(more.message)
    if errors:
        raise errors[0]
    return found


def _check(moved: Sequence[Moved], adopted: set[int]) -> None:
    """Raise CannotTellError where a guest that moved was not adopted."""
    for one in moved:
        if one.outcome is Outcome.UPGRADED and one.new_pid not in adopted:
            raise CannotTellError(
                f"the guest of process {one.pid} has moved to {one.new_pid}, which its manager "
                "does not know",
                hint=f"a record of everything that was done: {one.run_directory}",
            )
