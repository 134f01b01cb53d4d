# SPDX-License-Identifier: GPL-2.0-or-later
"""What happened when: heartbeats, STOP and RESUME, and how slow the guest was around them."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from pydantic import Field

from lab.measure import downtime
from lab.measure.downtime import MARGIN_NS, Window
from lab.model import Brownout, Model, Sample
from lab.vm.agent import Beat
from lab.vm.monitor import Event

_MS = 1e6
#: Heartbeats are counted in pieces of this length (ms); one comes each millisecond.
BIN_MS = 20.0
#: A guest is slow when fewer heartbeats come than this share of the usual number.
_SLOW = 0.8


class StatusChange(Model):
    """What the old QEMU said of the migration, and when."""

    at_ms: float
    status: str = Field(description="QAPI MigrationStatus")


class CpuTime(Model):
    """What the old QEMU had used of the host's processors until an instant."""

    at_ms: float
    used_ms: float


class Timeline(Model):
    """Times of one upgrade, in ms since its first command."""

    began_s: float | None = Field(default=None, description="the first command, since the epoch")
    end_ms: float = Field(description="both QEMUs say that it is complete")
    stop_ms: float | None
    resume_ms: float | None
    old_beats_ms: list[float] = Field(description="arrivals of heartbeats from the old QEMU")
    new_beats_ms: list[float] = Field(description="and from the new one")
    samples: list[Sample] = Field(description="PSS of both, `at_ms` on the same clock")
    steps: list[StatusChange] = Field(default_factory=list)
    cpu: list[CpuTime] = Field(
        default_factory=list, description="while it was listened to, and around the upgrade"
    )


def timeline(
    old: Sequence[Beat],
    new: Sequence[Beat],
    window: Window,
    events: tuple[Sequence[Event], Sequence[Event]],
    samples: tuple[int, Sequence[Sample]],
    cpu: Sequence[tuple[int, float]] = (),
) -> Timeline:
    """Put everything on one clock.

    `events` are those of both QEMUs; `samples` have been taken since an instant of the host's
    monotonic clock (ns), and `cpu` is processor time used (ms) at instants of it.
    """
    began_ns, taken = samples
    shift = (began_ns - window.start_ns) / _MS
    stop, resume = (_since(window, at) for at in downtime.stop_and_resume(*events))
    return Timeline(
        began_s=(window.start_ns + downtime.epoch_ns()) / 1e9,
        end_ms=window.ms,
        stop_ms=stop,
        resume_ms=resume,
        old_beats_ms=_arrivals(old, window),
        new_beats_ms=_arrivals(new, window),
        samples=[sample.model_copy(update={"at_ms": sample.at_ms + shift}) for sample in taken],
        steps=[
            StatusChange(at_ms=at, status=event.data["status"])
            for event in events[0]
            if event.name == "MIGRATION" and (at := _since(window, event.at)) is not None
        ],
        cpu=[CpuTime(at_ms=(at_ns - window.start_ns) / _MS, used_ms=used) for at_ns, used in cpu],
    )


def _since(window: Window, at: float | None) -> float | None:
    """Return an event's own stamp (s since the epoch) in ms since the upgrade began."""
    if at is None:
        return None
    return (at * 1e9 - downtime.epoch_ns() - window.start_ns) / _MS


def _arrivals(beats: Sequence[Beat], window: Window) -> list[float]:
    first, last = window.start_ns - MARGIN_NS, window.end_ns + MARGIN_NS
    return [
        round((beat.host_ns - window.start_ns) / _MS, 3)
        for beat in beats
        if first <= beat.host_ns <= last
    ]


def rates(
    arrivals_ms: Sequence[float], start_ms: float, end_ms: float
) -> list[tuple[float, float]]:
    """Return (middle in ms, heartbeats per ms) for each whole piece from start to end."""
    number = max(0, int((end_ms - start_ms) / BIN_MS))
    counts = [0] * number
    for at in arrivals_ms:
        place = int((at - start_ms) // BIN_MS)
        if 0 <= place < number:
            counts[place] += 1
    return [(start_ms + (i + 0.5) * BIN_MS, n / BIN_MS) for i, n in enumerate(counts)]


def brownout(line: Timeline) -> Brownout | None:
    """Return how slow the guest became, and for how long; None without heartbeats before."""
    margin = MARGIN_NS / _MS
    arrivals = sorted([*line.old_beats_ms, *line.new_beats_ms])
    before = [rate for _, rate in rates(arrivals, -margin, 0)]
    usual = statistics.median(before) if before else 0.0
    if not usual:
        return None
    shares = [rate / usual for _, rate in rates(arrivals, 0, line.end_ms + margin)]
    return Brownout(
        lowest_share=min(shares, default=1.0),
        slow_ms=BIN_MS * sum(share < _SLOW for share in shares),
        slow_before_ms=BIN_MS * sum(rate < _SLOW * usual for rate in before),
    )
