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

import re
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from lab.model import Memory, Sample

_FIELD = re.compile(rb"^(Pss|AnonHugePages):\s+(\d+) kB$", re.MULTILINE)
#: A reading whose error is larger than this part of the memory before is discarded.
MAX_ERROR = 0.05
#: Between two readings the sampler rests this many times as long as a reading took: one core in
#: five at most, however slow the page-table walk is.
_REST = 4
_MIN_REST_S = 0.002
#: A reading that takes longer would be seen in a pause of a few milliseconds (s).
_DEAR_S = 0.001


@dataclass(frozen=True)
class Usage:
    """One process's memory (bytes)."""

    pss: int
    huge: int


def usage(pid: int) -> Usage:
    """Return a process's memory from smaps_rollup (proc(5)); zeros once it has ended."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return Usage(0, 0)
    fields = {name: int(kib) * 1024 for name, kib in _FIELD.findall(text)}
    return Usage(fields.get(b"Pss", 0), fields.get(b"AnonHugePages", 0))


class HasPid(Protocol):
    """A process, which may not have been started yet: its ``pid`` is 0 then."""

    @property
    def pid(self) -> int:
        """The process id."""


class Sampler:
    """Samples two processes in a thread of its own.

    With `considerate` readings that take long are not made before the end.
    """

    def __init__(self, old: HasPid, new: HasPid, *, considerate: bool) -> None:
        self._old = old
        self._new = new
        self._considerate = considerate
        self._stop = threading.Event()
        self._start_ns = time.monotonic_ns()
        self._thread = threading.Thread(target=self._run, name="memory", daemon=True)
        self.samples: list[Sample] = []

    def _run(self) -> None:
        old_pid = self._old.pid
        if self._considerate and _cost_s(old_pid) > _DEAR_S:
            self._stop.wait()
        before = usage(old_pid).pss
        while True:
            begun = time.monotonic_ns()
            new = usage(self._new.pid).pss
            now = time.monotonic_ns()
            after = usage(old_pid).pss
            self.samples.append(
                Sample(
                    at_ms=(now - self._start_ns) / 1e6,
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
                before = usage(old_pid).pss  # the last one has grown old

    def start(self) -> None:
        """Begin to sample."""
        self._thread.start()

    def stop(self) -> None:
        """Stop and wait for the last sample."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()


def _cost_s(pid: int) -> float:
    """Return how long a reading takes: the quickest of three, as others want the processor too."""

    def once() -> float:
        begun = time.monotonic()
        usage(pid)
        return time.monotonic() - begun

    return min(once() for _ in range(3))


@contextmanager
def sampled(old: HasPid, new: HasPid, *, considerate: bool = False) -> Iterator[Sampler]:
    """Sample both processes for as long as the block lasts."""
    sampler = Sampler(old, new, considerate=considerate)
    sampler.start()
    try:
        yield sampler
    finally:
        sampler.stop()


def summarise(
    before: Usage, samples: Sequence[Sample], new_after: Usage, cgroup: tuple[int, int] | None
) -> Memory:
    """Return what the upgrade cost; `cgroup` is the group's usage before and its peak (bytes)."""
    good = [sample for sample in samples if sample.skew_bytes <= MAX_ERROR * before.pss]
    pss_peak = max((s.old_pss_bytes + s.new_pss_bytes for s in good), default=before.pss)
    before_bytes, peak_bytes = cgroup or (before.pss, pss_peak)
    return Memory(
        before_bytes=before_bytes,
        peak_bytes=peak_bytes,
        ratio=peak_bytes / max(before_bytes, 1),
        method="cgroup" if cgroup else "pss",
        pss_before_bytes=before.pss,
        pss_peak_bytes=pss_peak,
        pss_ratio=pss_peak / max(before.pss, 1),
        samples=len(samples),
        samples_discarded=len(samples) - len(good),
        new_huge_bytes=new_after.huge,
        old_huge_bytes=before.huge,
    )
