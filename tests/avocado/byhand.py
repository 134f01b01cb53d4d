# SPDX-License-Identifier: GPL-2.0-or-later
"""Guests whose QEMU was started by hand, as anybody starts one.

The lab's agent is in the guest all the same, so that what is claimed can be checked: it connects
to sockets by their names, and the new QEMU finds another listener there.
"""

import dataclasses
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from lab.base.layout import socket_directory
from lab.guest import images
from lab.measure import integrity
from lab.pair import firmware
from lab.vm import boards
from lab.vm.agent import Control, Heart, agent_lines
from lab.vm.cmdline import Backing, Machine
from lab.vm.qemu import Vm, factory

MIB = 2**20


@dataclasses.dataclass(frozen=True)
class Written(Machine):
    """A guest of the lab's, with what somebody wrote beside it."""

    more: tuple[str, ...] = ()

    def argv(self) -> list[str]:
        """Return the command line."""
        return [*super().argv(), *(word.format(sockets=self.sockets) for word in self.more)]


@dataclasses.dataclass
class Guest:
    """A running one, and how to hear of it once it has moved."""

    vm: Vm
    control: Control
    heart: Heart

    @property
    def qmp(self) -> Path:
        """The socket that management has."""
        return self.vm.machine.qmp


class ByHand:
    """A mixin for tests: starts such a guest, of the old and the new QEMU of the test."""

    touched = 128 * MIB

    @contextmanager
    def by_hand(
        self, *more: str, ram: str = "512", backing: Backing = Backing.PRIVATE, rate: int = 20 * MIB
    ) -> Iterator[Guest]:
        """Start a guest and let its memory change, by so many bytes each second."""
        image = images.build("tiny", self.layout)
        directory = self.layout.new_run()
        with ExitStack() as stack:
            sockets = stack.enter_context(socket_directory()) / "vm"
            start = stack.enter_context(factory(directory, None))
            vm = start.boot(
                "hand",
                Written(
                    qemu=self.old.path,
                    firmware=firmware.prepare(self.layout),
                    kernel=image.kernel,
                    initrd=image.initrd,
                    append=image.append,
                    sockets=sockets,
                    serial_log=directory / "serial.log",
                    accel="tcg",
                    ram_bytes=int(ram) * 2**20,
                    machine_type=boards.common("q35", self.old.machines, self.new.machines),
                    backing=backing,
                    more=(
                        "-pidfile",
                        "{sockets}/pid",
                        "-monitor",
                        "unix:{sockets}/hmp,server,nowait",
                        *more,
                    ),
                ),
            )
            integrity.fill(vm.control, self.touched, rate, lambda _done, _total: None)
            vm.monitor.close()  # it talks to one client at a time
            for path in (vm.machine.control, vm.machine.heartbeat):
                path.unlink()
            control, heart = stack.enter_context(
                agent_lines(vm.machine.control, vm.machine.heartbeat)
            )
            yield Guest(vm, control, heart)
