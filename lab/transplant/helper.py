# SPDX-License-Identifier: GPL-2.0-or-later
"""The helper: compiled into the cache, started, and asked."""

from __future__ import annotations

import socket
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from lab.base.deadline import Deadline
from lab.base.errors import CannotTellError
from lab.base.files import key_of, sha256_of
from lab.base.layout import Layout, locked
from lab.base.process import run, spawned
from lab.transplant.blocks import RamBlock
from lab.transplant.channel import Answer, Channel, Order

CFLAGS = ("-std=gnu11", "-D_GNU_SOURCE", "-O2", "-static", "-s", "-Wl,--build-id=none")
#: The sources must compile with these without a word.
WARNINGS = ("-Wall", "-Wextra")
#: A little more than what the helper gives itself (transplant/main.c, in s): it ends first, and
#: then lets go of everything.
_REQUEST_S = 70.0
_FINISH_S = 310.0
_END_S = 5.0
_NOWHERE: Mapping[str, int] = MappingProxyType({})


def compiled(layout: Layout) -> Path:
    """Return the helper, compiled unless the cache has it.

    Raises CannotTellError without a compiler and its static C library.
    """
    source = layout.checkout / "transplant"
    files = sorted(source.glob("*.[ch]"))
    version = run(["cc", "--version"], hint="install the packages gcc and libc6-dev").stdout
    library = Path(run(["cc", "-print-file-name=libc.a"]).stdout.strip())
    if not library.is_absolute():
        raise CannotTellError(
            "the compiler finds no static C library", hint="install the package libc6-dev"
        )
    key = key_of(
        version,
        *(*CFLAGS, *WARNINGS, sha256_of(library)),
        *(f"{path.name} {sha256_of(path)}" for path in files),
    )
    place = layout.cache / "transplant" / key[:16]
    with locked(place, "waiting for another run that compiles the helper"):
        if not place.exists():
            _compile(source, place)
    return place


def _compile(source: Path, place: Path) -> None:
    sources = sorted(path.name for path in source.glob("*.c"))
    with tempfile.TemporaryDirectory(prefix="making-", dir=place.parent) as scratch:
        made = Path(scratch) / "transplant"
        # Relative names: no path of this machine gets into the file.
        run(["cc", *CFLAGS, *WARNINGS, *sources, "-o", made], cwd=source)
        made.rename(place)


@dataclass(frozen=True)
class Examined:
    """What the helper found out about the old QEMU."""

    #: Whether it has a filter of system calls (seccomp).
    filtered: bool
    #: How many bytes of code could be put where nothing is.
    cave_bytes: int
    #: Of each RAM block: where it is, how much of it is in huge pages (bytes), and by which
    #: descriptor the old QEMU has the file that it is shared memory of (0: it is private).
    addresses: tuple[int, ...]
    huge_bytes: tuple[int, ...]
    files: tuple[int, ...]


@dataclass(frozen=True)
class Started:
    """The new QEMU's process, and how long things took (microseconds)."""

    pid: int
    held_us: int
    fork_us: int
    become_us: int
    calls: int


@dataclass(frozen=True)
class Differing:
    """Of a RAM block, in pages of 4 KiB."""

    pages: int
    absent: int
    different: int
    mismatched: int


class Helper:
    """The running helper.  Every method raises HelperError or DeadlineError."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._count = 0

    def examine(self, pid: int, blocks: Sequence[RamBlock]) -> Examined:
        """Find the old QEMU's RAM, and whatever stands against taking it; changes nothing."""
        answer = self._ask(Order.EXAMINE, pid, *_fields(blocks))
        self._count = len(blocks)
        filtered, cave = answer.number(), answer.number()
        told = [(answer.number(), answer.number(), answer.number()) for _ in blocks]
        return Examined(bool(filtered), cave, *zip(*told, strict=True))

    def start(self, argv: Sequence[str], descriptors: Mapping[int, int], *, dry: bool) -> Started:
        """Fork the old QEMU; its child becomes `argv`, or with `dry` ends then.

        The child keeps 0, 1, 2 and `descriptors`: its numbers, and the old QEMU's for the same.
        """
        kept = [(theirs, ours) for ours, theirs in sorted(descriptors.items())]
        numbers = [number for pair in kept for number in pair]
        answer = self._ask(Order.START, int(dry), len(argv), *argv, len(kept), *numbers)
        return Started(*(answer.number() for _ in range(5)))

    def adopt(self, blocks: Sequence[RamBlock], places: Mapping[str, int] = _NOWHERE) -> int:
        """Move the inherited memory under these RAM blocks of the new QEMU (microseconds).

        `places` are the numbers by which it has the old one's shared memory, by the blocks' names.
        """
        return self._ask(Order.ADOPT, *_fields(blocks, places)).number()

    def count(self) -> list[Differing]:
        """Count what differs, of each RAM block."""
        return self._delta(0)[1]

    def copy(self) -> tuple[int, list[Differing]]:
        """Bring over what differs (microseconds, and of each RAM block)."""
        return self._delta(1)

    def verify(self) -> list[Differing]:
        """Compare every byte."""
        return self._delta(2)[1]

    def _delta(self, mode: int) -> tuple[int, list[Differing]]:
        answer = self._ask(Order.DELTA, mode)
        took = answer.number()
        found = [Differing(*(answer.number() for _ in range(4))) for _ in range(self._count)]
        return took, found

    def hold(self, places: Mapping[int, int]) -> int:
        """Hold the old QEMU's threads until `finish`, and let the new one go (microseconds).

        What that one has written to shared memory is the guest's then, and descriptors of its
        change their `places`: the numbers that they are to have, and those that they had.
        """
        pairs = [number for to, since in places.items() for number in (since, to)]
        return self._ask(Order.HOLD, len(places), *pairs).number()

    def finish(self) -> int:
        """End the old QEMU (microseconds)."""
        return self._ask(Order.FINISH, seconds=_FINISH_S).number()

    def abandon(self) -> str:
        """End the new QEMU, and leave the old one as it was; returns how the new one had ended."""
        return self._ask(Order.ABANDON).text()

    def collapse(self, *, new: bool) -> int:
        """Put huge pages together that the fork has split; returns how many there are."""
        return self._ask(Order.COLLAPSE, int(new), seconds=_FINISH_S).number()

    def _ask(self, request: Order, *fields: int | str, seconds: float = _REQUEST_S) -> Answer:
        deadline = Deadline.after(seconds, f"the helper's answer to {request.name}")
        return self._channel.ask(request, *fields, deadline=deadline)


def _fields(
    blocks: Sequence[RamBlock], places: Mapping[str, int] = _NOWHERE
) -> Iterator[int | str]:
    yield len(blocks)
    for block in blocks:
        yield from (block.name, block.offset, block.used, block.most, block.address)
        yield places.get(block.name, 0)


@contextmanager
def started(layout: Layout, log: Path) -> Iterator[Helper]:
    """Start the helper; when the block is left it ends, and with it what it has not let go."""
    program = compiled(layout)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        number = theirs.fileno()
        with spawned([program, str(number)], log=log, pass_fds=[number]) as process:
            theirs.close()
            helper = Helper(Channel(ours, lambda: _end_of(process, log)))
            helper._ask(Order.HELLO)
            yield helper
            ours.close()  # that is its end; what follows is for one that does not see it


def _end_of(process: subprocess.Popen[bytes], log: Path) -> str:
    """Say how the helper ended; it takes a moment."""
    try:
        status = process.wait(_END_S)
    except subprocess.TimeoutExpired:
        return "the helper has closed its end of the socket"
    said = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
    how = f"killed by signal {-status}" if status < 0 else f"exit status {status}"
    return f"the helper is gone ({how}){': ' if said else ''}{''.join(said)}"
