# SPDX-License-Identifier: GPL-2.0-or-later
"""The machine the lab runs on: what it is, and what it has free."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path

from lab.base import process
from lab.base.errors import PreconditionError
from lab.host.cgroup import cgroup_version
from lab.model import Host

#: The kernel's pool of huge pages, and the size of one (bytes)
#: (Documentation/admin-guide/mm/hugetlbpage.rst).
POOL = Path("/sys/kernel/mm/hugepages/hugepages-2048kB")
HUGE_PAGE = 2 * 2**20

_MIB = 2**20


def _first(path: str, pattern: str) -> str:
    try:
        found = re.search(pattern, Path(path).read_text(encoding="utf-8"), re.MULTILINE)
    except OSError:
        return "unknown"
    return found.group(1).strip() if found else "unknown"


def _distribution() -> str:
    """Return what the distribution calls itself (os-release(5))."""
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except OSError:
        return "unknown"


def memory_bytes(field: str = "MemTotal") -> int:
    """Return a field of /proc/meminfo (bytes)."""
    return int(_first("/proc/meminfo", rf"^{field}:\s+(\d+) kB")) * 1024


def linux() -> tuple[int, ...]:
    """Return the kernel's version: major, minor."""
    return tuple(int("0" + part) for part in platform.release().split("-")[0].split(".")[:2])


def cpu_ms(pid: int) -> float | None:
    """Return what a process has used of the processors (proc_pid_stat(5)); None once it is gone."""
    told = process.stat(pid)
    return (int(told[11]) + int(told[12])) * 1e3 / os.sysconf("SC_CLK_TCK") if told else None


def fingerprint() -> Host:
    """Return what a reader of a result must know of the machine."""
    cpu_flags = _first("/proc/cpuinfo", r"^flags\s*:\s*(.*)$").split()
    return Host(
        cpu=_first("/proc/cpuinfo", r"^model name\s*:\s*(.*)$"),
        cores=len(os.sched_getaffinity(0)),
        memory_bytes=memory_bytes(),
        kernel=platform.release(),
        distribution=_distribution(),
        thp=_first("/sys/kernel/mm/transparent_hugepage/enabled", r"\[(\w+)\]"),
        cgroup=cgroup_version(),
        virtual="hypervisor" in cpu_flags,
    )


def listening_sockets(pid: int | None = None) -> dict[Path, str]:
    """Return the unix sockets that somebody listens on, each with its inode (proc_pid_net(5)).

    In the network namespace of process `pid`, if one is named.
    """
    lines = Path(f"/proc/{pid or 'self'}/net/unix").read_bytes().split(b"\n")[1:]
    named = (fields for line in lines if len(fields := line.split(None, 7)) == 8)
    return {
        Path(os.fsdecode(fields[7])): fields[6].decode()
        for fields in named
        if fields[3] == b"00010000"  # __SO_ACCEPTCON
    }


def require_memory(needed: int, why: str) -> None:
    """Raise CannotTellError unless `needed` bytes are available."""
    available = memory_bytes("MemAvailable")
    if needed > available:
        raise PreconditionError(
            f"not enough memory: {why} needs about {needed // _MIB} MiB and "
            f"{available // _MIB} MiB are available",
            hint="take a smaller guest with --ram, or free some memory",
        )


def free_huge_pages() -> int:
    """Return how many pages of the pool nobody uses or has reserved."""
    return _pool("free_hugepages") - _pool("resv_hugepages")


def _pool(name: str) -> int:
    """Return a number of the pool's; 0 where the kernel has none."""
    path = POOL / name
    return int(path.read_text(encoding="ascii")) if path.exists() else 0


def require_huge_pages(needed: int, why: str) -> None:
    """Raise CannotTellError unless the pool has `needed` bytes free."""
    free = free_huge_pages() * HUGE_PAGE
    if needed > free:
        total = _pool("nr_hugepages")
        more = -(-(needed - free) // HUGE_PAGE)
        raise PreconditionError(
            f"not enough huge pages: {why} needs {needed // _MIB} MiB of them and "
            f"{free // _MIB} MiB are free",
            hint=f"as root: echo {total + more} > {POOL / 'nr_hugepages'}",
        )


def filesystem(path: Path) -> str:
    """Return the type of the filesystem that a path is in (proc_pid_mounts(5)); "" if unknown."""
    best, found = -1, ""
    for line in Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines():
        _, point, kind = line.split(" ")[:3]
        inside = path.is_relative_to(point.encode().decode("unicode_escape"))
        if inside and len(point) >= best:
            best, found = len(point), kind
    return found
