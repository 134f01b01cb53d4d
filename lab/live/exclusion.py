# SPDX-License-Identifier: GPL-2.0-or-later
"""One lab at a time at one QEMU: locks of the kernel's, which go with the process that holds them.

Two, as neither does alone.  flock(2) on the directory /proc/PID is seen by every user's lab, needs
no place to write to, and is no other process's when the number comes back; but it is gone with the
QEMU.  The lock file beside the journal is there as long as the journal is, for one user's labs.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from lab.base.errors import PreconditionError
from lab.base.identity import Who

#: How a directory is opened.
_SEARCH = os.O_RDONLY | os.O_DIRECTORY


class BusyError(PreconditionError):
    """Another lab is at work there."""


class Hold:
    """What one lab has to itself."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack

    def also(self, who: Who, how: int = fcntl.LOCK_EX) -> None:
        """Have another process to itself too, if it is there; raise BusyError."""
        try:
            self._stack.enter_context(_locked(Path(f"/proc/{who.pid}"), who.pid, _SEARCH, how))
        except (FileNotFoundError, ProcessLookupError):
            return  # it has ended


@contextmanager
def alone(who: Who, file: Path) -> Iterator[Hold]:
    """Keep every other lab from a QEMU, and from `file`, for as long as the block lasts.

    `file` is made, and removed afterwards.  Raises BusyError when another lab is there, OSError
    when the file cannot be made.
    """
    with ExitStack() as stack:
        stack.enter_context(_locked_file(file, who.pid))
        hold = Hold(stack)
        hold.also(who)
        yield hold


@contextmanager
def seen(who: Who) -> Iterator[None]:
    """Let no lab begin while the block lasts; raise BusyError when one is there, of any user's."""
    with ExitStack() as stack:
        Hold(stack).also(who, fcntl.LOCK_SH)
        yield


@contextmanager
def _locked_file(file: Path, pid: int) -> Iterator[None]:
    while True:
        with _locked(file, pid, os.O_RDWR | os.O_CREAT) as descriptor:
            if not _named(file, descriptor):
                continue  # who had it has just removed it
            try:
                yield
            finally:
                file.unlink(missing_ok=True)
            return


def _named(file: Path, descriptor: int) -> bool:
    """Return whether a file still has that name."""
    with suppress(FileNotFoundError):
        return os.path.samestat(file.stat(), os.fstat(descriptor))
    return False


@contextmanager
def _locked(path: Path, pid: int, flags: int, how: int = fcntl.LOCK_EX) -> Iterator[int]:
    descriptor = os.open(path, flags | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, how | fcntl.LOCK_NB)
        except BlockingIOError as error:
            at = _holder(os.fstat(descriptor))
            raise BusyError(
                f"another lab{f', process {at},' if at else ''} is at work at process {pid}",
                hint="wait until it has ended",
            ) from error
        yield descriptor
    finally:
        os.close(descriptor)


def _holder(file: os.stat_result) -> int:
    """Return the process that has the lock on a file, 0 if it cannot be told (proc_locks(5))."""
    name = f"{os.major(file.st_dev):02x}:{os.minor(file.st_dev):02x}:{file.st_ino}"
    with suppress(OSError):
        for line in Path("/proc/locks").read_text(encoding="ascii").splitlines():
            words = line.split()
            if words[1] == "FLOCK" and words[5] == name:
                return int(words[4])
    return 0
