# SPDX-License-Identifier: GPL-2.0-or-later
"""Workloads that are a script in the guest, run by QEMU's own agent there.

The script is ``/usr/local/lib/pageflip/NAME``.  ``start`` returns when it is going, ``check`` ends
it and prints lines ``figure NAME VALUE`` and ``problem TEXT``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

from lab.base.deadline import Deadline
from lab.base.errors import CannotTellError
from lab.guest import disk
from lab.guest.images import Guest, LinuxGuest
from lab.measure.downtime import Window
from lab.model import Findings
from lab.vm.qemu import Vm
from lab.vm.qga import GuestAgent, guest_agent
from lab.workloads.base import Workload, WorkloadRun

#: All in the guest, perhaps under TCG on a busy host (s).
_START_S = 900.0
_CHECK_S = 1200.0
_COMMAND_S = 60.0
#: How much of the guest's memory is checked while the workload runs (bytes/s).
_VERIFY_RATE = 4 * 2**20


class Scripted(Workload):
    """One of them."""

    def missing(self, guest: Guest) -> str:
        """Only a guest with a disk has room for the programs."""
        has = isinstance(guest, LinuxGuest) and guest.system
        return "" if has else "it has no disk with programs on it; take --guest debian"

    @contextmanager
    def opened(self, directory: Path) -> Iterator[WorkloadRun]:  # noqa: ARG002
        """Nothing is needed on the host."""
        yield _ScriptedRun(self)

    def check(self, agent: GuestAgent, survivor: Vm) -> list[str]:  # noqa: ARG002
        """Look from outside; return what is wrong."""
        return []


class Cpu(Scripted):
    """See guests/debian/files/usr/local/lib/pageflip/cpu."""

    name = "cpu"
    summary = "stress-ng with verification, and a chain of checksums: one wrong bit is seen"
    figures: ClassVar[Mapping[str, str]] = {
        "stress_ops": "operations of stress-ng over the whole run, each result compared",
        "chain_steps": "SHA-256 sums, each of the one before, computed again in the end",
    }


class Database(Scripted):
    """See guests/debian/files/usr/local/lib/pageflip/database."""

    name = "database"
    summary = "PostgreSQL under pgbench, and sqlite: committed is committed, and nothing more"
    figures: ClassVar[Mapping[str, str]] = {
        "transactions": "committed by PostgreSQL over the whole run",
        "sqlite_rows": "committed by sqlite, a transaction each",
    }


class Disk(Scripted):
    """See guests/debian/files/usr/local/lib/pageflip/disk."""

    name = "disk"
    summary = "fio with verification, a journal in O_DSYNC; the file system checked from outside"
    figures: ClassVar[Mapping[str, str]] = {
        "fio_rounds": "of 8 MiB written and read back by fio over the whole run",
        "journal_records": "of 512 bytes, each written when the one before it was on the disk",
    }

    def check(self, agent: GuestAgent, survivor: Vm) -> list[str]:
        """Check the image and the file system while the guest stands still."""
        deadline = Deadline.after(_COMMAND_S, "the guest's file system is frozen")
        assert survivor.machine.disk
        agent.freeze(deadline)
        survivor.monitor.execute("stop")
        try:
            return disk.damage(survivor.machine.disk)
        finally:
            survivor.monitor.execute("cont")
            agent.thaw(Deadline.after(_COMMAND_S, "the guest's file system is thawed"))


class _ScriptedRun(WorkloadRun):
    def __init__(self, workload: Scripted) -> None:
        self._workload = workload
        self._script = f"/usr/local/lib/pageflip/{workload.name}"

    def start(self, vm: Vm) -> None:
        # A guest under TCG has no time for two: every page is checked in the end all the same.
        vm.control.call("pace", Deadline.after(_COMMAND_S, "pace"), verify_rate=_VERIFY_RATE)
        deadline = Deadline.after(_START_S, f"workload {self._workload.name} starts in the guest")
        with guest_agent(vm) as agent:
            done = agent.run([self._script, "start"], deadline)
        if done.returncode:
            raise CannotTellError(
                f"workload {self._workload.name} did not start in the guest: exit status "
                f"{done.returncode}: {done.stderr.strip()}"
            )

    def check(self, survivor: Vm, window: Window) -> Findings:  # noqa: ARG002
        survivor.control.call("dirty", Deadline.after(_COMMAND_S, "stop dirtying"), rate=0)
        deadline = Deadline.after(_CHECK_S, f"workload {self._workload.name} is checked")
        with guest_agent(survivor) as agent:
            done = agent.run([self._script, "check"], deadline)
            figures, problems = told(done.stdout)
            if done.returncode:
                said = done.stderr.strip() or "it said nothing"
                problems.append(f"the check ended with exit status {done.returncode}: {said}")
            problems += self._workload.check(agent, survivor)
        missing = self._workload.figures.keys() - figures.keys()
        return Findings(
            name=self._workload.name,
            figures={**figures, **dict.fromkeys(sorted(missing))},
            problems=problems,
        )


def told(output: str) -> tuple[dict[str, int | float | None], list[str]]:
    """Return the figures and the problems that a script printed; other lines are not read."""
    figures: dict[str, int | float | None] = {}
    problems = []
    for line in output.splitlines():
        match line.split(maxsplit=2):
            case ["figure", name, value]:
                figures[name] = int(value)
            case ["problem", *_]:
                problems.append(line.removeprefix("problem").strip())
    return figures, problems
