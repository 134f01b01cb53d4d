# SPDX-License-Identifier: GPL-2.0-or-later
"""What two QEMUs cannot both have, or have together: sockets, pid files, taps."""

from __future__ import annotations

import ctypes
import errno
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self

from lab.base.errors import PreconditionError
from lab.live.journal import Owner, Resource
from lab.live.successor import Passed

_OLD, _NEW, _BOTH = ".pageflip-old", ".pageflip-new", ".pageflip-both"
#: A name for a moment.
_MOMENT = ".pageflip-now"
#: What is behind a file's name while it is put aside.
SUFFIXES = ("", _OLD, _NEW, _BOTH, _MOMENT)
_HINT = "be the user that QEMU runs as, or root"
_VHOST = "/dev/vhost-net"
#: pidfd_getfd(2), the same number on every architecture.
_PIDFD_GETFD = 438


@dataclass(frozen=True)
class File:
    """A file of the old QEMU's: which one it is, whatever has its name by now."""

    path: Path
    device: int
    inode: int
    kind: ClassVar[str]

    @classmethod
    def of(cls, path: Path) -> Self | None:
        """Return the file of that name; None where there is none."""
        with suppress(FileNotFoundError):
            found = path.lstat()
            return cls(path, found.st_dev, found.st_ino)
        return None

    @classmethod
    def read(cls, resource: Resource) -> Self:
        """Return what a journal has."""
        facts = resource.facts
        return cls(Path(resource.name), int(facts["device"]), int(facts["inode"]))

    def resource(self) -> Resource:
        """Return it for a journal."""
        facts = {"device": self.device, "inode": self.inode}
        return Resource(kind=self.kind, name=str(self.path), facts=facts)

    def has(self, name: Path) -> bool:
        """Return whether it has that name."""
        with suppress(OSError):
            found = name.lstat()
            return (found.st_dev, found.st_ino) == (self.device, self.inode)
        return False

    def restore(self, _monitor: object) -> list[str]:
        """Do nothing: a file is no matter of QEMU's monitor."""
        return []

    def beside(self, suffix: str) -> Path:
        """Return another name in the same directory."""
        return self.path.with_name(self.path.name + suffix)


@dataclass(frozen=True)
class Shared(File):
    """A file that both QEMUs have by the same name, each its own.

    A QEMU makes its sockets anew over whatever has their names, locks its pid file, and, without
    the series, removes all of them when it ends, whoever made them.  So each has a second name for
    as long as both QEMUs are there: the old one's is always `olds`, the new one's `news` as soon as
    it has made it and has to give the name back.  Every step can be taken twice, and by another lab
    than the one that began.
    """

    kind = "file"

    @property
    def olds(self) -> Path:
        """The second name of the old QEMU's file."""
        return self.beside(_OLD)

    @property
    def news(self) -> Path:
        """The second name of the new QEMU's file."""
        return self.beside(_NEW)

    def is_news(self, name: Path) -> bool:
        """Return whether there is a file of that name, and not the old QEMU's."""
        return os.path.lexists(name) and not self.has(name)

    def names(self, owner: Owner) -> list[Path]:
        """Return the names that a QEMU's file has."""
        wanted = self.has if owner is Owner.OLD else self.is_news
        return [name for name in (self.path, self.olds, self.news) if wanted(name)]

    def put(self) -> None:
        """Give the old QEMU's file its second name, and the new QEMU room for its own.

        Raises PreconditionError when that cannot be.
        """
        if self.is_news(self.olds):
            raise PreconditionError(
                f"cannot rename {self.path}: {self.olds} is there already",
                hint="remove it, if it is nobody's",
            )
        try:
            self.path.rename(self.olds)
        except OSError as error:
            raise PreconditionError(
                f"cannot rename {self.path}: {error.strerror}", _HINT
            ) from error

    def lend(self) -> None:
        """Give the name back to the old QEMU, which has the guest: the new one has started."""
        with suppress(OSError):  # it had to do without so far
            if self.is_news(self.path):
                self.path.replace(self.news)
            os.link(self.olds, self.path, follow_symlinks=False)

    def pass_on(self) -> None:
        """Give the name to the new QEMU, and its file a second one: the old QEMU is about to end,
        and may remove the first.
        """
        with suppress(OSError):  # the guest has moved, whatever can be done about this file
            if self.is_news(self.path):
                self.news.unlink(missing_ok=True)
                os.link(self.path, self.news, follow_symlinks=False)
            elif self.is_news(self.news):
                moment = self.beside(_MOMENT)
                moment.unlink(missing_ok=True)
                os.link(self.news, moment, follow_symlinks=False)
                moment.replace(self.path)

    def settle(self, owner: Owner) -> None:
        """Put everything in its place, when only one of both QEMUs is left; raise OSError."""
        if owner is Owner.NEW:
            if self.is_news(self.news):
                self.news.replace(self.path)
            if self.has(self.path):
                self.path.unlink()  # the new one has none
        elif self.has(self.olds):
            self.olds.replace(self.path)
        # Of two names for one file rename(2) leaves both.
        for name in (self.news, self.beside(_MOMENT)):
            name.unlink(missing_ok=True)
        if self.has(self.olds):
            self.olds.unlink()


@dataclass(frozen=True)
class Common(File):
    """A socket that both QEMUs listen on: one socket with one name.

    The name stays, but whichever QEMU ends may remove it: it gets a second one meanwhile.
    """

    kind = "common"

    def names(self, _owner: Owner) -> list[Path]:
        """Return the names by which either QEMU is reached, and nobody knows which."""
        return [name for name in (self.path, self.beside(_BOTH)) if self.has(name)]

    def put(self) -> None:
        """Give it its second name; raise PreconditionError when that cannot be."""
        try:
            self.beside(_BOTH).unlink(missing_ok=True)
            os.link(self.path, self.beside(_BOTH), follow_symlinks=False)
        except OSError as error:
            raise PreconditionError(
                f"cannot give {self.path} a second name: {error.strerror}", _HINT
            ) from error

    def lend(self) -> None:
        """Do nothing: both are reached."""

    def pass_on(self) -> None:
        """Do nothing: both are reached."""

    def settle(self, _owner: Owner) -> None:
        """Leave it with the one name that it had; raise OSError."""
        second = self.beside(_BOTH)
        if self.has(second):
            second.replace(self.path)
            second.unlink(missing_ok=True)  # of two names for one file rename(2) leaves both


class Aside:
    """All files that two QEMUs have by the same names."""

    def __init__(self, files: Sequence[Shared | Common]) -> None:
        self._files = list(files)
        self._side = Owner.OLD

    def put(self) -> None:
        """Give the old QEMU's files other names; raise PreconditionError when that cannot be."""
        for file in self._files:
            file.put()

    def lend(self) -> None:
        """Give the names back to the old QEMU until it is known where the guest ends up."""
        for file in self._files:
            file.lend()

    def leave(self) -> None:
        """Leave everything as it is: it is not known who has the guest."""
        self._side = Owner.EITHER

    def keep(self) -> None:
        """Let the new QEMU have them, for good."""
        self._side = Owner.NEW
        for file in self._files:
            file.pass_on()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Put them aside for as long as the block lasts, and everything right then."""
        try:
            self.put()
            yield
        finally:
            self.settle()

    def settle(self) -> None:
        """Put everything in its place, when only one of both is left."""
        for file in self._files if self._side is not Owner.EITHER else ():
            file.settle(self._side)


def named(paths: Sequence[Path], common: Sequence[Path] = ()) -> list[Shared | Common]:
    """Return those of the old QEMU's files that are there, each once, whatever it is called.

    `common` are sockets that the new QEMU will listen on as well.
    """
    found = [*map(Common.of, common), *map(Shared.of, paths)]
    files = {(file.device, file.inode): file for file in reversed(found) if file}
    return list(files.values())


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
        found: list[int] = []
        for one in passed:
            for number in _numbers(pid, one):
                found.append(_descriptor(pid, number))
                held.callback(os.close, found[-1])
            for _ in range(one.workers):
                found.append(_worker())
                held.callback(os.close, found[-1])
        yield found


def _numbers(pid: int, one: Passed) -> list[int]:
    """Return the numbers of descriptors in the old QEMU; a tap's in the order of its queues."""
    if one.numbers:
        return one.numbers
    name = one.parts["ifname"]
    found = []
    for entry in sorted(Path(f"/proc/{pid}/fdinfo").iterdir(), key=lambda entry: int(entry.name)):
        with suppress(OSError):
            if f"iff:\t{name}\n" in entry.read_text(encoding="utf-8"):
                found.append(int(entry.name))
    if len(found) != one.queues:
        raise PreconditionError(
            f"process {pid} has {len(found)} descriptors of tap {name}, and not {one.queues}"
        )
    return found


def _worker() -> int:
    """Return a descriptor of vhost's that nobody has used."""
    try:
        return os.open(_VHOST, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise PreconditionError(f"{_VHOST}: {error.strerror}", "modprobe vhost_net") from error


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
