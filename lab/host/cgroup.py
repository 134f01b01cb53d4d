# SPDX-License-Identifier: GPL-2.0-or-later
"""A memory cgroup of our own, which holds both QEMUs and nothing else."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from lab.base.layout import abandoned, held
from lab.base.process import Foreign

_CGROUP = Path("/sys/fs/cgroup")
#: What version 1 says for no limit is a little less than this (bytes).
_UNLIMITED = 2**62


def cgroup_version() -> str:
    """Return where a memory group could be made: ``v2``, ``v1`` or ``none``."""
    if (_CGROUP / "memory" / "memory.limit_in_bytes").exists() or (
        _CGROUP / "memory/tasks"
    ).exists():
        return "v1"
    with suppress(OSError):
        offered = (_CGROUP / "cgroup.subtree_control").read_text(encoding="ascii")
        if "memory" in offered.split():
            return "v2"
    return "none"


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


def headroom(
    pid: int, base: Path | None = None, told: str | None = None, *, cached: bool = False
) -> int | None:
    """Return how much more memory a process's groups let it use (bytes); None for no limit.

    The memory group of the process and all above it count, each with all of its members; with
    `cached`, what they have of files in memory and do not use is room as well.
    `base` is where the groups are, and `told` the process's /proc/PID/cgroup (cgroups(7)), for
    tests.
    """
    base = base or groups_directory()
    if told is None:
        try:
            told = Path(f"/proc/{pid}/cgroup").read_text(encoding="utf-8")
        except OSError:
            return None
    found = [
        path
        for number, controllers, path in (line.split(":", 2) for line in told.splitlines())
        if "memory" in controllers.split(",") or (number, controllers) == ("0", "")
    ]
    if not found:
        return None
    group = base / found[0].lstrip("/")
    groups = [one for one in (group, *group.parents) if one.is_relative_to(base)]
    rooms = [_room(one, cached=cached) for one in groups]
    return min((room for room in rooms if room is not None), default=None)


def _room(group: Path, *, cached: bool) -> int | None:
    """Return how much more a single group lets its members use; None for no limit."""
    for limit, usage, below in (
        ("memory.max", "memory.current", ""),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
    ):
        with suppress(OSError, ValueError):  # "max" is no limit, and no number
            allowed = int((group / limit).read_text(encoding="ascii"))
            used = int((group / usage).read_text(encoding="ascii"))
            if cached:
                used -= _of_files(group, below)
            return None if allowed >= _UNLIMITED else max(allowed - used, 0)
    return None


def _of_files(group: Path, below: str) -> int:
    """Return how much of a group's memory, and of those below it, is files' and idle (bytes).

    As QEMU's series has it (migration/localhost-mm.c): what is in use the kernel drops later.
    """
    lines = (group / "memory.stat").read_text(encoding="ascii").splitlines()
    told = (line.split() for line in lines)
    return sum(int(value) for name, value in told if name == f"{below}inactive_file")


def _kill_members(group: Path) -> None:
    """End what a killed lab left: a QEMU that another QEMU started does not end with the lab."""
    with suppress(OSError):
        for pid in _members(group):
            member = Foreign(pid)
            if pid in _members(group):  # the number is still that of the one that was listed
                member.kill()


def _members(group: Path) -> list[int]:
    return list(map(int, (group / "cgroup.procs").read_text(encoding="ascii").split()))


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
