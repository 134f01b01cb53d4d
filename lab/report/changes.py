# SPDX-License-Identifier: GPL-2.0-or-later
"""What changed from one bench to another, as a table, and whether that is let pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table
from rich.text import Text

from lab.base.errors import ExitCode
from lab.report.tables import TITLES, digits
from lab.results import gate
from lab.results.figures import Bench
from lab.results.gate import Change, Condition

_MIB = 2**20


@dataclass(frozen=True)
class Gate:
    """What a bench is compared with, and the conditions on which that fails."""

    conditions: tuple[Condition, ...] = ()
    baseline: Bench | None = None

    def judge(self, bench: Bench, console: Console | None = None) -> ExitCode:
        """Show what changed since the baseline, and what is wrong with that."""
        console = console or Console(highlight=False)
        if self.baseline:
            show(self.baseline, bench, console)
        met = list(gate.alarms(self.conditions, self.baseline, bench))
        for sentence in met:
            console.print(Text(f"FAIL  {sentence}", "bold red"))
        if self.conditions and not met:
            console.print(Text("PASS  no condition is met", "bold green"))
        return ExitCode.FAIL if met else ExitCode.PASS


NO_GATE = Gate()


def show(before: Bench, after: Bench, console: Console) -> None:
    """Print every figure that both have, side by side."""
    for line in gate.differences(before, after):
        console.print(Text(f"note: {line}", "yellow"))
    found = gate.changes(before, after)
    if not found:
        console.print("nothing was measured in both")
        return
    table = Table(box=None, pad_edge=False)
    words, numbers = ("mechanism", "figure"), ("before", "after", "ratio", "95 % interval")
    rates = len({change.dirty_rate for change in found}) > 1
    for title in ("RAM MiB", *(["MiB/s"] if rates else []), *words, *numbers, ""):
        table.add_column(title, justify="right" if title in numbers else "left")
    for change in found:
        rate = [f"{change.dirty_rate / _MIB:g}"] if rates else []
        table.add_row(f"{change.ram_bytes // _MIB}", *rate, *_cells(change))
    console.print(table)
    shown = sum(bool(change.change and change.change.shown) for change in found)
    console.print(f"{shown} of {len(found)} figures differ by more than chance explains")


def _cells(change: Change) -> Sequence[str | Text]:
    found = change.change
    interval = (
        ""
        if found is None or found.low is None or found.high is None
        else (f"[{digits(found.low)}, {digits(found.high)}]")
    )
    says = ""
    if found and found.shown:
        says = "higher" if found.ratio > 1 else "lower"
    return (
        change.mechanism,
        TITLES[change.figure],
        digits(change.before.median),
        digits(change.after.median),
        digits(found.ratio) if found else "-",
        interval,
        Text(says, "bold"),
    )
