# SPDX-License-Identifier: GPL-2.0-or-later
"""What a bench and a single upgrade look like: plotly figures.  Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from lab.measure.timeline import Timeline, rates
from lab.model import Phases
from lab.results.figures import Row
from lab.results.statistics import Estimate

_MIB = 2**20
#: Heard before and after the upgrade, as far as it is shown (ms).
_AROUND_MS = 400.0
#: Told apart by those who see no red or green (Okabe and Ito's palette).
_OLD, _NEW, _THIRD = "#0072b2", "#d55e00", "#009e73"
_COLOURS = (_OLD, _NEW, _THIRD, "#cc79a7", "#e69f00", "#56b4e9", "#999999", "#f0e442")
#: 1, 2, 5, 10, 20 ...
_LOG = {"type": "log", "dtick": "D2"}
_CLOCKS = {
    "pause_qmp_ms": ("STOP to RESUME", _OLD),
    "pause_outside_ms": ("outside", _NEW),
    "pause_inside_ms": ("inside", _THIRD),
}


def _styled(figure: go.Figure, title: str, y: str, height: int = 380) -> go.Figure:
    figure.update_layout(
        title={"text": title, "font": {"size": 15}},
        height=height,
        margin={"l": 60, "r": 20, "t": 50, "b": 50},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        legend={"orientation": "h", "y": -0.2},
    )
    figure.update_yaxes(title_text=y)
    return figure


def _bars(rows: Sequence[Row], name: str, title: str, colour: str) -> go.Bar:
    """Return a bar for each mechanism, with the interval of its median."""
    found: list[tuple[str, Estimate]] = [
        (row.mechanism, row.figures[name]) for row in rows if name in row.figures
    ]
    return go.Bar(
        name=title,
        x=[mechanism for mechanism, _ in found],
        y=[one.median for _, one in found],
        marker_color=colour,
        error_y={
            "type": "data",
            "symmetric": False,
            "color": "#888",
            "array": [(one.high or one.median) - one.median for _, one in found],
            "arrayminus": [one.median - (one.low or one.median) for _, one in found],
        },
    )


def pauses(rows: Sequence[Row]) -> go.Figure:
    """The pause by three clocks, a group of bars for each mechanism."""
    figure = go.Figure([_bars(rows, name, *how) for name, how in _CLOCKS.items()])
    figure.update_yaxes(**_LOG)
    return _styled(figure, "Pause by three clocks (logarithmic)", "ms")


def one_figure(rows: Sequence[Row], name: str, title: str, y: str, *, log: bool) -> go.Figure:
    """Any other figure, a bar for each mechanism."""
    figure = go.Figure([_bars(rows, name, title, _OLD)])
    figure.update_yaxes(**(_LOG if log else {"rangemode": "tozero"}))
    return _styled(figure, title, y, 300)


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


def scaling(rows: Sequence[Row], part: str) -> list[go.Figure]:
    """The pause from outside against a part of the load, for each value of the other part."""
    other = AXES[part].other
    values = sorted({getattr(row, other) for row in rows})
    figures = []
    for value in values:
        title = "Pause from outside"
        if len(values) > 1:
            title += f", {AXES[other].unit}: {value / AXES[other].factor:g}"
        mine = [row for row in rows if getattr(row, other) == value]
        figures.append(_against(mine, part, title))
    return figures


def _against(rows: Sequence[Row], part: str, title: str) -> go.Figure:
    """A line for each mechanism."""
    figure, axis = go.Figure(), AXES[part]
    for number, mechanism in enumerate(dict.fromkeys(row.mechanism for row in rows)):
        points = [
            (getattr(row, part) / axis.factor, row.figures["pause_outside_ms"].median)
            for row in rows
            if row.mechanism == mechanism and "pause_outside_ms" in row.figures
        ]
        figure.add_scatter(
            name=mechanism,
            x=[x for x, _ in points],
            y=[y for _, y in points],
            mode="lines+markers",
            line={"color": _COLOURS[number % len(_COLOURS)]},
        )
    ticks = sorted({getattr(row, part) / axis.factor for row in rows})
    how = "log" if axis.log else "linear"  # a rate may be nothing
    figure.update_xaxes(type=how, tickvals=ticks, title_text=axis.unit)
    figure.update_yaxes(**_LOG)
    return _styled(figure, title, "ms (logarithmic)", 420)


def timeline(line: Timeline) -> go.Figure:
    """One upgrade: the memory of both QEMUs, and the guest's heartbeats, on one clock."""
    figure = make_subplots(rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.08)
    for name, colour, values in (
        ("memory of the old QEMU (PSS)", _OLD, [s.old_pss_bytes for s in line.samples]),
        ("memory of the new QEMU (PSS)", _NEW, [s.new_pss_bytes for s in line.samples]),
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
        ("heartbeats from the old QEMU", _OLD, line.old_beats_ms),
        ("heartbeats from the new QEMU", _NEW, line.new_beats_ms),
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
            figure.add_vline(x=at, line_dash="dot", line_width=1)
            figure.add_annotation(
                x=at, y=1.0 + 0.045 * place, yref="paper", text=name, showarrow=False
            )
    figure.update_layout(barmode="stack", bargap=0)
    figure.update_xaxes(range=[first, last])
    figure.update_xaxes(title_text="ms since the first command of the upgrade", row=2, col=1)
    styled = _styled(figure, "", "MiB", 540)
    styled.update_layout(margin={"t": 90}, legend={"y": -0.15})
    styled.update_yaxes(title_text="heartbeats per ms", row=2, col=1)
    return styled


def phases(found: Phases) -> go.Figure | None:
    """The parts of the upgrade that the mechanism tells of; None when it tells of none."""
    told = {name: ms for name, ms in found.model_dump().items() if ms is not None}
    if not told:
        return None
    figure = go.Figure(
        go.Bar(
            x=list(told.values()),
            y=list(told),
            orientation="h",
            marker_color=_OLD,
            text=[f"{ms:.1f} ms" for ms in told.values()],
        )
    )
    figure.update_yaxes(autorange="reversed")
    styled = _styled(figure, "Phases", "", 300)
    styled.update_xaxes(title_text="ms")
    return styled
