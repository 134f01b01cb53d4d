# SPDX-License-Identifier: GPL-2.0-or-later
"""Every run of a bench as a dot, with the medians: plotly figures.  Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from lab.report.style import GRID, NEUTRAL, colours, log_axis, styled, wrapped
from lab.report.tables import digits, interval
from lab.results.figures import WARM_UP, Bench, Load, Row, Run
from lab.results.statistics import Estimate

#: The name of each clock's pause, and the mark of its runs.
_CLOCKS = {
    "pause_qmp_ms": ("STOP to RESUME", "circle"),
    "pause_outside_ms": ("outside", "square"),
    "pause_inside_ms": ("inside", "diamond"),
}
#: Heights: a lane, a line of a label, the title above the rows, the axis below them (px).
_LANE_PX, _LINE_PX, _ABOVE_PX, _BELOW_PX = 18, 15, 70, 50
#: The marks as letters.
_GLYPHS = {"circle": "●", "square": "■", "diamond": "◆"}
#: How much of its lane the dots are spread over.
_JITTER = 0.7


@dataclass(frozen=True)
class Lane:
    """Where the runs of one mechanism lie, by one figure."""

    mechanism: str
    #: The figure's name in words; empty where the chart has no other.
    words: str
    symbol: str
    #: In the middle of the lane.
    y: float
    #: Of the lane, in rows.
    height: float
    colour: str
    found: Estimate
    #: The round and the value of each run that counts.
    runs: Sequence[tuple[int, float]]


def strips(
    bench: Bench,
    rows: Sequence[Row],
    figures: Mapping[str, tuple[str, str]],
    title: str,
    unit: str,
    *,
    log: bool,
) -> go.Figure:
    """Every run as a dot, with the median as a bar across and its interval as a thin line.

    Each mechanism has a row, and in it each of `figures` (words and mark) a lane.
    """
    lanes = list(_lanes(bench, rows, figures))
    figure = go.Figure([_intervals(lanes), _runs(lanes, unit), _medians(lanes, unit)])
    labels = [wrapped(row.mechanism) for row in rows]
    lines = max((label.count("<br>") + 1 for label in labels), default=1)
    row_px = max(_LANE_PX * max(len(figures), 2), _LINE_PX * lines + 6)
    styled(figure, title, "", _ABOVE_PX + _BELOW_PX + row_px * len(rows))
    figure.update_layout(hovermode="closest", margin={"l": 20, "t": _ABOVE_PX})
    if len(figures) > 1:
        key = "\u2002 ".join(f"{_GLYPHS[symbol]} {words}" for words, symbol in figures.values())
        figure.update_layout(title_subtitle={"text": key, "font_size": 13})
    figure.update_layout(showlegend=False)
    figure.update_yaxes(
        range=[len(rows) - 0.5, -0.5],
        tickvals=list(range(len(rows))),
        ticktext=labels,
        showgrid=False,
        zeroline=False,
        automargin=True,
    )
    for number in range(1, len(rows)):
        figure.add_hline(y=number - 0.5, line_width=1, line_color=GRID)
    values = [value for lane in lanes for _, value in lane.runs]
    title = f"{unit}, logarithmic" if log else unit
    figure.update_xaxes(title_text=title, **(log_axis(values) if log else _from_zero(values)))
    return figure


def _lanes(
    bench: Bench, rows: Sequence[Row], figures: Mapping[str, tuple[str, str]]
) -> Iterator[Lane]:
    height = 0.8 / len(figures)
    colour = colours(bench)
    counted: dict[tuple[Load, str], list[Run]] = {}
    for run in bench.runs:
        if run.round != WARM_UP and not run.faults:
            counted.setdefault(run.case, []).append(run)
    for place, row in enumerate(rows):
        for lane, (name, (words, symbol)) in enumerate(figures.items()):
            values = [(run.round, getattr(run.figures, name)) for run in counted.get(row.case, [])]
            if found := row.figures.get(name):
                yield Lane(
                    mechanism=row.mechanism,
                    words=f"{words}, " if len(figures) > 1 else "",
                    symbol=symbol,
                    y=place + (lane - (len(figures) - 1) / 2) * height,
                    height=height,
                    colour=colour[row.mechanism],
                    found=found,
                    runs=[(number, value) for number, value in values if value is not None],
                )


def _jitter(number: int) -> float:
    """Return where in its lane a round's dot lies, from -0.5 to 0.5: far from those around it."""
    return (number * 0.618034) % 1 - 0.5


def _runs(lanes: Sequence[Lane], unit: str) -> go.Scatter:
    """Return a dot for each run."""
    dots = [(lane, number, value) for lane in lanes for number, value in lane.runs]
    return go.Scatter(
        x=[value for _, _, value in dots],
        y=[lane.y + _jitter(number) * lane.height * _JITTER for lane, number, _ in dots],
        mode="markers",
        marker={
            "color": [lane.colour for lane, _, _ in dots],
            "symbol": [lane.symbol for lane, _, _ in dots],
            "size": 7,
            "opacity": 0.7,
        },
        hovertext=[
            f"{_hovered(lane)}round {number}: {digits(value)} {unit}".rstrip()
            for lane, number, value in dots
        ],
        hoverinfo="text",
    )


def _medians(lanes: Sequence[Lane], unit: str) -> go.Scatter:
    """Return a bar across each lane, where its median is."""
    return go.Scatter(
        x=[lane.found.median for lane in lanes],
        y=[lane.y for lane in lanes],
        mode="markers",
        marker={
            "symbol": "line-ns",
            "size": _LANE_PX * 0.6,
            "line": {"color": [lane.colour for lane in lanes], "width": 3},
        },
        hovertext=[
            f"{_hovered(lane)}median of {lane.found.n}: {digits(lane.found.median)} {unit}".rstrip()
            + f" {interval(lane.found, digits)}"
            for lane in lanes
        ],
        hoverinfo="text",
    )


def _hovered(lane: Lane) -> str:
    return f"{wrapped(lane.mechanism, 40)}<br>{lane.words}"


def _intervals(lanes: Sequence[Lane]) -> go.Scatter:
    """Return a thin line for the interval of each median."""
    known = [lane for lane in lanes if lane.found.low is not None]
    return go.Scatter(
        x=[x for lane in known for x in (lane.found.low, lane.found.high, None)],
        y=[y for lane in known for y in (lane.y, lane.y, None)],
        mode="lines",
        line={"color": NEUTRAL, "width": 1.5},
        hoverinfo="skip",
    )


def _from_zero(values: Sequence[float]) -> dict[str, Any]:
    return {"range": [0, 1.08 * max(values, default=0.0) or 1.0]}


def pauses(bench: Bench, rows: Sequence[Row]) -> go.Figure:
    """The pause of every run by three clocks."""
    return strips(bench, rows, _CLOCKS, "Pause by three clocks", "ms", log=True)


def one_figure(
    bench: Bench, rows: Sequence[Row], name: str, title: str, unit: str, *, log: bool
) -> go.Figure:
    """Any other figure of every run."""
    return strips(bench, rows, {name: ("", "circle")}, title, unit, log=log)
