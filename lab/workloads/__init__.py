# SPDX-License-Identifier: GPL-2.0-or-later
"""What the guest is kept busy with while it moves, beside its memory and its clocks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from lab.base.errors import PreconditionError, UsageError
from lab.guest.images import Guest
from lab.mechanisms import Mechanism
from lab.vm.binary import Binary
from lab.workloads.base import NOTHING, Together, Workload
from lab.workloads.network import Network
from lab.workloads.scripted import Cpu, Database, Disk

WORKLOADS: tuple[Workload, ...] = (Network(), Disk(), Database(), Cpu())

__all__ = [
    "NOTHING",
    "WORKLOADS",
    "Together",
    "Workload",
    "check_guest",
    "check_mechanism",
    "named",
    "opened",
]


def named(names: str) -> tuple[Workload, ...]:
    """Return the workloads of a list such as ``network,disk``; raise UsageError."""
    known = {workload.name: workload for workload in WORKLOADS}
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    for name in wanted:
        if name not in known:
            lines = "".join(f"\n    {one.name:<10} {one.summary}" for one in WORKLOADS)
            raise UsageError(
                f"there is no workload {name!r}",
                hint=f"take some of these (memory and clocks are always checked):{lines}",
            )
    return tuple(known[name] for name in dict.fromkeys(wanted))


def check_guest(workloads: Sequence[Workload], name: str, guest: Guest) -> None:
    """Raise PreconditionError when the guest of that name cannot run one of them."""
    for workload in workloads:
        if lacking := workload.missing(guest):
            raise PreconditionError(
                f"workload {workload.name} is not possible in guest {name}: {lacking}"
            )


def check_mechanism(workloads: Sequence[Workload], mechanism: Mechanism, old: Binary) -> None:
    """Raise PreconditionError when one of them and that way to move the guest exclude another."""
    for workload in workloads:
        if lacking := workload.missing_for(mechanism, old):
            raise PreconditionError(
                f"workload {workload.name} is not possible with mechanism {mechanism.name}: "
                f"{lacking}"
            )


@contextmanager
def opened(workloads: Sequence[Workload], directory: Path) -> Iterator[Together]:
    """Make everything ready on the host for as long as the block lasts; logs go to `directory`."""
    with ExitStack() as stack:
        yield Together(tuple(stack.enter_context(one.opened(directory)) for one in workloads))
