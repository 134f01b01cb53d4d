# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether a new QEMU loads what an old one saves, found out by two QEMUs that nobody needs.

They are started as the guest's own would be, with the same machine and devices, and the first is
moved to the second as soon as it is there; its guest has not booted and stands still.  What both
QEMUs make of a machine and its devices is seen by that, whatever they were built from; what only a
guest at work would bring about is not.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from lab.base.layout import socket_directory
from lab.base.progress import step
from lab.guest import disk
from lab.mechanisms.base import Asked
from lab.mechanisms.move import move
from lab.mechanisms.upstream import StopCopy
from lab.model import Outcome
from lab.vm import cmdline
from lab.vm.cmdline import Machine
from lab.vm.qemu import factory

#: The RunState (QAPI) of a guest that was told to stop.
_PAUSED = "paused"


def refusal(old: Machine, qemu: Path, firmware: Path) -> str:
    """Return why a guest of `old` does not load under `qemu`; "" when it does.

    Raises CannotTellError when the old QEMU does not start.
    """
    mechanism = StopCopy()
    with (
        step("see whether the new QEMU loads such a machine at all"),
        socket_directory(roomy=old.disk is not None) as directory,
        factory(directory, None) as start,
    ):
        mine = alone(old, directory)
        first = start.start("old", mine)
        start.connect(first)
        first.monitor.execute("stop")
        other = cmdline.successor(
            mine,
            qemu=qemu,
            firmware=firmware,
            sockets=directory / "new",
            serial_log=directory / "new-serial.log",
            incoming=mechanism.incoming(mine),
        )
        second = start.start("new", other)
        moved = move(start, first, second, mechanism, Asked(), state=_PAUSED)
    return "" if moved.outcome is Outcome.UPGRADED else moved.failure or "neither QEMU has it"


def alone(machine: Machine, directory: Path) -> Machine:
    """Return a machine with nothing of the guest's own: no tap, another disk on top of its disk."""
    cards = [
        f"virtio-net-pci,id=nic{number},mac={nic.mac},romfile="
        for number, nic in enumerate(machine.nics)
    ]
    return dataclasses.replace(
        machine,
        sockets=directory / "old",
        serial_log=directory / "old-serial.log",
        nics=(),
        devices=(*cards, *machine.devices),
        disk=disk.overlay(machine.disk, directory),
    )
