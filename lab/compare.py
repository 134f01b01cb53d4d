# SPDX-License-Identifier: GPL-2.0-or-later
"""The verb `compare`: what changed from one bench to another, if more than noise did."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lab import gate
from lab.benchreport import TITLES, digits
from lab.errors import ExitCode, UsageError
from lab.figures import Bench
from lab.gate import Change, Condition
from lab.record import as_json_list

_MIB = 2**20
_FILE = "bench.json"


def read(path: Path) -> Bench:
    """Read a bench from its file or its directory; raise UsageError that names it."""
    file = path / _FILE if path.is_dir() else path
    try:
        return Bench.model_validate_json(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(
            f"{file}: {error.strerror}", f"name a {_FILE}, or its directory"
        ) from error
    except ValidationError as error:
        raise UsageError(f"{file}: {error}", "it is of another version of pageflip") from error


@dataclass(frozen=True)
class Gate:
    """What a bench is held against, and on what it fails."""

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


def add_gate(parser: argparse.ArgumentParser) -> None:
    """Declare the options that make a gate."""
    parser.add_argument(
        "--fail-if",
        action="append",
        default=[],
        metavar="CONDITION",
        help="such as 'gift.pause_ms.qmp.median > +10%%': exit 1 when that is so, and more than "
        "noise; may be given again",
    )


def parse_gate(given: argparse.Namespace) -> Gate:
    """Return the gate that is asked for; raise UsageError."""
    conditions = tuple(gate.condition(text) for text in given.fail_if)
    return Gate(conditions, read(given.baseline) if given.baseline else None)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``pageflip compare``."""
    parser.add_argument("baseline", type=Path, metavar="A", help="bench.json or bench directory")
    parser.add_argument("bench", type=Path, metavar="B", help="the same, of a later bench")
    parser.add_argument("--json", action="store_true", help="print the changes as JSON on stdout")
    add_gate(parser)


def run(given: argparse.Namespace) -> int:
    """Do what ``pageflip compare`` says."""
    asked, bench = parse_gate(given), read(given.bench)
    assert asked.baseline
    if given.json:
        sys.stdout.write(as_json_list(gate.changes(asked.baseline, bench)))
        return asked.judge(bench, Console(stderr=True, highlight=False))
    return asked.judge(bench)


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
