# SPDX-License-Identifier: GPL-2.0-or-later
"""The guest's network: a TCP connection that must survive, and a clock outside of the guest.

The guest echoes.  A TCP connection, opened before the upgrade, carries numbers both ways all the
time and both ends compare them.  A datagram a millisecond tells for how long nobody answered.
"""

from __future__ import annotations

import dataclasses
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

from lab.base.deadline import Deadline
from lab.base.errors import CannotTellError
from lab.guest.images import Guest, MultibootGuest
from lab.measure.downtime import Window
from lab.mechanisms import Mechanism
from lab.model import Findings
from lab.vm.binary import Binary
from lab.vm.cmdline import Machine, Nic
from lab.vm.qemu import Vm
from lab.workloads.base import Workload, WorkloadRun
from lab.workloads.netns import GUEST, PREFIX, Segment, segment
from lab.workloads.traffic import FIGURES, GuestAccount, Traffic, figures, problems

_START_S = 30.0


class Network(Workload):
    """A TCP stream and datagrams over a tap in a network namespace."""

    name = "network"
    summary = "a TCP stream that must survive; datagrams at 1 ms as an outside clock"
    figures: ClassVar = FIGURES

    def missing(self, guest: Guest) -> str:
        """A payload of our own has no TCP/IP."""
        return "it has no network" if isinstance(guest, MultibootGuest) else ""

    def missing_for(self, mechanism: Mechanism, old: Binary) -> str:
        """The new QEMU has to get a tap."""
        return mechanism.missing_for_taps(old)

    @contextmanager
    def opened(self, directory: Path) -> Iterator[WorkloadRun]:
        """A network of the lab's own, and the old QEMU's tap."""
        with segment(directory / "network.log") as made:
            running = _NetworkRun(made)
            try:
                yield running
            finally:
                running.close()


class _NetworkRun(WorkloadRun):
    def __init__(self, made: Segment) -> None:
        self._segment = made
        self._tap = made.tap()
        self._traffic: Traffic | None = None

    def equip(self, machine: Machine) -> Machine:
        return dataclasses.replace(machine, nics=(*machine.nics, Nic(self._tap)))

    def succeed(self, machine: Machine, mechanism: Mechanism) -> Machine:
        """Give the new QEMU a tap.

        One that the old QEMU starts gets the very tap, once the guest is to run there.  Any
        other would at once set the tap to another header than the guest still uses, and gets one
        of its own on the same bridge.
        """
        if mechanism.inherits:
            return machine
        fresh = self._segment.tap()
        nics = tuple(
            dataclasses.replace(nic, tap=fresh) if nic.tap == self._tap else nic
            for nic in machine.nics
        )
        return dataclasses.replace(machine, nics=nics)

    def start(self, vm: Vm) -> None:
        deadline = Deadline.after(_START_S, "the guest's network answers")
        ports = vm.control.call("echo", deadline, address=GUEST, prefix=PREFIX)
        datagrams = self._segment.socket(socket.SOCK_DGRAM)
        stream = self._segment.socket(socket.SOCK_STREAM)
        stream.settimeout(deadline.left)
        try:
            datagrams.connect((GUEST, ports["udp_port"]))
            stream.connect((GUEST, ports["tcp_port"]))
        except OSError as error:
            raise CannotTellError(f"the guest cannot be reached at {GUEST}: {error}") from error
        self._traffic = Traffic(datagrams, stream)
        self._traffic.start()
        self._traffic.wait(deadline, vm.alive)

    def check(self, survivor: Vm, window: Window) -> Findings:
        assert self._traffic is not None
        seen = self._traffic.finish()
        status = survivor.control.call("status", Deadline.after(_START_S, "the guest's account"))
        told = GuestAccount(
            tcp_bytes=status["echo"]["tcp_bytes"],
            tcp_bad_bytes=status["echo"]["tcp_bad_bytes"],
            tcp_first_bad=status["echo"]["tcp_first_bad"],
            datagrams=status["echo"]["datagrams"],
            dropped=status["echo"]["dropped"],
            unanswered=status["echo"]["unanswered"],
        )
        return Findings(
            name=Network.name,
            figures=figures(seen, told, self._segment.dropped(), window),
            problems=problems(seen, told, window),
        )

    def close(self) -> None:
        """End the traffic, if it still goes on."""
        if self._traffic:
            self._traffic.close()
