# SPDX-License-Identifier: GPL-2.0-or-later
"""Memory of both QEMUs through the upgrade: sampled PSS, and the kernel's peak where it can be had.

Two processes are never read in one instant.  Each reading of the new QEMU is therefore set between
two of the old one; their mean stands for the old one at that instant and half of their difference
is the reading's error.  Readings with a large error (a fork, a fast hand-over) are discarded and
counted, not corrected.

A reading walks the process's page tables, and QEMU waits meanwhile when it maps or unmaps memory:
where that takes long and the kernel keeps a peak of its own, nothing is read during the upgrade.
"""

from __future__ import annotations

import dataclasses
import math
import re
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from lab.base.kcmp import same_memory
from lab.model import Memory, Sample

_PSS = re.compile(rb"^(Pss|Shared_Hugetlb|Private_Hugetlb):\s+(\d+) kB$", re.MULTILINE)
#: Pss leaves out the pool's huge pages; a shared one is assumed to be shared with the other QEMU.
_WEIGHT = {b"Pss": 1.0, b"Private_Hugetlb": 1.0, b"Shared_Hugetlb": 0.5}
#: In smaps: a mapping's addresses and permissions, and further down its huge pages (proc(5)).
_MAPPING = re.compile(
    rb"^([0-9a-f]+)-([0-9a-f]+) (\S{4}) .*\n(?:[A-Z].*\n)*?AnonHugePages:\s+(\d+) kB\n"
    rb"(?:[A-Z].*\n)*?Shared_Hugetlb:\s+(\d+) kB\nPrivate_Hugetlb:\s+(\d+) kB$",
    re.MULTILINE,
)
#: A reading whose error is larger than this part of the memory before is discarded.
MAX_ERROR = 0.05
#: Between two readings the sampler rests this many times as long as a reading took: one core in
#: five at most, however slow the page-table walk is.
_REST = 4
_MIN_REST_S = 0.002
#: A reading that takes longer would be seen in a pause of a few milliseconds (s).
_DEAR_S = 0.001
_VERY_DEAR_S = 20 * _DEAR_S


def pss(pid: int) -> int:
    """Return a process's PSS (bytes) from smaps_rollup (proc(5)); 0 once it has ended.

    The kernel's pool of huge pages is in it, a page that two processes have by half.
    """
    found = _PSS.findall(_read(pid, "smaps_rollup"))
    return int(sum(_WEIGHT[name] * int(kib) for name, kib in found) * 1024)


def huge_pages(pid: int, ram_bytes: int) -> int:
    """Return how much of a guest's RAM is in huge pages (bytes); 0 once it has ended.

    A QEMU has huge pages of its own as well, for its heap and for translated code, which are not
    the guest's: only mappings that can hold half of its RAM and no code are looked at.
    """
    return sum(
        sum(map(int, kib)) * 1024
        for start, end, permissions, *kib in _MAPPING.findall(_read(pid, "smaps"))
        if int(end, 16) - int(start, 16) >= ram_bytes // 2 and b"x" not in permissions
    )


def _read(pid: int, name: str) -> bytes:
    """Return a file of /proc/PID, which is empty once the process has ended."""
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


class HasPid(Protocol):
    """A process, which may not have been started yet: its ``pid`` is 0 then."""

    @property
    def pid(self) -> int:
        """The process id."""


class Sampler:
    """Samples two processes in a thread of its own.

    With `considerate` there are none where one takes long: at the end the guest has just begun
    to run again, and both wait for the same processors and the same locks.
    """

    def __init__(self, old: HasPid, new: HasPid, *, considerate: bool) -> None:
        self._old = old
        self._new = new
        self._considerate = considerate
        self._stop = threading.Event()
        self.start_ns = time.monotonic_ns()
        self._thread = threading.Thread(target=self._run, name="memory", daemon=True)
        self.samples: list[Sample] = []

    def _run(self) -> None:
        old_pid = self._old.pid
        if self._considerate and _cost_s(old_pid) > _DEAR_S:
            return
        before = pss(old_pid)
        while True:
            begun = time.monotonic_ns()
            new_pid = self._new.pid
            new = 0 if _alike(old_pid, new_pid) else pss(new_pid)
            now = time.monotonic_ns()
            after = pss(old_pid)
            self.samples.append(
                Sample(
                    at_ms=(now - self.start_ns) / 1e6,
                    old_pss_bytes=(before + after) // 2,
                    new_pss_bytes=new,
                    skew_bytes=abs(before - after) // 2,
                )
            )
            before = after
            took = (time.monotonic_ns() - begun) / 1e9
            rest = max(_MIN_REST_S, took * _REST)
            if self._stop.wait(rest):
                break
            if rest > 2 * _MIN_REST_S:
                before = pss(old_pid)  # the last one has grown old

    def start(self) -> None:
        """Begin to sample."""
        self._thread.start()

    def stop(self) -> None:
        """Stop and wait for the last sample."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()


def _alike(old_pid: int, new_pid: int) -> bool:
    """Whether the old QEMU has become the new one, or shares its memory: that counts once."""
    return new_pid == old_pid or same_memory(old_pid, new_pid)


def _cost_s(pid: int) -> float:
    """Return how long a reading takes: the quickest of three, as others want the processor too.

    There is only one where that leaves no doubt.
    """
    quickest = math.inf
    for _ in range(3):
        begun = time.monotonic()
        pss(pid)
        quickest = min(quickest, time.monotonic() - begun)
        if quickest > _VERY_DEAR_S:
            break
    return quickest


@contextmanager
def sampled(
    old: HasPid, new: HasPid, *, considerate: bool = False, wanted: bool = True
) -> Iterator[Sampler]:
    """Sample both processes for as long as the block lasts, or unless `wanted` do nothing."""
    sampler = Sampler(old, new, considerate=considerate)
    if wanted:
        sampler.start()
    try:
        yield sampler
    finally:
        sampler.stop()


def summarise(
    pss_before: int, samples: Sequence[Sample], old_huge: int, cgroup: tuple[int, int] | None
) -> Memory:
    """Return what the upgrade cost; `cgroup` is the group's usage before and its peak (bytes)."""
    good = [sample for sample in samples if sample.skew_bytes <= MAX_ERROR * pss_before]
    pss_peak = max([pss_before, *(s.old_pss_bytes + s.new_pss_bytes for s in good)])
    before_bytes, peak_bytes = cgroup or (pss_before, pss_peak)
    return Memory(
        before_bytes=before_bytes,
        peak_bytes=peak_bytes,
        ratio=peak_bytes / max(before_bytes, 1),
        method="cgroup" if cgroup else "pss",
        pss_before_bytes=pss_before,
        pss_peak_bytes=pss_peak,
        pss_ratio=pss_peak / max(pss_before, 1),
        samples=len(samples),
        samples_discarded=len(samples) - len(good),
        old_huge_bytes=old_huge,
    )


@dataclass(frozen=True)
class Used:
    """Memory during the upgrade: the account, None where none was wanted, and every reading."""

    memory: Memory | None
    samples: list[Sample]
    #: When sampling began, on the host's monotonic clock.
    start_ns: int = 0

    def with_new(self, old_pid: int, pid: int, ram_bytes: int) -> Used:
        """Return the same with what process `pid` has now, and the guest's huge pages in it.

        Where there was no reading during the upgrade, this is the one.
        """
        if not self.memory:
            return self
        new = pss(pid)
        now: dict[str, object] = {
            "new_huge_bytes": huge_pages(pid, ram_bytes),
            "new_pss_bytes": new or None,
        }
        if not self.memory.samples:
            before = self.memory.pss_before_bytes
            peak = max(before, new if _alike(old_pid, pid) else pss(old_pid) + new)
            now |= {"pss_peak_bytes": peak, "pss_ratio": peak / max(before, 1), "samples": 1}
        return dataclasses.replace(self, memory=self.memory.model_copy(update=now))
