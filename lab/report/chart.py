# SPDX-License-Identifier: GPL-2.0-or-later
"""The pause of each mechanism against dirty rate and RAM, as SVG.  Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from lab.base.errors import UsageError
from lab.report.charts import AXES
from lab.report.style import log_axis
from lab.report.templating import environment
from lab.results.figures import Bench, Row

#: The figure that is drawn.
_FIGURE = "pause_qmp_ms"
#: The panels' left edges, and their size: one alone is as wide as two (user units).
_LEFTS, _TOP, _HEIGHT = (70.0, 482.0), 84.0, 250.0
_WIDTHS = {1: 742.0, 2: 330.0}
#: Between the frame and the first and last value.
_MARGIN = 24.0
#: There are as many colours in the template.
_MOST = 5


@dataclass(frozen=True)
class Dot:
    """A median, and the range of its runs."""

    x: float
    y: float
    top: float
    bottom: float


@dataclass(frozen=True)
class Plot:
    """The pause against one part of the load."""

    left: float
    width: float
    title: str
    unit: str
    ticks: Sequence[tuple[float, str]]
    #: For each mechanism, in the order of the legend.
    lines: Sequence[Sequence[Dot]]


def draw(bench: Bench) -> str:
    """Return the chart: a panel for each part of the load of which the bench has several values.

    The other part is at its highest value there.  Raises UsageError where there is nothing to draw,
    or more than can be told apart.
    """
    names = list(bench.request.mechanisms)
    rows = [row for row in bench.summary if _FIGURE in row.figures]
    parts = [part for part in ("dirty_rate", "ram_bytes") if len(_values(rows, part)) > 1]
    if not parts:
        raise UsageError(
            "there is nothing to draw the pause against",
            hint="have a bench with several dirty rates or RAM sizes: --dirty-rate 0,50M,200M",
        )
    if len(names) > _MOST:
        raise UsageError(f"{len(names)} mechanisms cannot be told apart in one chart")
    shown = [row for part in parts for row in _shown(rows, part)]
    ranges = [row.figures[_FIGURE] for row in shown]
    marks = log_axis([value for one in ranges for value in (one.minimum, one.maximum)])
    low, high = (float(end) for end in marks["range"])

    def level(ms: float) -> float:
        share = (math.log10(max(ms, 10**low)) - low) / (high - low)
        return round(_TOP + _HEIGHT * (1 - share), 1)

    page = environment().get_template("chart.svg")
    return page.render(
        title=_title(bench),
        names=names,
        panels=[
            _panel(_shown(rows, part), part, names, (left, _WIDTHS[len(parts)]), level)
            for part, left in zip(parts, _LEFTS, strict=False)
        ],
        levels=[(level(ms), f"{ms:g}") for ms in marks["tickvals"]],
        top=_TOP,
        height=_HEIGHT,
    )


def _values(rows: Sequence[Row], part: str) -> list[int]:
    return sorted({getattr(row, part) for row in rows})


def _shown(rows: Sequence[Row], part: str) -> list[Row]:
    """Return the rows of the panel against `part`."""
    other = AXES[part].other
    highest = max(_values(rows, other))
    return [row for row in rows if getattr(row, other) == highest]


def _title(bench: Bench) -> str:
    assert bench.old  # there are runs
    assert bench.new
    accel = bench.runs[0].accel.upper()
    return f"Pause, STOP to RESUME: QEMU {bench.old.version} to {bench.new.version} under {accel}"


def _panel(
    rows: Sequence[Row],
    part: str,
    names: Sequence[str],
    across: tuple[float, float],
    level: Callable[[float], float],
) -> Plot:
    axis, values = AXES[part], _values(rows, part)
    left, width = across
    other = AXES[axis.other]
    fixed = getattr(rows[0], axis.other) / other.factor

    scale: Callable[[float], float] = math.log if axis.log else float
    first, last = scale(values[0]), scale(values[-1])

    def place(value: int) -> float:
        share = (scale(value) - first) / (last - first)
        return round(left + _MARGIN + (width - 2 * _MARGIN) * share, 1)

    def dots(name: str) -> Iterator[Dot]:
        for row in sorted(rows, key=lambda row: int(getattr(row, part))):
            if row.mechanism == name:
                found = row.figures[_FIGURE]
                ends = level(found.maximum), level(found.minimum)
                yield Dot(place(getattr(row, part)), level(found.median), *ends)

    return Plot(
        left=left,
        width=width,
        title=f"{other.unit}: {fixed:g}",
        unit=axis.unit,
        ticks=[(place(value), f"{value / axis.factor:g}") for value in values],
        lines=[list(dots(name)) for name in names],
    )
