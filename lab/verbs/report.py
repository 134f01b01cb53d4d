# SPDX-License-Identifier: GPL-2.0-or-later
"""The verb `report`: ``report.html`` from what a bench or an upgrade has left behind.

With ``--guestperf`` it is ``guestperf.json``, which QEMU's own guestperf-plot.py reads; with
``--picture`` an SVG of two upgrades; with ``--chart`` one of a bench's pauses.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from lab.base.errors import ExitCode, UsageError
from lab.report import page
from lab.report.write import (
    CHART,
    GUESTPERF,
    PICTURE,
    write_bench,
    write_chart,
    write_guestperf,
    write_picture,
    write_run,
)
from lab.results.figures import FILE, read_bench


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``pageflip report``."""
    parser.add_argument(
        "directory", type=Path, metavar="DIR", help="of an upgrade or of a bench: out/..."
    )
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument(
        "--picture",
        type=Path,
        metavar="OTHER",
        help=f"write {PICTURE} instead: this upgrade above the one in OTHER, on one time axis",
    )
    instead.add_argument(
        "--chart",
        action="store_true",
        help=f"write {CHART} of a bench instead: the pause against dirty rate and RAM",
    )
    instead.add_argument(
        "--guestperf",
        action="store_true",
        help=f"write {GUESTPERF} for QEMU's own guestperf-plot.py instead; of a bench, in the "
        "directories of the runs whose timelines its page shows",
    )


def run(given: argparse.Namespace) -> int:
    """Do what ``pageflip report`` says: write it, and print where it is."""
    directory: Path = given.directory
    if given.picture:
        paths = [write_picture(directory, given.picture)]
    elif (directory / FILE).is_file():
        bench = read_bench(directory)
        if given.guestperf:
            paths = [
                write_guestperf(directory / run.run_directory, run.mechanism)
                for run in page.typical(bench)
            ]
        elif given.chart:
            paths = [write_chart(bench, directory)]
        else:
            paths = [write_bench(bench, directory)]
    elif given.chart:
        raise UsageError(f"{directory}: there is no {FILE}", hint="--chart is of a bench")
    elif (directory / "result.json").is_file():
        paths = [write_guestperf(directory) if given.guestperf else write_run(directory)]
    else:
        raise UsageError(
            f"{directory}: there is no bench.json and no result.json",
            hint="name the directory of a bench or of an upgrade: out/...",
        )
    sys.stdout.writelines(f"{path}\n" for path in paths)
    return ExitCode.PASS
