# SPDX-License-Identifier: GPL-2.0-or-later
"""Guests whose QEMU was started by hand, as anybody starts one.

The lab's agent is in the guest all the same, so that what is claimed can be checked: it connects
to sockets by their names, and the new QEMU finds another listener there.
"""

import dataclasses
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from lab.base import process
from lab.base.deadline import Deadline
from lab.base.layout import socket_directory
from lab.guest import images
from lab.live import look, planning
from lab.live.move import Mover
from lab.measure import integrity
from lab.model import Outcome
from lab.pair import firmware
from lab.vm import boards
from lab.vm.agent import Control, Heart, agent_lines
from lab.vm.cmdline import Backing, Machine
from lab.vm.qemu import Vm, factory

MIB = 2**20
#: What a VNC server says first.
_RFB = b"RFB 003.008\n"


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

    def end(self, pid: int) -> None:
        """End a QEMU that was let go."""
        with look.connected(pid, look.find(str(pid))[1]) as qmp:
            qmp.execute("quit")
        for _ in Deadline.after(30, "it ends").poll(0.01):
            if process.Foreign(pid).poll() is not None:  # it is a child of this process
                return

    def screen_follows(self, mechanism: str) -> None:
        """Upgrade a guest with its screen on a port: it is reached there again, by its viewer too.

        The old QEMU looks for a port that is free; the new one has the one that was found.
        """
        with self.by_hand("-vnc", "127.0.0.1:0,to=99") as one:
            port = _vnc_port(one.vm.pid)
            self.assertEqual(_greeting(port), _RFB)
            with socket.create_connection(("127.0.0.1", port)):
                plan = planning.plan(str(one.vm.pid), self.new, mechanism)
                (moved,) = Mover(self.layout).all([plan], 1)
                self.assertEqual((moved.outcome, moved.failure), (Outcome.UPGRADED, ""))
                self.assertEqual(moved.differences, [])
                self.assertEqual(_vnc_port(moved.new_pid), port)
                self.assertEqual(_greeting(port), _RFB)


def _vnc_port(pid: int) -> int:
    """Return the one TCP port that a QEMU listens on."""
    found = look.look(str(pid)).truth
    assert found
    (where,) = [one.address for one in found.listeners if one.kind == "tcp"]
    return int(where.rpartition(":")[2])


def _greeting(port: int) -> bytes:
    """Return what a VNC server says first (RFC 6143, 7.1.1)."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as there:
        return there.recv(12)
