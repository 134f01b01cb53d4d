# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether two processes have something in common, by kcmp(2)."""

from __future__ import annotations

import ctypes
import os
import platform

#: The number of the system call; other architectures are not known of.
_KCMP = {"x86_64": 312, "aarch64": 272}
#: enum kcmp_type (linux/kcmp.h)
_KCMP_FILE, _KCMP_VM = 0, 1


def works() -> bool:
    """Return whether `same_memory` can tell; kernels may lack the call (CONFIG_KCMP)."""
    return same_memory(os.getpid(), os.getpid())


def same_memory(one: int, other: int) -> bool:
    """Return whether both are known to share all memory; False where that cannot be told."""
    return bool(one and other) and _same(one, other, _KCMP_VM)


def same_file(pid: int, number: int, descriptor: int) -> bool:
    """Return whether a process is known to have by `number` what is open here as `descriptor`."""
    return _same(pid, os.getpid(), _KCMP_FILE, number, descriptor)


def _same(one: int, other: int, what: int, first: int = 0, second: int = 0) -> bool:
    number = _KCMP.get(platform.machine())
    if number is None:
        return False
    syscall = ctypes.CDLL(None).syscall
    return bool(syscall(ctypes.c_long(number), one, other, what, first, second) == 0)
