# SPDX-License-Identifier: GPL-2.0-or-later
"""The mechanisms that the series in patches/ adds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from lab.base import kcmp
from lab.host import cgroup
from lab.mechanisms.base import Asked, Mechanism, set_capabilities
from lab.model import Block, Phases
from lab.vm.binary import Binary
from lab.vm.cmdline import Backing, Invocation
from lab.vm.qemu import Qemu


class Localhost(Mechanism):
    """What the series adds."""

    #: The best mechanism that is allowed, as localhost-migrate calls it.
    best: ClassVar[str]
    commits = True
    rehearses = verifies = True

    def missing(self, old: Binary, new: Binary) -> str:
        for side, binary in (("old", old), ("new", new)):
            if "localhost-migrate" not in binary.commands:
                return (
                    f"the {side} QEMU ({binary.version}) has no command localhost-migrate: "
                    "it was built without the series in patches/"
                )
            if self.best not in binary.localhost_mechanisms:
                return (
                    f"the localhost-migrate of the {side} QEMU ({binary.version}) has no "
                    f"mechanism {self.best}"
                )
        return ""

    def prepare(self, old: Qemu, new: Qemu) -> None:
        set_capabilities(old, self.old_capabilities)
        set_capabilities(new, self.new_capabilities)
        new.monitor.execute(
            "migrate-incoming", {"uri": f"localhost:{new.machine.sockets / 'migrate'}"}
        )

    def go(self, old: Qemu, new: Qemu, asked: Asked) -> None:
        old.monitor.execute("localhost-migrate", self.arguments(old, new, asked))

    def arguments(self, old: Qemu, new: Qemu, asked: Asked) -> dict[str, Any]:
        """Return the arguments of localhost-migrate."""
        wanted: dict[str, Any] = {"uri": self.uri(new), "mechanism": self.best}
        if asked.patience_ms is not None:
            wanted["pause-timeout"] = asked.patience_ms
        if asked.rehearse:
            wanted["rehearse"] = True
        if asked.verify:
            wanted["x-verify"] = True
        if asked.hold:
            wanted["hold"] = True
        return wanted

    def blocks(self, info: Mapping[str, Any], ram_bytes: int) -> list[Block]:
        return localhost_blocks(info)

    def phases(self, info: Mapping[str, Any], new_start_ms: float | None) -> Phases:
        return localhost_phases(info, new_start_ms)


def localhost_blocks(info: Mapping[str, Any]) -> list[Block]:
    """Return the RAM blocks of query-migrate's ``localhost`` as the result has them."""
    return [localhost_block(block) for block in info.get("localhost", {}).get("blocks", [])]


def localhost_phases(info: Mapping[str, Any], new_start_ms: float | None) -> Phases:
    """Return the phases of query-migrate's ``localhost`` as the result has them."""
    told = info.get("localhost", {})

    def ms(name: str) -> float | None:
        return told[name] / 1e3 if name in told else None

    return Phases(
        drain=ms("drain-us"),
        fork=ms("fork-us"),
        new_start=ms("start-us") or new_start_ms,
        handshake=ms("handshake-us"),
        ahead=ms("ahead-us"),
        stop=ms("stop-us"),
        save=ms("device-save-us"),
        changes=ms("changes-us"),
        load=ms("device-load-us"),
        move=ms("push-us"),
    )


def localhost_block(block: Mapping[str, Any]) -> Block:
    """Return one member of query-migrate's ``localhost.blocks`` as the result has it."""
    return Block(
        name=block["name"],
        mechanism=block["mechanism"],
        used_bytes=block["size"],
        flipped_bytes=block.get("flipped-bytes", 0),
        handed_over_bytes=block.get("handed-over-bytes", 0),
        remapped_bytes=block.get("remapped-bytes", 0),
        gifted_bytes=block["gifted-bytes"],
        copied_bytes=block["copied-bytes"],
        faulted_bytes=block["faulted-bytes"],
        zero_bytes=block.get("zero-bytes", 0),
        untouched_bytes=block.get("untouched-bytes", 0),
    )


class Gift(Localhost):
    """vmsplice into a pipe: one copy."""

    name = best = "gift"
    summary = "private memory through a pipe, freed behind; one copy"


class Copy(Localhost):
    """The unix socket: two copies."""

    name = best = "copy"
    summary = "private memory through a socket, freed behind; two copies"


class Handover(Localhost):
    """Descriptors of shared memory: no copy.  Private blocks of the same guest go by gift."""

    name = best = "handover"
    summary = "passes descriptors of shared memory before the guest stops; no copy"
    backing = Backing.MEMFD


#: The least that QEMU lets a guest change while the new one starts, unless told (bytes).
_MAX_CHANGED = 128 * 2**20
#: Of what a memory group has left, changes may take one of so many parts.  Most of it is for the
#: new QEMU itself: if that is killed for want of memory, what it had alone is free at once, but
#: what the guest changed is so only when the kernel has split its huge pages.
_SHARE = 4


def _name(descriptor: int) -> str:
    """Return the name that the old QEMU knows a descriptor by that is for the new one."""
    return f"pageflip-{descriptor}"


class Flip(Localhost):
    """The old QEMU starts the new one, which inherits its memory: no copy."""

    name = best = "flip"
    summary = "the old QEMU starts the new one, which inherits private memory; no copy"
    monitor_first = False
    inherits = True
    pool = True
    early: ClassVar[bool] = True

    def can_hold(self, old: Binary) -> bool:
        return self.early and "hold" in old.localhost_arguments

    def missing_for_descriptors(self, old: Binary) -> str:
        if "fds" in old.localhost_arguments:
            return ""
        return (
            f"the localhost-migrate of the old QEMU ({old.version}) has no argument fds: the QEMU "
            "that it starts gets no descriptors"
        )

    def incoming(self, new: Invocation) -> tuple[str, ...]:
        return (f"localhost:{new.sockets / 'migrate'}",)

    def prepare(self, old: Qemu, new: Qemu) -> None:
        set_capabilities(old, self.old_capabilities)
        for descriptor in new.machine.descriptors:
            old.monitor.give(_name(descriptor), descriptor)

    def arguments(self, old: Qemu, new: Qemu, asked: Asked) -> dict[str, Any]:
        given = [{"name": _name(fd), "fd": fd} for fd in new.machine.descriptors]
        room = cgroup.headroom(old.pid)
        wanted = {
            **super().arguments(old, new, asked),
            "exec": new.machine.argv(),
            "early-start": self.early,
        }
        if given:
            wanted["fds"] = given
        if room is not None and room // _SHARE < _MAX_CHANGED:
            wanted["max-changed"] = max(room // _SHARE, 1)
        return wanted


class FlipLate(Flip):
    """The same in the simplest way: nothing happens before the guest stands still."""

    name = "flip-late"
    summary = "the same, but the new QEMU starts when the guest stands still"
    early = False


class Remap(Flip):
    """The old QEMU starts the new one in its own address space.

    Where that cannot be it takes ``flip`` instead, and says why (``fallback``).
    """

    name = best = "remap"
    summary = "the old QEMU starts the new one in its own address space; no copy, less isolation"
    pool = False
    verifies = False
    joins = True

    def missing(self, old: Binary, new: Binary) -> str:
        if not kcmp.works():
            return "this kernel does not tell who shares memory with whom: it has no kcmp(2)"
        return super().missing(old, new)

    def told(self, old: Mapping[str, Any], new: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the old QEMU's, with the blocks of the new one where that took them by itself.

        Which pages had to be copied for it the old one never learns.
        """
        mine, theirs = old.get("localhost", {}), new.get("localhost", {})
        if mine.get("mechanism") != self.name or "blocks" not in theirs:
            return old
        return {**old, "localhost": {**mine, "blocks": theirs["blocks"]}}
