# SPDX-License-Identifier: GPL-2.0-or-later
"""Every way to move a guest that the lab knows, one class for each.

A mechanism says what it needs, prepares both QEMUs, and starts the move.  Waiting, measuring and
judging are the same for all of them and are done elsewhere.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping
from typing import Any, ClassVar

from lab.binary import Binary
from lab.cmdline import Backing, Machine, argv, cpr_channel
from lab.deadline import Deadline
from lab.errors import PreconditionError, UsageError
from lab.model import Block, Pages, Phases
from lab.vm import Vm

#: QEMU's default of 128 MiB/s would measure the limit, not the mechanism (bytes/s).
_BANDWIDTH = 2**40
_POSTCOPY_START_S = 30.0


class Mechanism(abc.ABC):
    """A way to move a guest."""

    name: ClassVar[str]
    summary: ClassVar[str]
    backing: ClassVar[Backing] = Backing.PRIVATE
    #: Whether it moves private huge pages of the kernel's pool (hugetlbfs) as well.
    pool: ClassVar[bool] = False
    #: Whether the old side keeps all memory until the new side has it as well.
    doubles: ClassVar[bool] = False
    #: Whether the new QEMU's monitor answers before the move has begun.
    monitor_first: ClassVar[bool] = True
    #: Whether the old QEMU starts the new one.
    inherits: ClassVar[bool] = False
    #: Whether the guest resumes by itself.
    resumes: ClassVar[bool] = True
    old_capabilities: ClassVar[tuple[str, ...]] = ("events",)
    new_capabilities: ClassVar[tuple[str, ...]] = ("events",)

    def missing(self, old: Binary, new: Binary) -> str:
        """Return what this pair lacks for the mechanism, or an empty string."""
        return ""

    def missing_for_descriptors(self, old: Binary) -> str:
        """Return what the old QEMU lacks to let the new one have descriptors, or an empty string.

        Who starts the new QEMU has to pass them: mostly the lab.
        """
        return ""

    def incoming(self, new: Machine) -> tuple[str, ...]:
        """Return the values of ``-incoming`` for the new QEMU."""
        return ("defer",)

    def prepare(self, old: Vm, new: Vm) -> None:
        """Set capabilities and parameters and let the new QEMU listen."""
        _set_capabilities(old, self.old_capabilities)
        _set_capabilities(new, self.new_capabilities)
        old.monitor.execute("migrate-set-parameters", {"max-bandwidth": _BANDWIDTH})
        new.monitor.execute("migrate-incoming", {"uri": self._uri(new)})

    @abc.abstractmethod
    def go(self, old: Vm, new: Vm) -> None:
        """Start the move; returns while it is still going on."""

    def blocks(self, info: Mapping[str, Any], ram_bytes: int) -> list[Block]:
        """Say what moved and how, from the old QEMU's last query-migrate."""
        ram = info.get("ram", {})
        page = int(ram.get("page-size", 4096))
        return [
            Block(
                name="(all)",
                mechanism=self.name,
                used_bytes=int(ram.get("total", ram_bytes)),
                copied_bytes=int(ram.get("normal", 0)) * page,
                zero_bytes=int(ram.get("duplicate", 0)) * page,
            )
        ]

    def phases(self, info: Mapping[str, Any], new_start_ms: float | None) -> Phases:
        """Return the parts of the upgrade that the mechanism tells of."""
        return Phases(new_start=new_start_ms)

    def _uri(self, new: Vm) -> str:
        return f"unix:{new.machine.sockets / 'migrate'}"


def _set_capabilities(vm: Vm, names: tuple[str, ...]) -> None:
    vm.monitor.execute(
        "migrate-set-capabilities",
        {"capabilities": [{"capability": name, "state": True} for name in names]},
    )


class Precopy(Mechanism):
    """Ordinary live migration over a unix socket."""

    name = "precopy"
    summary = "copies while the guest runs, again what it dirtied, then the rest; doubles memory"
    doubles = True
    pool = True

    def go(self, old: Vm, new: Vm) -> None:
        old.monitor.execute("migrate", {"uri": self._uri(new)})


class StopCopy(Mechanism):
    """Ordinary migration of a stopped guest."""

    name = "stop-copy"
    summary = "stops the guest, copies, resumes; doubles memory"
    doubles = True
    resumes = False

    def go(self, old: Vm, new: Vm) -> None:
        old.monitor.execute("stop")
        old.monitor.execute("migrate", {"uri": self._uri(new)})


class Postcopy(Mechanism):
    """Postcopy from the first moment, the old side releasing what it sent."""

    name = "postcopy"
    summary = "resumes at once, pages follow behind; release-ram frees the old side"
    old_capabilities = ("events", "postcopy-ram", "release-ram")
    new_capabilities = ("events", "postcopy-ram")

    def go(self, old: Vm, new: Vm) -> None:
        old.monitor.execute("migrate", {"uri": self._uri(new)})
        old.monitor.wait_for(
            lambda event: (
                event.name == "MIGRATION" and event.data["status"] in {"active", "failed"}
            ),
            Deadline.after(_POSTCOPY_START_S, "postcopy becomes active"),
            old.alive,
        )
        old.monitor.execute("migrate-start-postcopy")


class CprTransfer(Mechanism):
    """Upstream's answer, for guests that were started with shared memory."""

    name = "cpr-transfer"
    summary = "passes descriptors of shared memory; the guest must have been started with share=on"
    backing = Backing.SHARED
    monitor_first = False

    def missing(self, old: Binary, new: Binary) -> str:
        for side, binary in (("old", old), ("new", new)):
            if "cpr-transfer" not in binary.migration_modes:
                return f"the {side} QEMU ({binary.version}) has no migration mode cpr-transfer"
        return ""

    def incoming(self, new: Machine) -> tuple[str, ...]:
        return (f"unix:{new.sockets / 'migrate'}", cpr_channel(new.sockets / "cpr"))

    def prepare(self, old: Vm, new: Vm) -> None:
        _set_capabilities(old, self.old_capabilities)
        old.monitor.execute(
            "migrate-set-parameters", {"mode": "cpr-transfer", "max-bandwidth": _BANDWIDTH}
        )
        # The new QEMU waits on this socket before it has a monitor to ask.
        for _ in Deadline.after(30, "the new QEMU listens for cpr-transfer").poll(0.002):
            new.alive()
            if (new.machine.sockets / "cpr").exists():
                return

    def go(self, old: Vm, new: Vm) -> None:
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

    def blocks(self, info: Mapping[str, Any], ram_bytes: int) -> list[Block]:
        return [
            Block(
                name="(all)",
                mechanism="shared descriptor",
                used_bytes=ram_bytes,
                copied_bytes=0,
                zero_bytes=0,
            )
        ]


class Localhost(Mechanism):
    """What the series adds."""

    #: The best mechanism that is allowed, as localhost-migrate calls it.
    best: ClassVar[str]

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

    def prepare(self, old: Vm, new: Vm) -> None:
        _set_capabilities(old, self.old_capabilities)
        _set_capabilities(new, self.new_capabilities)
        new.monitor.execute(
            "migrate-incoming", {"uri": f"localhost:{new.machine.sockets / 'migrate'}"}
        )

    def go(self, old: Vm, new: Vm) -> None:
        old.monitor.execute(
            "localhost-migrate", {"uri": self._uri(new), "mode": "stop", "mechanism": self.best}
        )

    def blocks(self, info: Mapping[str, Any], ram_bytes: int) -> list[Block]:
        return [localhost_block(block) for block in info.get("localhost", {}).get("blocks", [])]

    def phases(self, info: Mapping[str, Any], new_start_ms: float | None) -> Phases:
        told = info.get("localhost", {})

        def ms(name: str) -> float | None:
            return told[name] / 1e3 if name in told else None

        return Phases(
            new_start=ms("start-us") or new_start_ms,
            handshake=ms("handshake-us"),
            stop=ms("stop-us"),
            save=ms("device-save-us"),
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
        gifted_bytes=block["gifted-bytes"],
        copied_bytes=block["copied-bytes"],
        faulted_bytes=block["faulted-bytes"],
        zero_bytes=block["zero-bytes"],
        untouched_bytes=block["untouched-bytes"],
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

    def missing_for_descriptors(self, old: Binary) -> str:
        if "fds" in old.localhost_arguments:
            return ""
        return (
            f"the localhost-migrate of the old QEMU ({old.version}) has no argument fds: the QEMU "
            "that it starts gets no descriptors"
        )

    def incoming(self, new: Machine) -> tuple[str, ...]:
        return (f"localhost:{new.sockets / 'migrate'}",)

    def prepare(self, old: Vm, new: Vm) -> None:
        _set_capabilities(old, self.old_capabilities)
        for descriptor in new.machine.descriptors:
            old.monitor.give(_name(descriptor), descriptor)

    def go(self, old: Vm, new: Vm) -> None:
        given = [{"name": _name(fd), "fd": fd} for fd in new.machine.descriptors]
        old.monitor.execute(
            "localhost-migrate",
            {
                "uri": self._uri(new),
                "mode": "stop",
                "mechanism": self.best,
                "exec": argv(new.machine),
                "early-start": self.early,
                **({"fds": given} if given else {}),
            },
        )


class FlipLate(Flip):
    """The same in the simplest way: nothing happens before the guest stands still."""

    name = "flip-late"
    summary = "the same, but the new QEMU starts when the guest stands still"
    early = False


#: Best for private memory first: the default is the first that both binaries have.
MECHANISMS: tuple[Mechanism, ...] = (
    Flip(),
    FlipLate(),
    Gift(),
    Copy(),
    Handover(),
    Postcopy(),
    Precopy(),
    StopCopy(),
    CprTransfer(),
)


def named(name: str) -> Mechanism | None:
    """Return the mechanism of that name, None for ``auto``; raise UsageError for an unknown one."""
    if name == "auto":
        return None
    for mechanism in MECHANISMS:
        if mechanism.name == name:
            return mechanism
    known = "".join(f"\n    {one.name:<13} {one.summary}" for one in MECHANISMS)
    hint = f"take one of these, or auto for the best that both QEMUs have:{known}"
    raise UsageError(f"there is no mechanism {name!r}", hint)


def backing(mechanism: Mechanism, pages: Pages) -> Backing:
    """Return what guest RAM is made of; raise PreconditionError when it cannot be moved so."""
    if pages is Pages.THP:
        return mechanism.backing
    if not mechanism.pool:
        able = ", ".join(one.name for one in MECHANISMS if one.pool)
        raise PreconditionError(
            f"mechanism {mechanism.name} does not move private huge pages of the kernel's pool",
            hint=f"take one of {able}, or leave out --pages",
        )
    return Backing.HUGETLB


def choose(name: str, old: Binary, new: Binary) -> Mechanism:
    """Return the mechanism of that name, or for ``auto`` the best that this pair has.

    Raises UsageError for an unknown name and PreconditionError when the pair lacks it.
    """
    mechanism = named(name)
    if mechanism is None:
        return next(m for m in MECHANISMS if not m.missing(old, new))
    if lacking := mechanism.missing(old, new):
        raise PreconditionError(f"mechanism {name} is not possible: {lacking}")
    return mechanism
