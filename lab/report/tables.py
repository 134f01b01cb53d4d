# SPDX-License-Identifier: GPL-2.0-or-later
"""A bench as tables: on the screen, and in ``bench.md`` as Markdown ready to paste."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from lab.base.files import write_whole
from lab.model import Side
from lab.results.figures import Bench, Figures, Load, Row, Run, Turn
from lab.results.statistics import Estimate

_MIB = 2**20
#: What each figure is called, in the order of the tables.
TITLES = {
    "pause_qmp_ms": "pause ms, STOP to RESUME",
    "pause_outside_ms": "pause ms, outside",
    "pause_inside_ms": "pause ms, inside",
    "total_ms": "total ms",
    "memory_ratio": "memory peak / before",
    "memory_pss_ratio": "memory peak / before, by PSS",
    "brownout_ms": "brownout ms",
    "huge_pages_kept": "huge pages kept",
}
assert set(TITLES) == set(Figures.model_fields)
#: The parts of a load in words, and as the heading of a column in MiB.
_LOADS = {"ram_bytes": ("RAM size", "RAM MiB"), "dirty_rate": ("dirty rate", "rewritten MiB/s")}
#: The figures whose ratio has a column of its own.
_RATIOS = {"pause_outside_ms": "pause, outside", "total_ms": "total"}
#: With fewer runs than this the median's interval cannot be narrower than their range.
_NARROWER_FROM = 6
#: A table on the screen (characters): what its first column needs, each other one with intervals,
#: each without, and how wide it may get in a file.
_LABEL_WIDTH, _CELL_WIDTH, _BARE_WIDTH, _FILE_WIDTH = 12, 16, 6, 132


def show(bench: Bench, console: Console | None = None) -> None:
    """Print a bench to stdout, one table for each load; intervals where there is room."""
    console = console or Console(highlight=False)
    if not console.is_terminal:
        console = Console(file=console.file, width=_FILE_WIDTH, highlight=False)
    for load, rows in by_load(bench):
        intervals = _LABEL_WIDTH + _CELL_WIDTH * len(rows) <= console.width
        for some in _fitting(rows, console.width) if not intervals else [rows]:
            console.print(_screen(bench, load, some, intervals=intervals), "")
    for line in remarks(bench):
        console.print(Text(line))


def _fitting(rows: Sequence[Row], width: int) -> Iterator[list[Row]]:
    """Yield the rows in as many tables without intervals as it takes for none to be too wide."""
    some: list[Row] = []
    used = _LABEL_WIDTH
    for row in rows:
        needed = max(len(row.mechanism), _BARE_WIDTH) + 2
        if some and used + needed > width:
            yield some
            some, used = [], _LABEL_WIDTH
        some.append(row)
        used += needed
    yield some


def _screen(bench: Bench, load: Load, rows: Sequence[Row], *, intervals: bool) -> Table:
    """Return the table of a load with a column for each mechanism: narrower than the page's."""
    table = Table(title=load_title(bench, load), title_justify="left", box=None, pad_edge=False)
    table.add_column("", min_width=_LABEL_WIDTH)
    for row in rows:
        table.add_column(row.mechanism, justify="right", no_wrap=True, overflow="fold")
    table.add_row("runs", *(Text(runs(row), "red" if row.failed else "") for row in rows))
    names = [*TITLES.values(), *ratio_titles(bench)]
    for name, across in zip(names, zip(*map(cells, rows), strict=True), strict=True):
        texts = [
            Text.assemble(median, ("\n" + around, "dim")) if intervals and around else median
            for median, around in across
        ]
        table.add_row(name, *texts)
    return table


def write(bench: Bench, path: Path) -> None:
    """Write a bench as Markdown."""
    write_whole(path, "\n".join(markdown(bench)) + "\n")


def markdown(bench: Bench) -> Iterator[str]:
    """Yield the lines of ``bench.md``."""
    yield f"# Bench of {bench.started}"
    yield ""
    yield from (f"- {line}" for line in (*circumstances(bench), *remarks(bench)))
    if not bench.finished:
        yield "- not finished: some runs are still to be done"
    for load, rows in by_load(bench):
        yield from ("", f"## {load_title(bench, load)}", "")
        body = [
            [f"`{row.mechanism}`", runs(row), *(" ".join(cell).strip() for cell in cells(row))]
            for row in rows
        ]
        yield from _table(["mechanism", "runs", *TITLES.values(), *ratio_titles(bench)], body)
        yield from ("", "<details><summary>Every figure</summary>", "")
        yield from _table(*_every_figure(bench, rows))
        yield from ("", "</details>")
    if differ := what_differs(bench.summary):
        names = " and ".join(_LOADS[name][0] for name in differ)
        yield from ("", f"## Pause and total against {names}")
        for mechanism in dict.fromkeys(row.mechanism for row in bench.summary):
            mine = [row for row in bench.summary if row.mechanism == mechanism]
            yield from ("", f"### `{mechanism}`", "")
            yield from _table(*_growth(mine, differ))


def one_line(run: Run) -> str:
    """Return what came of a run in a few words."""
    if run.faults:
        return "FAILED: " + "; ".join(run.faults)
    found = run.figures
    clocks = (found.pause_qmp_ms, found.pause_outside_ms, found.pause_inside_ms, found.total_ms)
    qmp, outside, inside, total = ("-" if ms is None else digits(ms) for ms in clocks)
    return (
        f"pause {qmp} ms STOP to RESUME, {outside} ms outside, {inside} ms inside; total {total} ms"
    )


def digits(value: float) -> str:
    """Return `value` with three digits, or all of those before the point."""
    places = next((n for n, limit in enumerate((99.95, 9.995, 0.9995)) if value >= limit), 3)
    return f"{value:.{places}f}"


def flat(text: str) -> str:
    """Return `text` on one line: what QEMU says may have several."""
    return " ".join(text.split())


def _percent(value: float) -> str:
    return f"{value:.0%}"


def cells(row: Row) -> list[tuple[str, str]]:
    """Return for every figure, and for the ratios, the median and its interval."""
    own = [_cell(row.figures.get(name), _format(name)) for name in TITLES]
    return own + [_cell(row.ratios.get(name), digits) for name in _RATIOS]


def _cell(found: Estimate | None, write_number: Callable[[float], str]) -> tuple[str, str]:
    if found is None:
        return "-", ""
    return write_number(found.median), interval(found, write_number)


def interval(found: Estimate, write_number: Callable[[float], str]) -> str:
    """Return the interval of a median in brackets; nothing where there is none."""
    if found.low is None or found.high is None:
        return ""
    return f"[{write_number(found.low)}, {write_number(found.high)}]"


def _format(name: str) -> Callable[[float], str]:
    return _percent if name == "huge_pages_kept" else digits


def ratio_titles(bench: Bench) -> list[str]:
    """Return what the columns of ratios are called."""
    return [f"{title} / {bench.request.reference}" for title in _RATIOS.values()]


def _every_figure(bench: Bench, rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    heading = ["mechanism", "figure", "n", "median", "95 % interval", "p95", "min", "max"]
    heading += [f"/ {bench.request.reference}", "95 % interval"]
    body = []
    for row in rows:
        for name, found in row.figures.items():
            write_number, ratio = _format(name), row.ratios.get(name)
            body.append(
                [
                    f"`{row.mechanism}`",
                    TITLES[name],
                    str(found.n),
                    write_number(found.median),
                    interval(found, write_number) or "-",
                    write_number(found.maximum if found.p95 is None else found.p95),
                    write_number(found.minimum),
                    write_number(found.maximum),
                    digits(ratio.median) if ratio else "-",
                    (interval(ratio, digits) if ratio else "") or "-",
                ]
            )
    return heading, body


def what_differs(rows: Sequence[Row]) -> list[str]:
    """Return which parts of the load there are several of."""
    return [name for name in _LOADS if len({getattr(row, name) for row in rows}) > 1]


def _growth(rows: Sequence[Row], differ: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    names = [name for name in TITLES if name.endswith("_ms")]
    body = [
        [
            *(f"{getattr(row, name) / _MIB:g}" for name in differ),
            *(" ".join(_cell(row.figures.get(name), digits)).strip() for name in names),
        ]
        for row in rows
    ]
    return [*(_LOADS[name][1] for name in differ), *(TITLES[name] for name in names)], body


def _table(heading: Sequence[str], body: Iterable[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(heading)} |"
    yield "|---" * len(heading) + "|"
    yield from (f"| {' | '.join(cells)} |" for cells in body)


def by_load(bench: Bench) -> Iterator[tuple[Load, list[Row]]]:
    """Yield each load with its rows, once there is more than a warm-up to show."""
    for load in dict.fromkeys(row.load for row in bench.summary):
        rows = [row for row in bench.summary if row.load == load]
        if any(row.figures or row.failed for row in rows):
            yield load, rows


def load_title(bench: Bench, load: Load) -> str:
    """Return what the part of a load is called."""
    touched = next(run.touched_bytes for run in bench.runs if run.ram_bytes == load.ram_bytes)
    return (
        f"{load.ram_bytes // _MIB} MiB of RAM, {touched // _MIB} MiB filled"
        f"{bench.request.rate_words(load)}"
    )


def runs(row: Row) -> str:
    """Return how many runs count, and how many failed."""
    counted = max((found.n for found in row.figures.values()), default=0)
    return f"{counted}" + (f", {row.failed} failed" if row.failed else "")


def circumstances(bench: Bench) -> Iterator[str]:
    """Yield with what, and where, it was measured."""
    here = bench.host
    yield f"command: `{bench.command}`"
    for name, side in (("old", bench.old), ("new", bench.new)):
        if side:
            yield f"{name}: {_side(side)}"
    yield (
        f"host: {here.cpu}, {here.cores} cores, {here.memory_bytes // _MIB} MiB"
        + (", itself virtual" if here.virtual else "")
        + f"; {here.distribution}, kernel {here.kernel}, huge pages {here.thp}"
    )


def _side(side: Side) -> str:
    release = f", release {side.release}" if side.release else ""
    return f"QEMU {side.version}{release}, SHA-256 {side.sha256[:16]}…"


def remarks(bench: Bench) -> Iterator[str]:
    """Yield what a reader of the tables has to know, one line each."""
    request = bench.request
    yield (
        f"median [95 % bootstrap interval] of {_rounds(request.repeats)} after a warm-up"
        f"; ratios are to {request.reference}, round by round (docs/measuring.md)"
        + (
            f"; with fewer than {_NARROWER_FROM} runs the interval is their range"
            if request.repeats < _NARROWER_FROM
            else ""
        )
    )
    if any(run.accel == "tcg" for run in bench.runs):
        yield "accelerator TCG: compare its times with each other, not with KVM's"
    if noise := [run.noise_ms for run in bench.runs if run.noise_ms is not None]:
        yield (
            "noise: the longest gap between heartbeats in the second before an upgrade was "
            f"{digits(statistics.median(noise))} ms (median), {digits(max(noise))} ms (largest)"
        )
    for run in bench.runs:
        if run.faults:
            reasons = flat("; ".join(run.faults))
            yield f"failed: {_where(bench, run)}: {reasons} ({run.run_directory})"
    lacking: dict[tuple[str, str], list[str]] = {}
    for entry in bench.inapplicable:
        sizes = lacking.setdefault((entry.mechanism, flat(entry.reason)), [])
        sizes.append(f"{entry.ram_bytes // _MIB}")
    for (mechanism, reason), sizes in lacking.items():
        yield f"not possible: {mechanism}, {', '.join(sizes)} MiB: {reason}"
    for entry in bench.troubles:
        yield f"inconclusive: {_where(bench, entry)}: {flat(entry.reason)}"


def _rounds(number: int) -> str:
    return f"{number} interleaved rounds" if number > 1 else "one round"


def _where(bench: Bench, entry: Turn) -> str:
    return f"{entry.mechanism}, {bench.request.words(entry.load)}, round {entry.round}"
