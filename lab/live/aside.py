# SPDX-License-Identifier: GPL-2.0-or-later
"""What two QEMUs cannot both have, or have together: sockets, pid files, taps."""

from __future__ import annotations

import ctypes
import errno
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from lab.base.errors import PreconditionError
from lab.live.successor import Passed

_OLD, _NEW, _BOTH = ".pageflip-old", ".pageflip-new", ".pageflip-both"
#: pidfd_getfd(2), the same number on every architecture.
_PIDFD_GETFD = 438


class Aside:
    """Files that both QEMUs have by the same name.

    A QEMU makes its sockets anew over whatever has their names, locks its pid file, and, without
    the series, removes all of them when it ends, whoever made them.  So the old one's get other
    names first; they are as good as before by these.  They get theirs back if the guest stays, and
    if it moves, the new one's are kept from the old one's end.

    `shared` are sockets that both listen on, each one socket with one name.  The name stays, but
    whichever QEMU ends removes it: it gets a second one meanwhile.
    """

    def __init__(self, paths: Sequence[Path], shared: Sequence[Path] = ()) -> None:
        self._paths = [path for path in paths if path.exists()]
        self._shared = [path for path in shared if path.exists()]
        self._kept = False

    def put(self) -> None:
        """Give the old QEMU's files other names; raise PreconditionError when that cannot be."""
        hint = "be the user that QEMU runs as, or root"
        for path in self._shared:
            try:
                _beside(path, _BOTH).unlink(missing_ok=True)
                os.link(path, _beside(path, _BOTH))
            except OSError as error:
                raise PreconditionError(
                    f"cannot give {path} a second name: {error.strerror}", hint
                ) from error
        for path in self._paths:
            try:
                path.rename(_beside(path, _OLD))
            except OSError as error:
                raise PreconditionError(f"cannot rename {path}: {error.strerror}", hint) from error

    def leave(self) -> None:
        """Leave everything as it is: it is not known who has the guest."""
        self._paths = []

    def keep(self) -> None:
        """Give the new QEMU's files a second name: the old one is about to remove them."""
        self._kept = True
        for path in self._paths:
            beside = _beside(path, _NEW)
            beside.unlink(missing_ok=True)
            with suppress(FileNotFoundError):
                os.link(path, beside)

    def settle(self) -> None:
        """Put everything in its place, when only one of both is left."""
        for path in self._shared:
            with suppress(FileNotFoundError):
                _beside(path, _BOTH).replace(path)
            _beside(path, _BOTH).unlink(missing_ok=True)  # rename(2) leaves two names of one file
        for path in self._paths:
            with suppress(FileNotFoundError):
                _beside(path, _NEW if self._kept else _OLD).replace(path)
            # Of two names for one file, which it is if the old QEMU left it alone, rename(2) leaves
            # both.
            for suffix in (_OLD, _NEW):
                _beside(path, suffix).unlink(missing_ok=True)


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


@contextmanager
def aside(paths: Sequence[Path], shared: Sequence[Path] = ()) -> Iterator[Aside]:
    """Put the old QEMU's files aside for as long as the block lasts, and everything right then."""
    held = Aside(paths, shared)
    try:
        held.put()
        yield held
    finally:
        held.settle()


def listening(descriptors: Sequence[int]) -> list[Path]:
    """Return where those of our descriptors listen that are unix sockets with a name."""
    found = []
    for number in descriptors:
        with suppress(OSError), socket.socket(fileno=os.dup(number)) as one:
            name = one.getsockname()
            if one.family == socket.AF_UNIX and isinstance(name, str) and name:
                found.append(Path(name))
    return found


@contextmanager
def descriptors(pid: int, passed: Sequence[Passed]) -> Iterator[list[int]]:
    """Have descriptors of a process's that are to be passed on, for as long as the block lasts.

    Raises PreconditionError when they cannot be had (ptrace(2) rules who may).
    """
    with ExitStack() as held:
        found = []
        for one in passed:
            number = _descriptor(pid, _number(pid, one))
            held.callback(os.close, number)
            found.append(number)
        yield found


def _number(pid: int, one: Passed) -> int:
    if one.descriptor is not None:
        return one.descriptor
    name = one.parts["ifname"]
    for entry in Path(f"/proc/{pid}/fdinfo").iterdir():
        with suppress(OSError):
            if f"iff:\t{name}\n" in entry.read_text(encoding="utf-8"):
                return int(entry.name)
    raise PreconditionError(f"process {pid} has no descriptor of tap {name}")


def _descriptor(pid: int, number: int) -> int:
    """Return a descriptor of ours for another process's (pidfd_getfd(2), Linux 5.6)."""
    libc = ctypes.CDLL(None, use_errno=True)
    process = os.pidfd_open(pid)
    try:
        found = libc.syscall(_PIDFD_GETFD, process, number, 0)
    finally:
        os.close(process)
    if found < 0:
        code = ctypes.get_errno()
        raise PreconditionError(
            f"cannot have descriptor {number} of process {pid}: {os.strerror(code)}",
            hint="be root" if code == errno.EPERM else "",
        )
    return int(found)
