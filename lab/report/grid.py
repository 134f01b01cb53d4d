# SPDX-License-Identifier: GPL-2.0-or-later
"""Every old QEMU by every new one as a table: on the screen, and as a page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from rich.console import Console
from rich.table import Table
from rich.text import Text

from lab.report import page
from lab.report.page import Section
from lab.report.words import State, Words
from lab.results import pairing
from lab.results.pairing import Grid, PairAnswer, PairRun

#: The page's file, beside the table's.
PAGE = "report.html"
_COLOURS = {
    PairAnswer.PASS: "green",
    PairAnswer.REFUSED: "dim",
    PairAnswer.ROLLED_BACK: "yellow",
    PairAnswer.UNKNOWN: "magenta",
    PairAnswer.HARMED: "bold red",
    PairAnswer.LOST: "bold red",
}
_STATES = {
    PairAnswer.PASS: State.PASS,
    PairAnswer.ROLLED_BACK: State.OPEN,
    PairAnswer.UNKNOWN: State.OPEN,
    PairAnswer.HARMED: State.FAIL,
    PairAnswer.LOST: State.FAIL,
}
#: What each answer means, for whoever reads the page alone.
MEANINGS = {
    PairAnswer.PASS: "the guest runs under the new QEMU, and every page was checked",
    PairAnswer.REFUSED: "before the guest was touched: this pair, or this host, cannot do it",
    PairAnswer.ROLLED_BACK: "the move failed, and the guest runs on under the old QEMU, undamaged",
    PairAnswer.UNKNOWN: "the lab could not tell; it is tried again the next time",
    PairAnswer.HARMED: "the guest runs, and has lost something",
    PairAnswer.LOST: "neither QEMU runs the guest, or both do",
}


def show(grid: Grid, console: Console | None = None) -> None:
    """Print the table to stdout, one for each mechanism, and the reasons below them."""
    console = console or Console(highlight=False)
    if not console.is_terminal:
        console = Console(file=console.file, width=132, highlight=False)
    for mechanism in grid.mechanisms:
        console.print(Text(f"by {mechanism}"))
        table = Table(box=None, pad_edge=False)
        table.add_column("from \\ to")
        for new in grid.news:
            table.add_column(new, overflow="fold")
        for old in grid.olds:
            runs = [pairing.cell(grid, old, new, mechanism) for new in grid.news]
            table.add_row(old, *(_text(run) for run in runs))
        console.print(table, "")
    for reason, where in _why(grid).items():
        console.print(Text(f"{', '.join(where)}: {reason}"))
    console.print(Text(counted(grid)))


def _text(run: PairRun | None) -> Text:
    return Text(run.answer, _COLOURS[run.answer]) if run else Text("")


def _why(grid: Grid) -> dict[str, list[str]]:
    """Return every reason with the cells that have it."""
    found: dict[str, list[str]] = {}
    for run in grid.runs:
        if run.reasons:
            cell = f"{run.old} to {run.new} by {run.mechanism}"
            where = found.setdefault(f"{run.answer}: {'; '.join(run.reasons)}", [])
            where += [cell] if cell not in where else []
    return found


def counted(grid: Grid) -> str:
    """Return how many cells have which answer, in words."""
    cells = {(run.old, run.new, run.mechanism) for run in grid.runs}
    shown = [pairing.cell(grid, *cell) for cell in cells]
    numbers = Counter(run.answer for run in shown if run)
    words = [f"{numbers[answer]} {answer}" for answer in PairAnswer if numbers[answer]]
    left = "" if grid.finished else "; not finished"
    return f"{len(cells)} cells: {', '.join(words) or 'none'}{left}"


def page_of(grid: Grid) -> str:
    """Return the page."""
    answers = {run.answer for run in grid.runs}
    state = State.PASS if grid.finished else State.OPEN
    if answers & {PairAnswer.UNKNOWN}:
        state = State.OPEN
    if answers & {PairAnswer.HARMED, PairAnswer.LOST}:
        state = State.FAIL
    return page.render(
        "Every old QEMU by every new one",
        Words(state, counted(grid), (f"Moved was: {grid.guest}.",)),
        sections=[*_tables(grid), *_reasons(grid), _qemus(grid)],
        remarks=[
            *(f"{answer}: {meaning}" for answer, meaning in MEANINGS.items()),
            *(
                f"host: {host.cpu}, {host.cores} cores, {host.distribution}, kernel {host.kernel}"
                for host in grid.hosts
            ),
            f"begun {grid.started}",
        ],
        command=grid.command,
    )


def _tables(grid: Grid) -> Iterator[Section]:
    for mechanism in grid.mechanisms:
        yield Section(
            f"By {mechanism}",
            heading=["from \\ to", *grid.news],
            body=[
                [
                    (old, ""),
                    *(_cell(pairing.cell(grid, old, new, mechanism)) for new in grid.news),
                ]
                for old in grid.olds
            ],
        )


def _cell(run: PairRun | None) -> tuple[str, str] | tuple[str, str, State]:
    if run is None:
        return "", ""
    pause = run.pause_ms.outside if run.pause_ms and run.answer is PairAnswer.PASS else None
    small = f"{run.machine}, {pause:.0f} ms" if pause is not None else run.machine
    state = _STATES.get(run.answer)
    return (run.answer, small, state) if state else (run.answer, small)


def _reasons(grid: Grid) -> Iterator[Section]:
    if why := _why(grid):
        yield Section(
            "Why",
            heading=["what", "where"],
            body=[[(reason, ""), (", ".join(where), "")] for reason, where in why.items()],
        )


def _qemus(grid: Grid) -> Section:
    """Say which QEMU each name was."""
    known = {
        name: side
        for run in grid.runs
        for name, side in ((run.old, run.old_qemu), (run.new, run.new_qemu))
        if side
    }
    return Section(
        "The QEMUs",
        heading=["name", "version", "SHA-256"],
        body=[[(name, ""), (side.version, ""), (side.sha256, "")] for name, side in known.items()],
    )
