# SPDX-License-Identifier: GPL-2.0-or-later
"""What a manager of guests is, as far as an upgrade concerns it."""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from lab.base.errors import CannotTellError, PreconditionError
from lab.host import facts
from lab.live import look
from lab.live.truth.ask import Talks
from lab.managers.journal import Errand, Guest
from lab.managers.threads import Threads


class Manager(abc.ABC):
    """One way to manage guests on this host."""

    #: What it is called in messages.
    title: ClassVar[str]

    @abc.abstractmethod
    def find(self, names: Sequence[str]) -> list[Guest]:
        """Return the guests of those names; raise UsageError for one that does not run here."""

    @abc.abstractmethod
    def through(self, guest: Guest) -> AbstractContextManager[Talks]:
        """Ask a guest's QEMU by way of its manager, which goes on managing it."""

    @abc.abstractmethod
    def quiesced(self, guests: Sequence[Guest]) -> AbstractContextManager[None]:
        """Keep the manager away for as long as the block lasts; the guests run on.

        Afterwards it manages what runs then.  Raises PreconditionError when that cannot be; nothing
        has been changed then.
        """

    @abc.abstractmethod
    def resumed(self, errand: Errand) -> AbstractContextManager[None]:
        """Do the same as `quiesced` once more, where a lab was killed that did."""

    @abc.abstractmethod
    def settled(self, guest: Guest) -> bool:
        """Whether the manager knows the process that a guest is in, or knows no such guest."""

    @abc.abstractmethod
    def adopt(self, guest: Guest, new: NewQemu) -> None:
        """Let the manager know the process that the guest has now; while it is quiesced."""

    @abc.abstractmethod
    def verify(self, guest: Guest, pid: int) -> None:
        """Raise CannotTellError unless the manager manages process `pid` as the same guest."""

    def definer(self, guest: Guest) -> Callable[[Path], None]:
        """Return what writes another program into a guest's configuration, to start by next time.

        Raises PreconditionError where none is in there.
        """
        raise PreconditionError(
            f"{guest.name}: {self.title} has no program in a guest's configuration",
            hint="it starts the one that is installed; leave out --config",
        )


@dataclass(frozen=True)
class NewQemu:
    """The QEMU that has a guest now, and what a manager has to know of it."""

    pid: int
    program: Path
    threads: Threads
    #: The terminals of its character devices, by their ids.
    terminals: dict[str, str]


def new_qemu(guest: Guest) -> NewQemu | None:
    """Return the QEMU that a guest is in by now; None while it is where it was, or nowhere.

    Found by the monitor's socket, on which both listen until the old one ends.  Raises
    CannotTellError when it is not one process.
    """
    if ends(guest.pid):
        found = listeners(guest.monitor)
        if len(found) > 1:
            raise CannotTellError(
                f"{guest.name}: process {guest.pid} has ended, and of the processes "
                f"{', '.join(map(str, found))} it cannot be told which one has the guest",
                hint=f"all of them listen at {guest.monitor}; query-status says who runs it",
            )
        for pid in found:
            with look.connected(pid, guest.monitor) as qmp:
                return told(pid, qmp)
    return None


def ends(pid: int) -> bool:
    """Whether a process has ended; a zombie has (proc_pid_exe(5))."""
    return not Path(f"/proc/{pid}/exe").exists()


def told(pid: int, qmp: Talks) -> NewQemu:
    """Return what a QEMU says of itself."""
    ends = {one["label"]: str(one["filename"]) for one in qmp.execute("query-chardev")}
    return NewQemu(
        pid=pid,
        program=Path(look.command_line(pid)[0]),
        threads=Threads.of(pid, qmp),
        terminals={
            label: end.removeprefix("pty:") for label, end in ends.items() if end[:4] == "pty:"
        },
    )


def listeners(path: Path) -> list[int]:
    """Return the processes that listen on a socket, in whose network namespace we have to be."""
    wanted = f"socket:[{facts.listening_sockets().get(path)}]"
    return sorted({pid for pid, link in _descriptors() if link == wanted})


def _descriptors() -> Iterator[tuple[int, str]]:
    for descriptor in Path("/proc").glob("[0-9]*/fd/*"):
        with suppress(OSError):
            yield int(descriptor.parts[2]), str(descriptor.readlink())
