# SPDX-License-Identifier: GPL-2.0-or-later
"""QEMU's own agent in the guest: commands that are run there.

Its protocol is QMP's without a greeting (docs/interop/qemu-ga.rst); the commands are those of
qga/qapi-schema.json.
"""

from __future__ import annotations

import base64
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from lab.base.deadline import Deadline
from lab.vm.monitor import Monitor, monitor
from lab.vm.qemu import Vm

_CONNECT_S = 30.0


class GuestAgent:
    """The agent of one guest."""

    def __init__(self, agent: Monitor, vm: Vm) -> None:
        self._agent = agent
        self._vm = vm

    def run(self, argv: Sequence[str], deadline: Deadline) -> subprocess.CompletedProcess[str]:
        """Run a command to its end and return what it printed.

        Raises QmpError when it cannot be started, DeadlineError when it takes too long or the
        agent answers no more, VmDiedError when the guest's QEMU ends.
        """
        arguments = {"path": argv[0], "arg": list(argv[1:]), "capture-output": True}
        pid = self._agent.execute("guest-exec", arguments, deadline)["pid"]
        status: dict[str, object] = {}
        for _ in deadline.poll(0.05):
            self._vm.alive()
            status = self._agent.execute("guest-exec-status", {"pid": pid}, deadline)
            if status["exited"]:
                break
        code = int(str(status.get("exitcode", -int(str(status.get("signal", 0))))))
        return subprocess.CompletedProcess(
            list(argv), code, _text(status.get("out-data")), _text(status.get("err-data"))
        )

    def freeze(self, deadline: Deadline) -> None:
        """Let the file systems write everything and then nothing, until `thaw`."""
        self._agent.execute("guest-fsfreeze-freeze", deadline=deadline)

    def thaw(self, deadline: Deadline) -> None:
        """End it."""
        self._agent.execute("guest-fsfreeze-thaw", deadline=deadline)


def _text(data: object) -> str:
    return base64.b64decode(str(data or "")).decode("utf-8", errors="replace")


@contextmanager
def guest_agent(vm: Vm) -> Iterator[GuestAgent]:
    """Talk to the agent in the guest of `vm` for as long as the block lasts."""
    name, deadline = f"guest of the {vm.name} QEMU", Deadline.after(_CONNECT_S, "guest agent")
    path = vm.machine.guest_agent
    with monitor(name, path, deadline, vm.alive, vm.monitor.log, greets=False) as connected:
        yield GuestAgent(connected, vm)
