# SPDX-License-Identifier: GPL-2.0-or-later
"""The verb `compare`: what changed from one bench to another, if more than noise did."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rich.console import Console

from lab.base.record import as_json_list
from lab.report.changes import Gate
from lab.results import gate
from lab.results.figures import read_bench


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
    """Return the gate that the options describe; raise UsageError."""
    conditions = tuple(gate.condition(text) for text in given.fail_if)
    return Gate(conditions, read_bench(given.baseline) if given.baseline else None)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``pageflip compare``."""
    parser.add_argument("baseline", type=Path, metavar="A", help="bench.json or bench directory")
    parser.add_argument("bench", type=Path, metavar="B", help="the same, of a later bench")
    parser.add_argument("--json", action="store_true", help="print the changes as JSON on stdout")
    add_gate(parser)


def run(given: argparse.Namespace) -> int:
    """Do what ``pageflip compare`` says."""
    asked, bench = parse_gate(given), read_bench(given.bench)
    assert asked.baseline
    if given.json:
        sys.stdout.write(as_json_list(gate.changes(asked.baseline, bench)))
        return asked.judge(bench, Console(stderr=True, highlight=False))
    return asked.judge(bench)
