# SPDX-License-Identifier: GPL-2.0-or-later
"""The pause by three clocks: QMP events, heartbeats from outside, the guest's own from inside."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from lab.model import Pause
from lab.vm.agent import Beat
from lab.vm.monitor import Event

_NS_PER_MS = 1e6
#: Readings of processor time that are further apart say nothing of what is between them (ns).
_NEAR_NS = 100_000_000
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


def epoch_ns() -> int:
    """Return how much later the epoch's clock is than the monotonic one."""
    return time.time_ns() - time.monotonic_ns()


def outside_ms(beats: Sequence[Beat], start_ns: int, end_ns: int) -> float | None:
    """Return the longest gap between arrivals that overlaps the time from start to end (ms)."""
    return longest_gap_ms([beat.host_ns for beat in beats], start_ns, end_ns)


def longest_gap_ms(arrivals: Sequence[int], start_ns: int, end_ns: int) -> float | None:
    """Return the longest gap between arrivals that overlaps the time from start to end (ms)."""
    gap = _longest(sorted(arrivals), start_ns, end_ns)
    return (gap[1] - gap[0]) / _NS_PER_MS if gap else None


def _longest(arrivals: Sequence[int], start_ns: int, end_ns: int) -> tuple[int, int] | None:
    gaps = [
        (earlier, later)
        for earlier, later in pairwise(arrivals)
        if later >= start_ns and earlier <= end_ns
    ]
    return max(gaps, key=lambda gap: gap[1] - gap[0], default=None)


@dataclass(frozen=True)
class Parts:
    """What the longest gap between heartbeats consists of (ms); None where it is not known."""

    before_stop: float | None = None
    after_resume: float | None = None
    guest_ran: float | None = None
    new_processors: float | None = None


def parts(
    beats: Sequence[Beat],
    window: Window,
    stop_ns: float | None,
    resume_ns: float | None,
    new_cpu: Sequence[tuple[int, float]] = (),
) -> Parts:
    """Take the longest gap between heartbeats apart.

    All is on the host's monotonic clock; `new_cpu` is the processor time that the new QEMU had used
    (ms) at instants of it (ns).
    """
    ordered = sorted(beats, key=lambda beat: beat.host_ns)
    gap = _longest([beat.host_ns for beat in ordered], window.start_ns, window.end_ns + MARGIN_NS)
    if gap is None:
        return Parts()
    began, ended = gap
    first = next(beat for beat in reversed(ordered) if beat.host_ns == began)
    last = next(beat for beat in ordered if beat.host_ns == ended)
    resumed = None if resume_ns is None else min(max(resume_ns, began), ended)
    return Parts(
        None if stop_ns is None else (min(max(stop_ns, began), ended) - began) / _NS_PER_MS,
        None if resumed is None else (ended - resumed) / _NS_PER_MS,
        (last.mono_ns - first.mono_ns) / _NS_PER_MS,
        None if resumed is None else processors(new_cpu, resumed, ended),
    )


def processors(cpu: Sequence[tuple[int, float]], start_ns: float, end_ns: float) -> float | None:
    """Return how many processors were used from start to end, on average."""
    used = _used_ms(cpu, start_ns), _used_ms(cpu, end_ns)
    if used[0] is None or used[1] is None or end_ns <= start_ns:
        return None
    return (used[1] - used[0]) * _NS_PER_MS / (end_ns - start_ns)


def _used_ms(cpu: Sequence[tuple[int, float]], at_ns: float) -> float | None:
    """Return what had been used at an instant, by the readings just before and after it."""
    for (earlier, before), (later, after) in pairwise(cpu):
        if earlier <= at_ns <= later and later - earlier <= _NEAR_NS:
            return before + (after - before) * (at_ns - earlier) / max(later - earlier, 1)
    return None


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
    new_cpu: Sequence[tuple[int, float]] = (),
) -> Pause:
    """Return the pause by all clocks, and what the longest gap consists of."""
    beats = merge(old, new)
    end_ns = window.end_ns + MARGIN_NS
    epoch = epoch_ns()
    stop_ns, resume_ns = (
        None if at is None else at * 1e9 - epoch for at in stop_and_resume(old_events, new_events)
    )
    return Pause(
        qmp=qmp_pause_ms(old_events, new_events),
        outside=outside_ms(beats, window.start_ns, end_ns),
        inside=inside_ms(beats, window.start_ns, end_ns),
        outside_before=outside_ms(
            [beat for beat in beats if beat.host_ns <= window.start_ns],
            window.start_ns - MARGIN_NS,
            window.start_ns,
        ),
        **vars(parts(beats, window, stop_ns, resume_ns, new_cpu)),
    )
