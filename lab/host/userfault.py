# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether this process may use userfaultfd(2), and whether UFFDIO_MOVE really moves a page."""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import platform
import struct
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

# linux/userfaultfd.h
_UFFD_API = 0xAA
_UFFD_USER_MODE_ONLY = 1
_USERFAULTFD_IOC_NEW = 0xAA00
_UFFDIO_API = 0xC018AA3F
_UFFDIO_REGISTER = 0xC020AA00
_UFFDIO_MOVE = 0xC028AA05
_MODE_MISSING = 1
_FEATURE_MOVE = 1 << 16
_SYSCALL = {"x86_64": 323, "aarch64": 282, "riscv64": 282, "s390x": 355, "ppc64le": 364}
_BYTE = 0x5A


@dataclass(frozen=True)
class UserFault:
    """How userfaultfd is opened here (empty: it is not), and what it can do."""

    opened_by: str
    moves: bool
    why_not: str


def probe() -> UserFault:
    """Open a userfaultfd by each way there is, and move one page with it."""
    why: list[str] = []
    for way, opener in _WAYS.items():
        try:
            fd = opener()
        except OSError as error:
            why.append(f"{way}: {error.strerror}")
            continue
        try:
            trouble = _move(fd)
        except OSError as error:
            trouble = f"UFFDIO_MOVE: {error.strerror}"
        finally:
            os.close(fd)
        return UserFault(way, not trouble, trouble)
    return UserFault("", False, "; ".join(why))


def _syscall(flags: int) -> int:
    number = _SYSCALL.get(platform.machine())
    if number is None:
        raise OSError(0, f"the system call's number on {platform.machine()} is not known here")
    libc = ctypes.CDLL(None, use_errno=True)
    fd: int = libc.syscall(ctypes.c_long(number), ctypes.c_int(os.O_CLOEXEC | flags))
    if fd < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return fd


def _device() -> int:
    with Path("/dev/userfaultfd").open("rb", buffering=0) as device:
        return fcntl.ioctl(device.fileno(), _USERFAULTFD_IOC_NEW, os.O_CLOEXEC)


_WAYS: dict[str, Callable[[], int]] = {
    "userfaultfd(2)": lambda: _syscall(0),
    "/dev/userfaultfd": _device,
    "userfaultfd(2), user mode only": lambda: _syscall(_UFFD_USER_MODE_ONLY),
}


def _move(fd: int) -> str:
    """Move one page; return what is in the way, or nothing."""
    api = bytearray(struct.pack("QQQ", _UFFD_API, 0, 0))
    fcntl.ioctl(fd, _UFFDIO_API, api)
    if not struct.unpack("QQQ", api)[1] & _FEATURE_MOVE:
        return "the kernel has no UFFDIO_MOVE (it came with 6.8)"
    size = mmap.PAGESIZE
    private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    source, target = mmap.mmap(-1, size, private), mmap.mmap(-1, size, private)
    try:
        source[:] = bytes([_BYTE]) * size
        start, end = _address(source), _address(target)
        fcntl.ioctl(fd, _UFFDIO_REGISTER, struct.pack("QQQQ", end, size, _MODE_MISSING, 0))
        answer = bytearray(struct.pack("QQQQq", end, start, size, 0, 0))
        fcntl.ioctl(fd, _UFFDIO_MOVE, answer)
        if struct.unpack("QQQQq", answer)[4] != size or target[:] != bytes([_BYTE]) * size:
            return "UFFDIO_MOVE has not moved the page"
        return ""
    finally:
        with suppress(BufferError):
            source.close()
            target.close()


def _address(area: mmap.mmap) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(area))
