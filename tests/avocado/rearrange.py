# SPDX-License-Identifier: GPL-2.0-or-later
"""What the kernel may do to a guest's pages at any time, done to them from outside.

A module of its own: avocado, which finds tests without importing them, stumbles over a class that
is a thread.
"""

import ctypes
import os
import random
import threading
import time
from collections import Counter
from pathlib import Path

#: Advice of process_madvise(2).
COLD, PAGEOUT, COLLAPSE = 20, 21, 25
_UNIT = 2 << 20
_SYS_PROCESS_MADVISE = 440


class _Iovec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


def guest_ram(pid: int) -> tuple[int, int]:
    """Return where most of the guest's RAM is (address, bytes).

    Nothing else that a QEMU may read and write, but not execute, is as large: the buffer that TCG
    translates into may well be larger.
    """
    lines = Path(f"/proc/{pid}/maps").read_text(encoding="utf-8").splitlines()
    ranges = [
        [int(one, 16) for one in line.split()[0].split("-")] for line in lines if " rw-" in line
    ]
    start, end = max(ranges, key=lambda one: one[1] - one[0])
    return start, end - start


class Kernel(threading.Thread):
    """Has the kernel put together, split and page out a process's memory, from outside."""

    def __init__(self, pid: int, seed: int, seconds: float) -> None:
        super().__init__()
        self._pid, self._chance, self._seconds = pid, random.Random(seed), seconds
        self.done: Counter[int] = Counter()

    def run(self) -> None:
        """Do so for the given time."""
        libc = ctypes.CDLL(None, use_errno=True)
        start, length = guest_ram(self._pid)
        process, until = os.pidfd_open(self._pid), time.monotonic() + self._seconds
        while time.monotonic() < until:
            unit = start + self._chance.randrange(length // _UNIT) * _UNIT
            advice = self._chance.choice((COLD, PAGEOUT, COLLAPSE))
            whole = advice == COLLAPSE or self._chance.random() < 0.5
            pages = _Iovec(unit, _UNIT if whole else 4096)
            words = process, ctypes.byref(pages), ctypes.c_size_t(1), advice, 0
            self.done[advice] += libc.syscall(_SYS_PROCESS_MADVISE, *words) >= 0
        os.close(process)
