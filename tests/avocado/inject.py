# SPDX-License-Identifier: GPL-2.0-or-later
"""System calls that a process is made to issue, as a debugger would make it (ptrace(2), x86-64)."""

import ctypes
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

#: System calls that a test asks for.
MADVISE, MSEAL = 28, 462
RANDOM = 1  # advice of madvise(2): it makes a mapping of its own and does nothing else here

_SINGLESTEP, _GETREGS, _SETREGS, _DETACH = 9, 12, 13, 17
_SEIZE, _INTERRUPT = 0x4206, 0x4207
_WALL = 0x40000000
_SYSCALL = b"\x0f\x05"
_TRIES = 200

_REGISTERS = (
    *("r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8"),
    *("rax", "rcx", "rdx", "rsi", "rdi", "orig_rax", "rip", "cs", "eflags", "rsp", "ss"),
    *("fs_base", "gs_base", "ds", "es", "fs", "gs"),
)


class _Registers(ctypes.Structure):  # struct user_regs_struct, sys/user.h
    _fields_ = tuple((name, ctypes.c_ulonglong) for name in _REGISTERS)


class Stopped:
    """The main thread of a process, which stands where it has just made a system call."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._libc.ptrace.argtypes = [ctypes.c_ulong, ctypes.c_int, *2 * [ctypes.c_void_p]]
        self._libc.ptrace.restype = ctypes.c_long

    def _ptrace(self, request: int, data: object = None) -> None:
        if self._libc.ptrace(request, self._pid, None, data) < 0:
            raise OSError(ctypes.get_errno(), f"ptrace request {request:#x}")

    def _registers(self) -> _Registers:
        registers = _Registers()
        self._ptrace(_GETREGS, ctypes.byref(registers))
        return registers

    def _step(self, request: int) -> None:
        self._ptrace(request)
        os.waitpid(self._pid, _WALL)

    def begin(self) -> None:
        """Stop it right behind a system call's instruction; raise TimeoutError if it never is."""
        self._ptrace(_SEIZE)
        for _ in range(_TRIES):
            self._step(_INTERRUPT)
            self._before = self._registers()
            with Path(f"/proc/{self._pid}/mem").open("rb", buffering=0) as memory:
                memory.seek(self._before.rip - len(_SYSCALL))
                if memory.read(len(_SYSCALL)) == _SYSCALL:
                    return
            self._ptrace(_DETACH)
            time.sleep(0.01)
            self._ptrace(_SEIZE)
        raise TimeoutError(f"process {self._pid} is in no system call")

    def call(self, number: int, *arguments: int) -> int:
        """Return what a system call returns there: negative errno if it fails."""
        registers = _Registers.from_buffer_copy(self._before)
        registers.rip -= len(_SYSCALL)
        registers.rax = number
        registers.orig_rax = 2**64 - 1  # what it was interrupted in is not to be started again now
        registers.rdi, registers.rsi, registers.rdx = *arguments, *(3 - len(arguments)) * (0,)
        self._ptrace(_SETREGS, ctypes.byref(registers))
        self._step(_SINGLESTEP)
        return ctypes.c_longlong(self._registers().rax).value

    def end(self) -> None:
        """Let it go on as if nothing had been."""
        self._ptrace(_SETREGS, ctypes.byref(self._before))
        self._ptrace(_DETACH)


@contextmanager
def stopped(pid: int) -> Iterator[Stopped]:
    """Stop a process's main thread for as long as it is made to do something."""
    thread = Stopped(pid)
    thread.begin()
    try:
        yield thread
    finally:
        thread.end()
