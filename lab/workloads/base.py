# SPDX-License-Identifier: GPL-2.0-or-later
"""What a workload is: what it needs, what it gives the machine, how it runs and what it found."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from lab.guest.images import Guest
from lab.measure.downtime import Window
from lab.mechanisms import Mechanism
from lab.model import Findings
from lab.vm.binary import Binary
from lab.vm.cmdline import Machine
from lab.vm.qemu import Vm


class WorkloadRun(abc.ABC):
    """One run of a workload, in the order in which the pipeline calls it."""

    def equip(self, machine: Machine) -> Machine:
        """Return the old QEMU's machine with the devices that the workload needs."""
        return machine

    @abc.abstractmethod
    def start(self, vm: Vm) -> None:
        """Set it going in the guest, which has booted; raise CannotTellError if it does not go."""

    def succeed(self, machine: Machine, mechanism: Mechanism) -> Machine:  # noqa: ARG002
        """Return the new QEMU's machine, with what cannot be the old one's replaced."""
        return machine

    @abc.abstractmethod
    def check(self, survivor: Vm, window: Window) -> Findings:
        """End it in the QEMU that the guest now runs under, and say what was lost."""


class Workload(abc.ABC):
    """A kind of workload."""

    name: ClassVar[str]
    summary: ClassVar[str]
    #: What it measures and counts, by the key in the result; docs/results.md says more.
    figures: ClassVar[Mapping[str, str]]

    @abc.abstractmethod
    def missing(self, guest: Guest) -> str:
        """Return what the guest lacks for it, or an empty string."""

    def missing_for(self, mechanism: Mechanism, old: Binary) -> str:  # noqa: ARG002
        """Return why the guest cannot be moved in this way with it, or an empty string."""
        return ""

    @abc.abstractmethod
    def opened(self, directory: Path) -> AbstractContextManager[WorkloadRun]:
        """Make it ready on the host for the block; logs go to `directory`.

        Raises PreconditionError when this host, or this user, lacks something.
        """


@dataclass(frozen=True)
class Together:
    """Any number of sessions as if they were one."""

    sessions: tuple[WorkloadRun, ...] = ()

    def equip(self, machine: Machine) -> Machine:
        """Return the machine with the devices of all."""
        for session in self.sessions:
            machine = session.equip(machine)
        return machine

    def start(self, vm: Vm) -> None:
        """Set all going."""
        for session in self.sessions:
            session.start(vm)

    def succeed(self, machine: Machine, mechanism: Mechanism) -> Machine:
        """Return the new QEMU's machine."""
        for session in self.sessions:
            machine = session.succeed(machine, mechanism)
        return machine

    def check(self, survivor: Vm, window: Window) -> list[Findings]:
        """End all, and say what each found."""
        return [session.check(survivor, window) for session in self.sessions]


NOTHING = Together()
