# SPDX-License-Identifier: GPL-2.0-or-later
"""What a bench and a single upgrade look like: plotly figures.  Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from lab.measure.timeline import Timeline, rates
from lab.model import Phases
from lab.report.style import COLOURS, GRID, NEUTRAL, NEW, OLD, colours, log_axis, styled, wrapped
from lab.report.tables import digits, interval
from lab.results.figures import Bench, Row

_MIB = 2**20
#: Shown of the time before and after the upgrade (ms).
_AROUND_MS = 400.0
_PHASES = {"new_start": "new QEMU starts", "stop": "guest stops"}
_PHASES |= {"save": "state saved", "load": "state loaded", "move": "pages moved"}


@dataclass(frozen=True)
class Axis:
    """A part of the load that the pause is shown against."""

    name: str
    unit: str
    factor: int
    log: bool
    #: The other part, of which each value has a chart of its own.
    other: str


AXES = {
    "ram_bytes": Axis("RAM", "guest RAM, GiB", 2**30, True, "dirty_rate"),
    "dirty_rate": Axis("dirty rate", "rewritten, MiB/s", _MIB, False, "ram_bytes"),
}


def scaling(bench: Bench, part: str) -> list[go.Figure]:
    """The pause from outside against a part of the load, for each value of the other part."""
    other = AXES[part].other
    values = sorted({getattr(row, other) for row in bench.summary})
    figures = []
    for value in values:
        title = "Pause as seen from outside"
        if len(values) > 1:
            title += f", {AXES[other].unit}: {value / AXES[other].factor:g}"
        mine = [row for row in bench.summary if getattr(row, other) == value]
        figures.append(_against(bench, mine, part, title))
    return figures


def _against(bench: Bench, rows: Sequence[Row], part: str, title: str) -> go.Figure:
    """A line through the medians of each mechanism."""
    figure, axis, colour = go.Figure(), AXES[part], colours(bench)
    shown = [row for row in rows if "pause_outside_ms" in row.figures]
    for number, mechanism in enumerate(bench.request.mechanisms):
        mine = [row for row in shown if row.mechanism == mechanism]
        found = [row.figures["pause_outside_ms"] for row in mine]
        again = number >= len(COLOURS)  # the same colour once more
        if mine:
            figure.add_scatter(
                name=wrapped(mechanism),
                x=[getattr(row, part) / axis.factor for row in mine],
                y=[one.median for one in found],
                hovertext=[
                    f"{wrapped(mechanism, 40)}<br>median of {one.n}: {digits(one.median)} ms "
                    + interval(one, digits)
                    for one in found
                ],
                hoverinfo="text",
                mode="lines+markers",
                line={"color": colour[mechanism], "dash": "dash" if again else "solid"},
                marker={"symbol": "square-open" if again else "circle", "size": 8},
            )
    ticks = sorted({getattr(row, part) / axis.factor for row in rows})
    how = "log" if axis.log else "linear"  # a rate may be nothing
    figure.update_xaxes(type=how, tickvals=ticks, title_text=axis.unit)
    figure.update_yaxes(**log_axis([row.figures["pause_outside_ms"].median for row in shown]))
    return styled(figure, title, "ms, logarithmic", 420)


def timeline(line: Timeline) -> go.Figure:
    """One upgrade: the memory of both QEMUs, and the guest's heartbeats, on one clock."""
    figure = make_subplots(rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.08)
    for name, colour, values in (
        ("memory of the old QEMU (PSS)", OLD, [s.old_pss_bytes for s in line.samples]),
        ("memory of the new QEMU (PSS)", NEW, [s.new_pss_bytes for s in line.samples]),
    ):
        figure.add_scatter(
            name=name,
            x=[sample.at_ms for sample in line.samples],
            y=[value / _MIB for value in values],
            mode="lines+markers",
            stackgroup="memory",
            line={"color": colour},
            row=1,
            col=1,
        )
    first, last = -_AROUND_MS, line.end_ms + _AROUND_MS
    for name, colour, beats in (
        ("heartbeats from the old QEMU", OLD, line.old_beats_ms),
        ("heartbeats from the new QEMU", NEW, line.new_beats_ms),
    ):
        pieces = rates(beats, first, last)
        figure.add_bar(
            name=name,
            x=[at for at, _ in pieces],
            y=[rate for _, rate in pieces],
            marker_color=colour,
            row=2,
            col=1,
        )
    marks = {"begin": 0.0, "STOP": line.stop_ms, "RESUME": line.resume_ms, "end": line.end_ms}
    for place, (name, at) in enumerate(marks.items()):
        if at is not None:
            figure.add_vline(x=at, line_dash="dot", line_width=1, line_color=NEUTRAL)
            figure.add_annotation(
                x=at, y=1.0, yref="paper", yshift=9 + 15 * place, text=name, showarrow=False
            )
    figure.update_layout(barmode="stack", bargap=0)
    figure.update_xaxes(range=[first, last], ticks="outside", tickcolor=GRID, ticklen=7)
    figure.update_xaxes(title_text="ms since the first command of the upgrade", row=2, col=1)
    styled(figure, "", "MiB", 540)
    figure.update_layout(margin={"t": 90, "r": 40}, legend={"y": -0.15})
    figure.update_yaxes(title_text="heartbeats per ms", row=2, col=1)
    return figure


def phases(found: Phases) -> go.Figure | None:
    """The phases that the mechanism reports; None when it reports none."""
    told = {name: ms for name, ms in found.model_dump().items() if ms is not None}
    if not told:
        return None
    figure = go.Figure(
        go.Bar(
            x=list(told.values()),
            y=[_PHASES.get(name, name) for name in told],
            orientation="h",
            marker_color=OLD,
            text=[f"{ms:.1f} ms" for ms in told.values()],
            cliponaxis=False,
        )
    )
    figure.update_yaxes(autorange="reversed")
    styled(figure, "", "", 260)
    figure.update_layout(margin={"t": 10, "r": 70})  # a short bar's text is beside it
    figure.update_xaxes(title_text="ms")
    return figure
