# SPDX-License-Identifier: GPL-2.0-or-later
"""The rehearsal of a move that cannot be rehearsed itself: the new QEMU loads the devices alone.

The old QEMU saves the state of its devices, for which the guest stands still for a moment, and goes
on.  The new one loads it into a machine that has of the guest's memory only what devices look for
while they are loaded, and is ended.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lab.base.deadline import Deadline
from lab.base.process import Foreign
from lab.mechanisms.base import Asked, Driven, Look, Mechanism, set_capabilities, timed
from lab.transplant import devices, guestmem, stream
from lab.vm.binary import Binary
from lab.vm.qemu import Qemu

_SAVE_S = 30.0


class DeviceLoad(Mechanism):
    """Whether the new QEMU loads the guest's devices; it moves nothing."""

    name = "device-load"
    summary = "no move: the new QEMU loads the device state without guest memory, and is ended"
    monitor_first = False
    from_outside = True
    rehearses = True

    def missing(self, old: Binary, new: Binary) -> str:
        return devices.missing(old)

    def prepare(self, old: Qemu, new: Qemu) -> None:
        """Nothing is to be set in the old QEMU, and there is no new one yet."""

    def go(self, old: Qemu, new: Qemu, asked: Asked) -> Driven:
        devices.check_blockers(old)
        return _Loading(old, new)


class _Loading(Driven):
    """One such rehearsal."""

    def __init__(self, old: Qemu, new: Qemu) -> None:
        self._old, self._new = old, new
        self._loaded = False
        self._us: dict[str, int] = {}

    def finish(self, look: Look, resuming: Look) -> None:
        """Let the old QEMU save, and the new one load and end; `resuming` sees nothing."""
        look(self._new)
        # What it gets has no memory: it must neither run it, nor take the disks, nor be heard of.
        self._new.monitor.execute("stop")
        set_capabilities(self._new, ("events", "late-block-activate"))
        self._new.monitor.execute("migrate-set-parameters", {"announce-rounds": 0})
        machine, blocks = devices.configuration(self._old), devices.ram_blocks(self._old)
        pages = guestmem.read(self._old, blocks)
        with timed(self._us, "device-save-us"):
            deadline = Deadline.after(_SAVE_S, "the device state is saved and loaded")
            state = devices.save(self._old, deadline, live=False)
        with timed(self._us, "device-load-us"):
            devices.load(self._new, stream.complete(state, machine, blocks, pages), deadline)
        self._loaded = True
        self.undo()

    def undo(self) -> str:
        """End the new QEMU."""
        if self._new.pid and not self._new.dead:
            Foreign(self._new.pid).kill()
        return ""

    def close(self) -> None:
        """End the new QEMU, if that has not been done."""
        self.undo()

    def info(self) -> Mapping[str, Any]:
        """Say what was done, in the form of the series' query-migrate."""
        return {"localhost": {"rehearsed": self._loaded, "blocks": [], **self._us}}
