# SPDX-License-Identifier: GPL-2.0-or-later
"""Two upgrades on one time axis, as SVG: where the guest runs, and how much memory.  Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from lab.base.errors import UsageError
from lab.measure.memory import MAX_ERROR
from lab.measure.timeline import Timeline
from lab.model import Memory, Result
from lab.report.templating import environment

#: Shown before the upgrade begins and after the longer one is complete, as a share of the latter.
_BEFORE, _AFTER = 0.06, 0.12
#: The plot's left and right edge, and the height of one panel (user units).
_LEFT, _RIGHT, _PANEL = 128.0, 812.0, 122.0
_FIRST_PANEL, _LANE, _LANE_STEP = 78.0, 28.0, 36.0
#: The memory chart: its lower edge, the height of 1.0, and the highest value shown.
_BOTTOM, _ONE, _HIGHEST = 474.0, 60.0, 2.2


@dataclass(frozen=True)
class Bar:
    """Something that lasts, in one of the two lanes."""

    x: float
    y: float
    width: float


@dataclass(frozen=True)
class Panel:
    """One upgrade."""

    name: str
    y: float
    lanes: Sequence[float]
    #: Where a process exists, and where the guest runs.
    exists: Sequence[Bar]
    runs: Sequence[Bar]
    pause: Bar
    label: str
    #: The memory line, and what is written beside it.
    line: str
    peak: str
    peak_x: float
    peak_y: float
    anchor: str


@dataclass(frozen=True)
class Scale:
    """From milliseconds to user units."""

    first_ms: float
    last_ms: float

    def x(self, at_ms: float) -> float:
        """Return where an instant is, within the plot."""
        share = (at_ms - self.first_ms) / (self.last_ms - self.first_ms)
        return round(_LEFT + (_RIGHT - _LEFT) * min(max(share, 0.0), 1.0), 1)

    def bar(self, from_ms: float, to_ms: float, y: float) -> Bar:
        """Return a bar from one instant to another."""
        x = self.x(from_ms)
        return Bar(x, y, round(self.x(to_ms) - x, 1))

    def ticks(self) -> Iterator[tuple[float, str]]:
        """Yield four to eight round numbers of seconds, and where they are."""
        rough = self.last_ms / 1e3 / 4
        unit = 10 ** math.floor(math.log10(rough))
        step = unit * max(factor for factor in (1, 2, 5) if factor * unit <= rough)
        for number in range(int(self.last_ms / 1e3 / step) + 1):
            yield self.x(number * step * 1e3), f"{number * step:g}"


def draw(*upgrades: tuple[Result, Timeline]) -> str:
    """Return the picture of two upgrades; raise UsageError if they do not belong in one."""
    if len({_load(result) for result, _ in upgrades}) > 1:
        raise UsageError("the two upgrades differ in their guests, accelerators or binaries")
    end_ms = max(line.end_ms for _, line in upgrades)
    scale = Scale(-_BEFORE * end_ms, (1 + _AFTER) * end_ms)
    page = environment().get_template("picture.svg")
    return page.render(
        title=_title(upgrades[0][0]),
        left=_LEFT,
        right=_RIGHT,
        lane=_LANE,
        bottom=_BOTTOM,
        levels=[(level, _level(level)) for level in (1, 2)],
        ticks=list(scale.ticks()),
        panels=[
            _panel(result, line, scale, _FIRST_PANEL + _PANEL * number)
            for number, (result, line) in enumerate(upgrades)
        ],
    )


def _load(result: Result) -> tuple[object, ...]:
    """Return what has to be the same for two upgrades to be compared."""
    return (
        result.ram_bytes,
        result.touched_bytes,
        result.dirty_rate,
        result.accel,
        result.old.sha256,
        result.new.sha256,
    )


def _title(result: Result) -> str:
    """Return what both upgrades have in common."""
    return (
        f"{result.ram_bytes / 2**30:g} GiB guest, rewriting {result.dirty_rate / 2**20:g} MiB/s "
        f"under {result.accel.upper()}: QEMU {result.old.version} to {result.new.version}"
    )


def _panel(result: Result, line: Timeline, scale: Scale, y: float) -> Panel:
    last_ms, pause_ms = scale.last_ms, result.pause_ms.outside
    if not result.memory or pause_ms is None or not line.old_beats_ms or not line.new_beats_ms:
        raise UsageError(f"{result.mechanism}: the pause or the memory was not measured")
    old, new = y, y + _LANE_STEP
    before, after = _longest_gap(line)
    points = [(scale.x(at), _level(share)) for at, share in _shares(result.memory, line)]
    if len(points) < 3:
        raise UsageError(
            f"{result.mechanism}: memory was read {len(points)} times, too few for a line",
            hint="docs/measuring.md says how to have it read throughout",
        )
    done = scale.x(line.end_ms)
    on_the_left = done < (_LEFT + _RIGHT) / 2
    return Panel(
        name=result.mechanism,
        y=y - 12,
        lanes=[old, new],
        exists=[scale.bar(scale.first_ms, line.end_ms, old), scale.bar(0.0, last_ms, new)],
        runs=[
            scale.bar(scale.first_ms, line.old_beats_ms[-1], old),
            scale.bar(line.new_beats_ms[0], last_ms, new),
        ],
        pause=scale.bar(before, after, y - 4),
        label=f"pause {pause_ms:.0f} ms, complete after {line.end_ms / 1e3:.2g} s",
        line=" ".join(f"{x},{level}" for x, level in points),
        peak=f"{result.mechanism}: peak {result.memory.ratio:.2f}",
        peak_x=done + 8 if on_the_left else done,
        peak_y=_level(1) + 24 if on_the_left else _level(result.memory.ratio) - 10,
        anchor="start" if on_the_left else "end",
    )


def _level(share: float) -> float:
    """Return the height of a multiple of the memory before."""
    return round(_BOTTOM - _ONE * min(share, _HIGHEST), 1)


def _shares(memory: Memory, line: Timeline) -> Iterator[tuple[float, float]]:
    """Yield the memory of both QEMUs, divided by the old one's before; bad readings left out."""
    whole = max(memory.pss_before_bytes, 1)
    for sample in line.samples:
        if sample.skew_bytes <= MAX_ERROR * whole and sample.at_ms <= line.end_ms:
            yield sample.at_ms, (sample.old_pss_bytes + sample.new_pss_bytes) / whole


def _longest_gap(line: Timeline) -> tuple[float, float]:
    """Return the heartbeats before and after the longest silence of the upgrade."""
    arrivals = sorted([*line.old_beats_ms, *line.new_beats_ms])
    gaps = [pair for pair in pairwise(arrivals) if pair[1] >= 0]
    return max(gaps, key=lambda pair: pair[1] - pair[0])
