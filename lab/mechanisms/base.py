# SPDX-License-Identifier: GPL-2.0-or-later
"""The base class of every way to move a guest."""

from __future__ import annotations

import abc
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from lab.model import Block, Phases
from lab.vm.binary import Binary
from lab.vm.cmdline import Backing, Invocation
from lab.vm.qemu import Qemu

#: QEMU's default of 128 MiB/s would measure the limit, not the mechanism (bytes/s).
BANDWIDTH = 2**40


@dataclass(frozen=True)
class Asked:
    """What is asked of a move besides the mechanism; only some know of it (`rehearses`)."""

    #: How long the guest may stand still until it is given up (ms); None for QEMU's own default.
    patience_ms: int | None = None
    #: Go back when the new QEMU has loaded the device state.
    rehearse: bool = False
    #: Compare each page with the new QEMU's before the commit.
    verify: bool = False
    #: Wait before the guest stops, when the new QEMU is there, for somebody to look at it.
    hold: bool = False


#: Called with the new QEMU; may raise CannotTellError.
Look = Callable[[Qemu], None]


class Driven(Protocol):
    """A move under way that the lab makes itself, step by step; QEMU knows nothing of it."""

    def finish(self, look: Look, resuming: Look) -> None:
        """Bring the guest over, when the new QEMU's monitor answers.

        `look` sees the new QEMU before the guest stops, and `resuming` before it is to run the
        guest.  Raises CannotTellError for what prevents it.
        """

    def undo(self) -> str:
        """Go back, as far as there is a way back; returns what is worth knowing besides."""

    def close(self) -> None:
        """Let go of everything."""

    def info(self) -> Mapping[str, Any]:
        """Say what was done, in the form of the series' query-migrate."""


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
    #: Whether it is done to the old QEMU, which knows nothing of it.
    from_outside: ClassVar[bool] = False
    #: Whether the old QEMU becomes the new one: the same process, and never both at once.
    in_place: ClassVar[bool] = False
    #: Whether the guest resumes by itself.
    resumes: ClassVar[bool] = True
    #: Whether the new QEMU runs the guest only when the old one cannot go back any more: the move
    #: may be cancelled at any time.
    commits: ClassVar[bool] = False
    #: Whether it can be rehearsed, verified, and told how long the guest may wait (`Asked`).
    rehearses: ClassVar[bool] = False
    verifies: ClassVar[bool] = False
    #: Whether the new QEMU starts in the old one's address space, and has to be good.
    joins: ClassVar[bool] = False
    #: Whether the guest goes on under the old QEMU when the new one does not load its state.
    rolls_back: ClassVar[bool] = True
    old_capabilities: ClassVar[tuple[str, ...]] = ("events",)
    new_capabilities: ClassVar[tuple[str, ...]] = ("events",)

    def missing(self, old: Binary, new: Binary) -> str:
        """Return what this pair lacks for the mechanism, or an empty string."""
        return ""

    def can_hold(self, old: Binary) -> bool:
        """Return whether the move can wait for somebody to look at the new QEMU (`Asked.hold`).

        A new QEMU that is there before the move begins is looked at before.
        """
        return False

    def missing_for_descriptors(self, old: Binary) -> str:
        """Return what the old QEMU lacks to let the new one have descriptors, or an empty string.

        Who starts the new QEMU has to pass them: mostly the lab.
        """
        return ""

    def missing_for_taps(self, old: Binary) -> str:
        """Return what it lacks to let the new QEMU have the old one's taps, or an empty string."""
        return self.missing_for_descriptors(old)

    def incoming(self, new: Invocation) -> tuple[str, ...]:
        """Return the values of ``-incoming`` for the new QEMU."""
        return ("defer",)

    def prepare(self, old: Qemu, new: Qemu) -> None:
        """Set capabilities and parameters and let the new QEMU listen."""
        set_capabilities(old, self.old_capabilities)
        set_capabilities(new, self.new_capabilities)
        old.monitor.execute("migrate-set-parameters", {"max-bandwidth": BANDWIDTH})
        new.monitor.execute("migrate-incoming", {"uri": self.uri(new)})

    @abc.abstractmethod
    def go(self, old: Qemu, new: Qemu, asked: Asked) -> Driven | None:
        """Start the move; returns while it is still going on.

        QEMU makes it, and brings it to its end; what is returned is for one that the lab makes.
        """

    def told(self, old: Mapping[str, Any], new: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the answer to query-migrate that counts, of the old QEMU's and the new one's."""
        return old

    def blocks(self, info: Mapping[str, Any], ram_bytes: int) -> list[Block]:
        """Say what moved and how, from the last query-migrate."""
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
        """Return the phases that the mechanism reports."""
        return Phases(new_start=new_start_ms)

    def uri(self, new: Qemu) -> str:
        """Return where the old QEMU finds the new one."""
        return f"unix:{new.machine.sockets / 'migrate'}"


def set_capabilities(vm: Qemu, names: tuple[str, ...]) -> None:
    """Switch migration capabilities of a QEMU on."""
    vm.monitor.execute(
        "migrate-set-capabilities",
        {"capabilities": [{"capability": name, "state": True} for name in names]},
    )


@contextmanager
def timed(us: dict[str, int], name: str) -> Iterator[None]:
    """Write into `us`, by that name, how long the block took (us), also when it raises."""
    begun = time.monotonic_ns()
    try:
        yield
    finally:
        us[name] = (time.monotonic_ns() - begun) // 1000
