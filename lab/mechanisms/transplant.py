# SPDX-License-Identifier: GPL-2.0-or-later
"""The flip from outside, for QEMUs without the series: root, ptrace(2), nothing in QEMU."""

from __future__ import annotations

import platform
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lab.base import process
from lab.base.layout import Layout
from lab.host import facts
from lab.mechanisms.base import Asked, Driven, Mechanism
from lab.mechanisms.localhost import localhost_blocks, localhost_phases
from lab.mechanisms.operation import Operation
from lab.model import Block, Phases
from lab.transplant import devices, helper
from lab.vm.binary import Binary
from lab.vm.qemu import Qemu

#: The guest runs while it is forked.  Before this one, what the kernel reads past the page cache
#: (O_DIRECT) may then go to the child's copy of a page, and the guest never sees it: it has to
#: stand still for that moment, with no request under way.
_DIRECT = (6, 3)
#: The first that tells where a thread has its area of restartable sequences (ptrace(2)).
_KERNEL = (5, 13)
#: Of capabilities(7): to trace whoever it is, to read page frames and suspend a filter.
_CAP_SYS_PTRACE, _CAP_SYS_ADMIN = 19, 21
#: In Documentation/admin-guide/LSM/Yama.rst: nobody may trace anybody, until the next boot.
_NO_ATTACH = "3"


class Transplant(Mechanism):
    """The old QEMU is forked by ptrace(2), and its child becomes the new one: no copy."""

    name = "transplant"
    summary = "the same as flip, from outside: any two QEMUs, sandboxed or not; takes root"
    monitor_first = False
    inherits = True
    from_outside = True
    resumes = False
    commits = True
    rehearses = verifies = True

    def missing(self, old: Binary, new: Binary) -> str:
        return devices.missing(old) or _missing_here()

    def prepare(self, old: Qemu, new: Qemu) -> None:
        """Nothing is to be set in either; the helper is made before the clock runs."""
        helper.compiled(Layout.default())

    def go(self, old: Qemu, new: Qemu, asked: Asked) -> Driven:
        operation = Operation(old, new, asked, still=facts.linux() < _DIRECT)
        operation.begin()
        return operation

    def blocks(self, info: Mapping[str, Any], ram_bytes: int) -> list[Block]:
        return localhost_blocks(info)

    def phases(self, info: Mapping[str, Any], new_start_ms: float | None) -> Phases:
        return localhost_phases(info, new_start_ms)


def _missing_here() -> str:
    """Return what this host, or this user, lacks for it; an empty string when nothing."""
    if platform.machine() != "x86_64":
        return f"it is for x86-64 hosts, and not for {platform.machine()}"
    if facts.linux() < _KERNEL:
        return f"it takes Linux {_KERNEL[0]}.{_KERNEL[1]}, and this is {platform.release()}"
    if not process.capable(_CAP_SYS_PTRACE, _CAP_SYS_ADMIN):
        return "it takes root: the capabilities CAP_SYS_PTRACE and CAP_SYS_ADMIN"
    yama = Path("/proc/sys/kernel/yama/ptrace_scope")
    if yama.exists() and yama.read_text(encoding="ascii").strip() == _NO_ATTACH:
        return "kernel.yama.ptrace_scope is 3: no process may be traced on this host"
    if not shutil.which("cc"):
        return "its helper is compiled here, and there is no compiler: install gcc and libc6-dev"
    return ""
