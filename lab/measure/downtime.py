# SPDX-License-Identifier: GPL-2.0-or-later
"""The pause by three clocks: QMP events, heartbeats from outside, the guest's own from inside."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from lab.model import Pause
from lab.vm.agent import Beat
from lab.vm.monitor import Event

_NS_PER_MS = 1e6
#: How long before and after the upgrade the heartbeats are looked at (ns).
MARGIN_NS = 1_000_000_000


@dataclass(frozen=True)
class Window:
    """The upgrade on the host's monotonic clock (ns)."""

    start_ns: int
    end_ns: int

    @property
    def ms(self) -> float:
        """Its length (ms)."""
        return (self.end_ns - self.start_ns) / _NS_PER_MS


@dataclass(frozen=True)
class Numbers:
    """What became of the heartbeats' numbers."""

    received: int
    lost: int
    doubled: int


def merge(old: Sequence[Beat], new: Sequence[Beat]) -> list[Beat]:
    """Return the beats of both QEMUs by number, the first arrival of each."""
    first: dict[int, Beat] = {}
    for beat in (*old, *new):
        first.setdefault(beat.n, beat)
    return [first[n] for n in sorted(first)]


def count(old: Sequence[Beat], new: Sequence[Beat], skipped: int) -> Numbers:
    """Count lost and doubled numbers; `skipped` are those the guest says it never sent."""
    numbers = [beat.n for beat in (*old, *new)]
    distinct = set(numbers)
    span = max(distinct) - min(distinct) + 1 if distinct else 0
    return Numbers(
        len(numbers), max(0, span - len(distinct) - skipped), len(numbers) - len(distinct)
    )


def qmp_pause_ms(old: Sequence[Event], new: Sequence[Event]) -> float | None:
    """Return the time from the old QEMU's last STOP to the new one's first RESUME after it (ms)."""
    stop, resume = stop_and_resume(old, new)
    return None if stop is None or resume is None else (resume - stop) * 1e3


def stop_and_resume(
    old: Sequence[Event], new: Sequence[Event]
) -> tuple[float | None, float | None]:
    """Return both events' own stamps (s since the epoch)."""
    stops = [event.at for event in old if event.name == "STOP"]
    if not stops:
        return None, None
    resumes = [event.at for event in new if event.name == "RESUME" and event.at >= stops[-1]]
    return stops[-1], resumes[0] if resumes else None


def outside_ms(beats: Sequence[Beat], start_ns: int, end_ns: int) -> float | None:
    """Return the longest gap between arrivals that overlaps the time from start to end (ms)."""
    return longest_gap_ms([beat.host_ns for beat in beats], start_ns, end_ns)


def longest_gap_ms(arrivals: Sequence[int], start_ns: int, end_ns: int) -> float | None:
    """Return the longest gap between arrivals that overlaps the time from start to end (ms)."""
    gaps = [
        later - earlier
        for earlier, later in pairwise(sorted(arrivals))
        if later >= start_ns and earlier <= end_ns
    ]
    return max(gaps) / _NS_PER_MS if gaps else None


def inside_ms(beats: Sequence[Beat], start_ns: int, end_ns: int) -> float | None:
    """Return the longest step of the guest's monotonic clock between neighbouring beats (ms)."""
    steps = [
        later.mono_ns - earlier.mono_ns
        for earlier, later in pairwise(beats)
        if later.n == earlier.n + 1 and later.host_ns >= start_ns and earlier.host_ns <= end_ns
    ]
    return max(steps) / _NS_PER_MS if steps else None


def went_back(beats: Sequence[Beat]) -> bool:
    """Whether the guest's monotonic clock ever ran backwards from one beat to a later one."""
    return any(later.mono_ns < earlier.mono_ns for earlier, later in pairwise(beats))


def pause(
    old: Sequence[Beat],
    new: Sequence[Beat],
    window: Window,
    old_events: Sequence[Event],
    new_events: Sequence[Event],
) -> Pause:
    """Return the pause by all clocks."""
    beats = merge(old, new)
    end_ns = window.end_ns + MARGIN_NS
    return Pause(
        qmp=qmp_pause_ms(old_events, new_events),
        outside=outside_ms(beats, window.start_ns, end_ns),
        inside=inside_ms(beats, window.start_ns, end_ns),
        outside_before=outside_ms(
            [beat for beat in beats if beat.host_ns <= window.start_ns],
            window.start_ns - MARGIN_NS,
            window.start_ns,
        ),
    )
