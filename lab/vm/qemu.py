# SPDX-License-Identifier: GPL-2.0-or-later
"""A running QEMU: its process, its monitor and the lines to the agent in its guest."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from lab.base import becoming
from lab.base import process as run
from lab.base.deadline import Deadline, DeadlineError
from lab.base.errors import CannotTellError
from lab.base.record import Lines
from lab.host import facts
from lab.host.cgroup import MemoryGroup
from lab.host.pinning import NOT_PINNED, Pins
from lab.vm import tracelog
from lab.vm.agent import Control, Heart, agent_lines
from lab.vm.cmdline import Invocation, Machine
from lab.vm.monitor import Event, Monitor, MonitorError, QmpError, monitor

#: TCG on a loaded machine is slow; these only end what would never end by itself (s).
MONITOR_S = 60.0
BOOT_S = 180.0
#: How often processor time is taken down where it is watched (ns).
_WATCH_NS = 10_000_000


class VmDiedError(CannotTellError):
    """A QEMU ended by itself."""


class Qemu:
    """A QEMU process, and the connection to its monitor once `VmFactory.connect` has made it."""

    def __init__(self, name: str, machine: Invocation, process: run.Process, log: Path) -> None:
        self.name = name
        self.machine = machine
        self.process = process
        self.log = log
        self.connection: Monitor | None = None
        #: Processor time that it had used (ms) at instants of the host's monotonic clock (ns).
        self.cpu: list[tuple[int, float]] = []

    @property
    def pid(self) -> int:
        """The process id."""
        return self.process.pid

    @property
    def monitor(self) -> Monitor:
        """The monitor; raise MonitorError when it has not been connected to."""
        if self.connection is None:
            raise MonitorError(f"the {self.name} QEMU has no monitor to ask yet")
        return self.connection

    @property
    def events(self) -> list[Event]:
        """The monitor's events so far, and the resumes that it came too late to tell."""
        heard = self.connection.events if self.connection else []
        if any(event.name == "RESUME" for event in heard):
            return heard
        return [*heard, *tracelog.resumes(self._output())]

    @property
    def checkpoints(self) -> dict[str, float]:
        """When it reached each step of the migration (s since the epoch), by QEMU's names."""
        return tracelog.checkpoints(self._output())

    def read_cpu(self) -> None:
        """Take down how much processor time it has used by now."""
        if (used := facts.cpu_ms(self.pid)) is not None:
            self.cpu.append((time.monotonic_ns(), used))

    def watch_cpu(self) -> None:
        """Take it down again if some time has passed; for what waits for something."""
        if not self.cpu or time.monotonic_ns() - self.cpu[-1][0] > _WATCH_NS:
            self.read_cpu()

    @property
    def dead(self) -> bool:
        """Whether the process has ended."""
        return self.process.poll() is not None

    def alive(self) -> None:
        """Raise VmDiedError when the process has ended."""
        status = self.process.poll()
        if status is not None:
            how = f"killed by signal {-status}" if status < 0 else f"exit status {status}"
            if status == run.ENDED:
                how = "only the QEMU that started it knows how"
            said = self.said()
            raise VmDiedError(
                f"the {self.name} QEMU ended by itself: {how}"
                + (f"; it said: {said}" if said else ""),
                hint=f"its output: {self.log}",
            )

    def said(self) -> str:
        """Return the last lines that QEMU printed."""
        lines = tracelog.words(self._output())
        return "; ".join([line for line in lines if not line.startswith("+ ")][-3:])

    def _output(self) -> str:
        try:
            return self.log.read_text(encoding="utf-8", errors="replace")
        except OSError:  # there is none yet, or none any more
            return ""

    def state(self) -> str:
        """Return the guest's RunState (QAPI) by this QEMU; "" when it does not answer."""
        if self.dead:
            return ""
        try:
            deadline = Deadline.after(5, "query-status")
            return str(self.monitor.execute("query-status", deadline=deadline)["status"])
        except (MonitorError, QmpError, DeadlineError):
            return ""


class Vm(Qemu):
    """A QEMU of the lab's own, with the lines to the agent in its guest."""

    machine: Machine

    def __init__(
        self,
        name: str,
        machine: Machine,
        process: run.Process,
        log: Path,
        control: Control,
        heart: Heart,
    ) -> None:
        super().__init__(name, machine, process, log)
        self.control = control
        self.heart = heart


@dataclass
class VmFactory:
    """Starts QEMUs of one run: in its memory group, with its logs, ended when the run ends."""

    stack: ExitStack
    directory: Path
    group: MemoryGroup | None
    pins: Pins
    qmp_log: Callable[[str], None]

    def start(self, name: str, machine: Machine) -> Vm:
        """Start a QEMU and return at once; its monitor is not connected yet."""
        control, heart = self._lines(machine)
        argv = machine.argv()
        log = self.directory / f"{name}.log"
        log.write_text(f"+ {run.command_line(argv)}\n", encoding="utf-8")
        process = self.stack.enter_context(
            run.spawned(
                self.group.enter(argv) if self.group else argv,
                log=log,
                pass_fds=machine.descriptors,
            )
        )
        return Vm(name, machine, process, log, control, heart)

    def expect(self, name: str, machine: Machine, parent: Vm, *, in_place: bool = False) -> Vm:
        """Make everything ready for a QEMU that `parent` is going to start, or `in_place` to be."""
        process = (
            becoming.Become(parent.process, str(machine.sockets))
            if in_place
            else becoming.ChildOf(parent.pid)
        )
        control, heart = self._lines(machine)
        log = self.directory / f"{name}.log"
        machine = dataclasses.replace(machine, trace_log=log)
        return Vm(name, machine, process, log, control, heart)

    def _lines(self, machine: Machine) -> tuple[Control, Heart]:
        machine.sockets.mkdir(parents=True, exist_ok=True)
        return self.stack.enter_context(agent_lines(machine.control, machine.heartbeat))

    def connect(self, vm: Qemu, alive: Callable[[], None] | None = None) -> None:
        """Connect to the monitor of a QEMU that was started; `alive` raises if it has ended."""
        connection = self.stack.enter_context(
            monitor(
                vm.name,
                vm.machine.qmp,
                Deadline.after(MONITOR_S, f"monitor of the {vm.name} QEMU"),
                alive or vm.alive,
                self.qmp_log,
            )
        )
        vm.connection = connection
        if self.pins.guest:
            cpus = connection.execute("query-cpus-fast")
            self.pins.keep([cpu["thread-id"] for cpu in cpus])

    def boot(self, name: str, machine: Machine) -> Vm:
        """Start a QEMU and wait until the agent in its guest is ready and its heart beats."""
        vm = self.start(name, machine)
        self.connect(vm)
        deadline = Deadline.after(BOOT_S, f"boot of the guest under the {name} QEMU")
        for _ in deadline.poll(0.01):
            vm.alive()
            if vm.control.ready.is_set():
                break
        vm.heart.wait(10, deadline, vm.alive)
        return vm


@contextmanager
def factory(
    directory: Path, group: MemoryGroup | None, pins: Pins = NOT_PINNED
) -> Iterator[VmFactory]:
    """Return what starts QEMUs; all of them are ended, last first, when the block is left."""
    with ExitStack() as stack:
        log = Lines(directory / "qmp.log")
        stack.callback(log.close)
        yield VmFactory(
            stack, directory, group, pins, lambda text: log.add(f"{time.monotonic():.6f} {text}")
        )
