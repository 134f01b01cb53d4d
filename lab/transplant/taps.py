# SPDX-License-Identifier: GPL-2.0-or-later
"""Taps that stand in for a guest's own in a new QEMU until the guest runs there.

A QEMU that gets a tap sets it up anew and takes packets from it at once, while the old one still
uses it.  So it is started with others, of the same kind and with the same names, in a network that
nobody else is in; with the guest it gets the real ones, by the same numbers.

It is born with the real ones, by other numbers: a QEMU that gets a descriptor by its monitor makes
it wait for packets (O_NONBLOCK is taken off), in whatever process has it as well.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import stat
import struct
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import TypeVar

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from lab.base.errors import PreconditionError
from lab.base.kcmp import same_file

_TUN = "/dev/net/tun"
_REQUEST = struct.Struct("16sH22x")
#: linux/if_tun.h
_TUNSETIFF, _TUNGETIFF = 0x400454CA, 0x800454D2
#: What a tap is made with: IFF_TUN, TAP, MULTI_QUEUE, NO_PI, VNET_HDR.
_KIND = 0x0001 | 0x0002 | 0x0100 | 0x1000 | 0x4000
#: sched.h
_CLONE_NEWNET = 0x40000000

T = TypeVar("T")


def tap_of(descriptor: int) -> tuple[str, int] | None:
    """Return a tap's name and what it was made with (flags); None for any other descriptor."""
    if not stat.S_ISCHR(os.fstat(descriptor).st_mode):
        return None
    try:
        answer = fcntl.ioctl(descriptor, _TUNGETIFF, bytes(_REQUEST.size))
    except OSError:
        return None
    name, flags = _REQUEST.unpack(answer)
    return name.rstrip(b"\0").decode(), flags & _KIND


def number_in(pid: int, descriptor: int) -> int:
    """Return by which number a process has a tap that is open here.

    Raises PreconditionError when it has not.
    """
    for entry in sorted(Path(f"/proc/{pid}/fd").iterdir(), key=lambda one: int(one.name)):
        with suppress(FileNotFoundError):
            number = int(entry.name)
            if str(entry.readlink()).endswith(_TUN) and same_file(pid, number, descriptor):
                return number
    raise PreconditionError(
        f"which descriptor of process {pid} is a tap of the guest's cannot be told",
        hint="the kernel needs kcmp(2) (CONFIG_KCMP)",
    )


class StandIns:
    """One for each tap among some descriptors, each with as many queues as are among them.

    The descriptors have these numbers here and in the new QEMU, and others in the old one.  Raises
    PreconditionError when this user cannot make them.
    """

    def __init__(self, descriptors: Sequence[int], old_pid: int) -> None:
        found = {one: tap for one in descriptors if (tap := tap_of(one))}
        self._names = {name for name, _ in found.values()}
        #: Which stands in for which.
        self.instead: dict[int, int] = {}
        first = max(descriptors, default=0) + 1
        #: By which number the new QEMU is to have each, and by which it has it until then.
        self.places = dict(zip(found, range(first, first + len(found)), strict=True))
        #: By which number the new QEMU has each, and by which the old one.
        self.real = {self.places[one]: number_in(old_pid, one) for one in found}
        with ExitStack() as stack:
            # A network is a thread's (unshare(2)): whatever is done in there, this thread does.
            self._thread = stack.enter_context(ThreadPoolExecutor(1, initializer=_leave))
            for one, (name, flags) in found.items():
                self.instead[one] = self._do(partial(_made, name, flags))
                stack.callback(os.close, self.instead[one])
            self._stack = stack.pop_all()

    def _do(self, what: Callable[[], T]) -> T:
        try:
            return self._thread.submit(what).result()
        except (OSError, RuntimeError) as error:
            raise PreconditionError(
                f"no tap can be made that stands in for the guest's: {error}",
                hint=f"{_TUN} and a network namespace are needed: be root",
            ) from error

    def remove(self) -> None:
        """Begin to remove them; a QEMU that still waits for a packet in one looks again then.

        It looks at what has the same number by now: which file it waits for is decided when it
        begins to wait.
        """
        if self._names:
            self._thread.submit(_removed, self._names)

    def close(self) -> None:
        """Let go of them."""
        self._stack.close()


def _leave() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _made(name: str, flags: int) -> int:
    descriptor = os.open(_TUN, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        fcntl.ioctl(descriptor, _TUNSETIFF, _REQUEST.pack(name.encode(), flags))
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _removed(names: set[str]) -> None:
    with IPRoute() as netlink:
        for name in names:
            for index in netlink.link_lookup(ifname=name):
                try:
                    netlink.link("del", index=index)
                except NetlinkError:
                    continue  # it has gone with its last descriptor
