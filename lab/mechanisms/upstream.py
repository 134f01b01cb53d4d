# SPDX-License-Identifier: GPL-2.0-or-later
"""The mechanisms that upstream QEMU has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from lab.base.deadline import Deadline
from lab.host import facts
from lab.mechanisms.base import BANDWIDTH, Asked, Mechanism, set_capabilities
from lab.model import Block
from lab.vm.binary import Binary
from lab.vm.cmdline import Backing, Invocation, cpr_channel
from lab.vm.qemu import Qemu

_POSTCOPY_START_S = 30.0


#: The new QEMU says that it has loaded everything before the old one gives the guest up: without it
#: the old one has done its part when all is sent, and the guest is nowhere if that does not load.
_RETURN = "return-path"


class Precopy(Mechanism):
    """Ordinary live migration over a unix socket."""

    name = "precopy"
    summary = "copies while the guest runs, again what it dirtied, then the rest; doubles memory"
    doubles = True
    pool = True
    old_capabilities: ClassVar[tuple[str, ...]] = ("events", _RETURN)
    new_capabilities: ClassVar[tuple[str, ...]] = ("events", _RETURN)

    def go(self, old: Qemu, new: Qemu, asked: Asked) -> None:
        old.monitor.execute("migrate", {"uri": self.uri(new)})


class Multifd(Precopy):
    """The same over several connections, a thread for each."""

    name = "multifd"
    summary = "precopy over several connections; doubles memory"
    old_capabilities = ("events", _RETURN, "multifd")
    new_capabilities = ("events", _RETURN, "multifd")


class StopCopy(Mechanism):
    """Ordinary migration of a stopped guest."""

    name = "stop-copy"
    summary = "stops the guest, copies, resumes; doubles memory"
    doubles = True
    resumes = False
    old_capabilities = ("events", _RETURN)
    new_capabilities = ("events", _RETURN)

    def go(self, old: Qemu, new: Qemu, asked: Asked) -> None:
        old.monitor.execute("stop")
        old.monitor.execute("migrate", {"uri": self.uri(new)})


class Postcopy(Mechanism):
    """Postcopy from the first moment, the old side releasing what it sent."""

    name = "postcopy"
    summary = "resumes at once, pages follow behind; release-ram frees the old side"
    rolls_back = False
    old_capabilities = ("events", "postcopy-ram", "release-ram")
    new_capabilities = ("events", "postcopy-ram")

    def go(self, old: Qemu, new: Qemu, asked: Asked) -> None:
        old.monitor.execute("migrate", {"uri": self.uri(new)})
        old.monitor.wait_for(
            lambda event: (
                event.name == "MIGRATION" and event.data["status"] in {"active", "failed"}
            ),
            Deadline.after(_POSTCOPY_START_S, "postcopy becomes active"),
            old.alive,
        )
        old.monitor.execute("migrate-start-postcopy")


class Cpr(Mechanism):
    """Upstream's answer, for guests that were started with shared memory: a mode of migration."""

    backing = Backing.SHARED
    monitor_first = False

    def missing(self, old: Binary, new: Binary) -> str:
        for side, binary in (("old", old), ("new", new)):
            if self.name not in binary.migration_modes:
                return f"the {side} QEMU ({binary.version}) has no migration mode {self.name}"
        return ""

    def set_mode(self, old: Qemu, **more: Any) -> None:
        """Let the old QEMU's next migration be of this mode."""
        set_capabilities(old, self.old_capabilities)
        old.monitor.execute(
            "migrate-set-parameters", {"mode": self.name, "max-bandwidth": BANDWIDTH, **more}
        )

    def blocks(self, info: Mapping[str, Any], ram_bytes: int) -> list[Block]:
        return [Block(name="(all)", mechanism="shared descriptor", used_bytes=ram_bytes)]


class CprTransfer(Cpr):
    """By descriptors, to a new QEMU that waits for them."""

    name = "cpr-transfer"
    summary = "passes descriptors of shared memory; the guest must have been started with share=on"

    def incoming(self, new: Invocation) -> tuple[str, ...]:
        return (f"unix:{new.sockets / 'migrate'}", cpr_channel(new.sockets / "cpr"))

    def prepare(self, old: Qemu, new: Qemu) -> None:
        self.set_mode(old)
        # The new QEMU waits on this socket before it has a monitor to ask; there it is a moment
        # before it is listened at.
        for _ in Deadline.after(30, "the new QEMU listens for cpr-transfer").poll(0.002):
            new.alive()
            if new.machine.sockets / "cpr" in facts.listening_sockets():
                return

    def go(self, old: Qemu, new: Qemu, asked: Asked) -> None:
        channels = [
            {
                "channel-type": kind,
                "addr": {
                    "transport": "socket",
                    "type": "unix",
                    "path": str(new.machine.sockets / path),
                },
            }
            for kind, path in (("main", "migrate"), ("cpr", "cpr"))
        ]
        old.monitor.execute("migrate", {"channels": channels})


class CprExec(Cpr):
    """By the old QEMU, which executes the new one in its own place."""

    name = "cpr-exec"
    summary = "the old QEMU becomes the new one, shared memory stays; both have to know it"
    in_place = True
    rolls_back = False

    def incoming(self, new: Invocation) -> tuple[str, ...]:
        return (f"file:{new.sockets / 'state'}",)

    def prepare(self, old: Qemu, new: Qemu) -> None:
        self.set_mode(old, **{"cpr-exec-command": new.machine.argv()})

    def go(self, old: Qemu, new: Qemu, asked: Asked) -> None:
        old.monitor.execute("migrate", {"uri": f"file:{new.machine.sockets / 'state'}"})


class IgnoreShared(Mechanism):
    """Live migration that leaves a shared file's memory where it is, for guests started on one."""

    name = "ignore-shared"
    summary = "both QEMUs map the file that is guest RAM; the guest must have been started on it"
    backing = Backing.FILE
    old_capabilities = ("events", _RETURN, "x-ignore-shared")
    new_capabilities = ("events", _RETURN, "x-ignore-shared")

    def go(self, old: Qemu, new: Qemu, asked: Asked) -> None:
        old.monitor.execute("migrate", {"uri": self.uri(new)})

    def blocks(self, info: Mapping[str, Any], ram_bytes: int) -> list[Block]:
        copied = super().blocks(info, ram_bytes)
        return [Block(name="ram", mechanism="shared file", used_bytes=ram_bytes), *copied]
