# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether two processes have one address space, by kcmp(2)."""

from __future__ import annotations

import ctypes
import os
import platform

#: The number of the system call; other architectures are not known of.
_KCMP = {"x86_64": 312, "aarch64": 272}
_KCMP_VM = 1


def works() -> bool:
    """Return whether `same_memory` can tell; kernels may lack the call (CONFIG_KCMP)."""
    return same_memory(os.getpid(), os.getpid())


def same_memory(one: int, other: int) -> bool:
    """Return whether both are known to share all memory; False where that cannot be told."""
    number = _KCMP.get(platform.machine())
    if number is None or not one or not other:
        return False
    syscall = ctypes.CDLL(None).syscall
    return bool(syscall(ctypes.c_long(number), one, other, _KCMP_VM, 0, 0) == 0)
