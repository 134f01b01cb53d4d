# SPDX-License-Identifier: GPL-2.0-or-later
"""What all charts have in common: colours, labels, axes.  Pure."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import plotly.graph_objects as go

from lab.results.figures import Bench

#: Told apart by those who see no red or green, on white and on black (after Okabe and Ito).
OLD, NEW = "#0072b2", "#d55e00"
COLOURS = (OLD, NEW, "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6d31")
#: What belongs to no mechanism; lines behind the data.
NEUTRAL, GRID = "#888888", "rgba(136, 136, 136, 0.3)"
#: How long a line of a label gets (characters).
_LABEL_WIDTH = 18
#: The marks that a logarithmic axis may have in each decade, in tenths, from many to few.
_MARKS = (range(10, 100), range(10, 100, 5), range(10, 100, 10), (10, 20, 50), (10, 30), (10,))
#: How much of the axis a mark needs for itself.
_MARK_SHARE = 0.162


def colours(bench: Bench) -> dict[str, str]:
    """Return the colour of each mechanism: the same in every chart of a bench."""
    names = bench.request.mechanisms
    return {name: COLOURS[number % len(COLOURS)] for number, name in enumerate(names)}


def styled(figure: go.Figure, title: str, y: str, height: int = 380) -> go.Figure:
    """Give a figure its title, its height and a background that lets the page's through."""
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


def wrapped(label: str, width: int = _LABEL_WIDTH) -> str:
    """Return a mechanism's label on lines of at most `width` characters, as plotly's markup.

    It is broken before what a label is put together with (``@``, ``::``, ``+``, ``:unsampled``) and
    before slashes, and inside a part only where that is too long by itself.
    """
    parts = re.split(r"(?=@|(?<!:):|\+|/)", label)
    pieces = [part[i : i + width] for part in parts for i in range(0, len(part), width)]
    lines = [""]
    for piece in pieces:
        if len(lines[-1]) + len(piece) <= width:
            lines[-1] += piece
        else:
            lines.append(piece)
    return "<br>".join(html.escape(line, quote=False) for line in lines if line)


def log_axis(values: Sequence[float]) -> dict[str, Any]:
    """Return a logarithmic axis that shows all of `values`, with a few round marks."""
    there = [value for value in values if value > 0] or [1.0]
    low, high = min(there) / 1.25, max(there) * 1.25
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    choices = [
        [mark for mark in (m * 10.0**d / 10 for d in decades for m in marks) if low <= mark <= high]
        for marks in _MARKS
    ]
    room = _MARK_SHARE * math.log(high / low)
    marks = next((some for some in choices if _apart(some, room)), choices[-1])
    return {
        "type": "log",
        "range": [math.log10(low), math.log10(high)],
        "tickvals": marks,
        "ticktext": [f"{mark:g}" for mark in marks],
    }


def _apart(marks: Sequence[float], room: float) -> bool:
    """Whether there are any, and the labels of none run into each other."""
    return bool(marks) and all(math.log(b / a) >= room for a, b in pairwise(marks))
