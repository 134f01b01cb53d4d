# SPDX-License-Identifier: GPL-2.0-or-later
"""``report.html``: one file with everything in it, of a bench or of a single upgrade."""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import plotly.graph_objects as go
from markupsafe import Markup, escape
from plotly.offline import get_plotlyjs

from lab.measure.timeline import Timeline
from lab.model import Result
from lab.report import charts, screen, strips, tables, words
from lab.report.tables import TITLES, digits
from lab.report.templating import environment
from lab.report.words import State, Words
from lab.results.figures import Bench, Run

#: A cell of a table: what it says, in small print below what else, and whether that is good.
Cell = tuple[str, str] | tuple[str, str, State]
_MIB = 2**20
#: Where the label of a mechanism may be broken.
_JOINTS = re.compile(r"(?=@|(?<!:):|\+|/)|(?<=,)(?=\S)")
#: What has a chart of its own beside the pause: title, unit, whether its axis is logarithmic.
_CHARTS = {
    "total_ms": ("Whole upgrade", "ms", True),
    "memory_ratio": ("Memory: peak / before", "", False),
    "brownout_ms": ("Brownout", "ms", False),
}


@dataclass(frozen=True)
class Section:
    """A part of the page."""

    title: str = ""
    text: Sequence[str] = ()
    heading: Sequence[str] = ()
    body: Sequence[Sequence[Cell]] = ()
    charts: Sequence[Markup] = field(default=())


def of_bench(bench: Bench, lines: dict[str, Timeline]) -> str:
    """Return the page of a bench; `lines` are timelines of runs by their directory's name."""
    return render(
        f"Bench of {bench.started[:16].replace('T', ', ')} UTC",
        words.of_bench(bench),
        sections=list(_bench_sections(bench, lines)),
        remarks=[*tables.remarks(bench), *tables.circumstances(bench)],
        command=bench.command,
    )


def _bench_sections(bench: Bench, lines: dict[str, Timeline]) -> Iterator[Section]:
    for load, rows in tables.by_load(bench):
        yield Section(
            tables.load_title(bench, load),
            heading=["mechanism", "runs", *TITLES.values(), *tables.ratio_titles(bench)],
            body=[
                [(row.mechanism, ""), (tables.runs(row), ""), *tables.cells(row)] for row in rows
            ],
            charts=[
                _html(strips.pauses(bench, rows)),
                *(
                    _html(strips.one_figure(bench, rows, name, *how, log=log))
                    for name, (*how, log) in _CHARTS.items()
                ),
            ],
        )
    for axis in tables.what_differs(bench.summary):
        yield Section(
            f"Pause against {charts.AXES[axis].name}",
            charts=[_html(chart) for chart in charts.scaling(bench, axis)],
        )
    for run in typical(bench):
        if line := lines.get(run.run_directory):
            yield Section(
                f"One run: {run.mechanism}, {bench.request.words(run.load)}, round {run.round}",
                text=[
                    "The run whose pause as seen from outside is the median: " + run.run_directory
                ],
                charts=[_html(charts.timeline(line))],
            )


def typical(bench: Bench) -> Iterator[Run]:
    """Yield for each mechanism the run of median pause under the largest load."""
    largest = max((row.load for row in bench.summary), default=None)
    there = [
        run
        for run in bench.runs
        if run.load == largest and run.round and run.figures.pause_outside_ms is not None
    ]
    for row in bench.summary:
        mine = [run for run in there if run.case == row.case]
        if mine:
            low = statistics.median_low([run.figures.pause_outside_ms or 0.0 for run in mine])
            yield next(run for run in mine if run.figures.pause_outside_ms == low)


def of_run(result: Result, line: Timeline | None) -> str:
    """Return the page of a single upgrade."""
    parts = charts.phases(result.phases_ms)
    sections = [Section(body=[[(name, ""), (text, "")] for name, text in screen.rows(result)])]
    if line:
        sections.append(Section("Timeline", charts=[_html(charts.timeline(line))]))
    if parts:
        sections.append(Section("Phases", charts=[_html(parts)]))
    return render(
        f"{result.guest} guest, {result.ram_bytes // _MIB} MiB, by {result.mechanism}: "
        f"QEMU {result.old.version} to {result.new.version}",
        words.of_run(result),
        reasons=result.reasons,
        sections=sections,
        remarks=[
            *result.notes,
            f"host: {result.host.cpu}, {result.host.cores} cores, {result.host.distribution}, "
            f"kernel {result.host.kernel}",
            f"limits: pause {digits(result.limits.pause_ms)} ms, memory "
            f"{digits(result.limits.memory_ratio)} times what it was before",
        ],
        command=result.reproduce,
    )


def _html(figure: go.Figure) -> Markup:
    text = figure.to_html(
        full_html=False,
        include_plotlyjs=False,
        config={"responsive": True, "displayModeBar": False},
    )
    return Markup(text)  # noqa: S704 -- plotly's own markup


def _breakable(text: str) -> Markup:
    """Return `text` with places where lines may break in labels and in lists of them."""
    safe = re.sub(r"\S*[@,]\S*", lambda name: _JOINTS.sub("<wbr>", name[0]), str(escape(text)))
    return Markup(safe)  # noqa: S704 -- escaped above


def render(
    title: str,
    verdict: Words,
    *,
    sections: Sequence[Section],
    remarks: Sequence[str],
    command: str,
    reasons: Sequence[str] = (),
) -> str:
    """Return a page; the library that draws is in it where there is something to draw."""
    drawn = any(section.charts for section in sections)
    templates = environment()
    templates.filters["breakable"] = _breakable
    return templates.get_template("report.html").render(
        title=title,
        verdict=verdict,
        reasons=reasons,
        sections=sections,
        remarks=remarks,
        command=command,
        plotly_js=Markup(get_plotlyjs()) if drawn else "",  # noqa: S704 -- the library itself
    )
