# SPDX-License-Identifier: GPL-2.0-or-later
"""The machine the lab runs on: what it is, what it has free, and a memory group of our own."""

from __future__ import annotations

import os
import platform
import re
import secrets
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from lab import run as process
from lab.errors import PreconditionError
from lab.layout import abandoned, held
from lab.model import Host

#: The kernel's pool of huge pages, and the size of one (bytes)
#: (Documentation/admin-guide/mm/hugetlbpage.rst).
POOL = Path("/sys/kernel/mm/hugepages/hugepages-2048kB")
HUGE_PAGE = 2 * 2**20

_CGROUP = Path("/sys/fs/cgroup")
_MIB = 2**20


def _first(path: str, pattern: str) -> str:
    try:
        found = re.search(pattern, Path(path).read_text(encoding="utf-8"), re.MULTILINE)
    except OSError:
        return "unknown"
    return found.group(1).strip() if found else "unknown"


def memory_bytes(field: str = "MemTotal") -> int:
    """Return a field of /proc/meminfo (bytes)."""
    return int(_first("/proc/meminfo", rf"^{field}:\s+(\d+) kB")) * 1024


def cpu_ms(pid: int) -> float | None:
    """Return what a process has used of the processors (proc_pid_stat(5)); None once it is gone."""
    told = process.stat(pid)
    return (int(told[11]) + int(told[12])) * 1e3 / os.sysconf("SC_CLK_TCK") if told else None


def cgroup_version() -> str:
    """Return where a memory group could be made: ``v2``, ``v1`` or ``none``."""
    if (_CGROUP / "memory" / "memory.limit_in_bytes").exists() or (
        _CGROUP / "memory/tasks"
    ).exists():
        return "v1"
    if "memory" in _first(str(_CGROUP / "cgroup.subtree_control"), r"^(.*)$").split():
        return "v2"
    return "none"


def fingerprint() -> Host:
    """Return what a reader of a result must know of the machine."""
    cpu_flags = _first("/proc/cpuinfo", r"^flags\s*:\s*(.*)$").split()
    return Host(
        cpu=_first("/proc/cpuinfo", r"^model name\s*:\s*(.*)$"),
        cores=len(os.sched_getaffinity(0)),
        memory_bytes=memory_bytes(),
        kernel=platform.release(),
        distribution=_first("/etc/os-release", r'^PRETTY_NAME="?(.*?)"?$'),
        thp=_first("/sys/kernel/mm/transparent_hugepage/enabled", r"\[(\w+)\]"),
        cgroup=cgroup_version(),
        virtual="hypervisor" in cpu_flags,
    )


def listening_sockets() -> dict[Path, str]:
    """Return the unix sockets that somebody listens on, each with its inode (proc_pid_net(5))."""
    listening = "00010000"
    lines = Path("/proc/net/unix").read_text(encoding="utf-8").splitlines()[1:]
    named = (fields for line in lines if len(fields := line.split()) == 8)
    return {Path(fields[7]): fields[6] for fields in named if fields[3] == listening}


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


class MemoryGroup:
    """A memory cgroup that holds both QEMUs and nothing else; its peak is the authority.

    Version 1 and 2 (Documentation/admin-guide/cgroup-v1/memory.rst, cgroup-v2.rst).
    """

    def __init__(self, path: Path, version: str) -> None:
        self.path = path
        self._v1 = version == "v1"
        self._peak: IO[str] | None = None

    def enter(self, argv: list[str]) -> list[str]:
        """Return `argv` such that the process is in the group before it becomes QEMU."""
        return ["sh", "-c", 'echo $$ > "$0" && exec "$@"', str(self.path / "cgroup.procs"), *argv]

    def limit(self, max_bytes: int) -> None:
        """Let the kernel kill a member rather than let the group use more than `max_bytes`."""
        name = "memory.limit_in_bytes" if self._v1 else "memory.max"
        (self.path / name).write_text(str(max_bytes), encoding="ascii")

    def current(self) -> int:
        """Return what the group uses now (bytes)."""
        name = "memory.usage_in_bytes" if self._v1 else "memory.current"
        return int((self.path / name).read_text(encoding="ascii"))

    def reset_peak(self) -> None:
        """Begin a new peak, where the kernel can; otherwise the peak includes the guest's boot."""
        if self._v1:
            (self.path / "memory.max_usage_in_bytes").write_text("0", encoding="ascii")
            return
        # Since 6.12 a write resets the peak that is read through the same descriptor.
        with suppress(OSError):
            self._peak = (self.path / "memory.peak").open("r+", encoding="ascii", buffering=1)
            self._peak.write("0")
            self._peak.flush()

    def peak(self) -> int:
        """Return the highest usage since the reset (bytes)."""
        if self._v1:
            return int((self.path / "memory.max_usage_in_bytes").read_text(encoding="ascii"))
        if self._peak:
            self._peak.seek(0)
            return int(self._peak.read())
        return int((self.path / "memory.peak").read_text(encoding="ascii"))

    def watch(self) -> Callable[[], tuple[int, int]]:
        """Begin a peak; what is returned gives usage at the beginning and the peak (bytes)."""
        before = self.current()
        self.reset_peak()
        return lambda: (before, self.peak())

    def remove(self) -> None:
        """Remove the group; its processes have just been ended and leave it in a moment."""
        if self._peak:
            self._peak.close()
        for _ in range(100):
            try:
                self.path.rmdir()
            except FileNotFoundError:
                return
            except OSError:
                time.sleep(0.01)
            else:
                return


def groups_directory() -> Path:
    """Return where the memory groups of this host are."""
    return _CGROUP / "memory" if cgroup_version() == "v1" else _CGROUP


def _kill_members(group: Path) -> None:
    """End what a killed lab left: a QEMU that another QEMU started does not end with the lab."""
    with suppress(OSError):
        for pid in (group / "cgroup.procs").read_text(encoding="ascii").split():
            os.kill(int(pid), signal.SIGKILL)


@contextmanager
def memory_group() -> Iterator[MemoryGroup | None]:
    """Make a memory group for the block; None where the user may not or the kernel cannot."""
    version = cgroup_version()
    base = groups_directory()
    path = base / f"pageflip-{secrets.token_hex(6)}"
    try:
        if version == "none":
            raise OSError
        for stale in abandoned(base, "pageflip-*"):
            _kill_members(stale)
            MemoryGroup(stale, version).remove()
        path.mkdir()
    except OSError:
        yield None
        return
    group = MemoryGroup(path, version)
    try:
        group.current()
        group.peak()
    except OSError:  # memory.peak is there from 5.19 on
        group.remove()
        yield None
        return
    try:
        with held(path):
            yield group
    finally:
        group.remove()
