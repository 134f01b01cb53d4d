# SPDX-License-Identifier: GPL-2.0-or-later
"""The verb `report`: ``report.html`` from what a bench or an upgrade has left behind.

With ``--guestperf`` it is ``guestperf.json``, which QEMU's own guestperf-plot.py reads.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from lab import compare, guestperf, page
from lab.errors import ExitCode, UsageError
from lab.figures import Bench
from lab.measure.timeline import Timeline
from lab.model import Result
from lab.record import write_whole

_PAGE = "report.html"
_GUESTPERF = "guestperf.json"


def write_bench(bench: Bench, directory: Path) -> Path:
    """Write the page of the bench in `directory`, and return where it is."""
    names = [run.run_directory for run in page.typical(bench)]
    lines = {name: line for name in names if (line := _timeline(directory / name))}
    write_whole(directory / _PAGE, page.of_bench(bench, lines))
    return directory / _PAGE


def write_run(directory: Path) -> Path:
    """Write the page of the upgrade in `directory`, and return where it is; raise UsageError."""
    write_whole(directory / _PAGE, page.of_run(_result(directory), _timeline(directory)))
    return directory / _PAGE


def write_guestperf(directory: Path, name: str = "") -> Path:
    """Write what guestperf reads of the upgrade in `directory`, and return where it is.

    `name` is what charts call it; the mechanism's name unless given.  Raises UsageError.
    """
    result, line = _result(directory), _timeline(directory)
    if not line:
        raise UsageError(f"{directory}: it was not written down when what happened")
    machine = _stage(directory, "run").get("machine", {})
    info = _stage(directory, "upgrade").get("query_migrate", {})
    told = guestperf.report(result, line, name or result.mechanism, machine, info)
    write_whole(directory / _GUESTPERF, json.dumps(told, indent=4) + "\n")
    return directory / _GUESTPERF


def _result(directory: Path) -> Result:
    file = directory / "result.json"
    try:
        return Result.model_validate_json(file.read_text(encoding="utf-8"))
    except (OSError, ValidationError) as error:
        raise UsageError(f"{file}: {error}", "is it of another version of pageflip?") from error


def _timeline(directory: Path) -> Timeline | None:
    """Return when what happened in a run; None where that was not written down."""
    kept = _stage(directory, "measure").get("timeline")
    return Timeline.model_validate(kept) if kept else None


def _stage(directory: Path, name: str) -> dict[str, Any]:
    """Return what a stage of a run left behind; nothing where it left nothing."""
    for file in directory.glob(f"*-{name}.json"):
        kept: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return kept
    return {}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``pageflip report``."""
    parser.add_argument(
        "directory", type=Path, metavar="DIR", help="of an upgrade or of a bench: out/..."
    )
    parser.add_argument(
        "--guestperf",
        action="store_true",
        help=f"write {_GUESTPERF} for QEMU's own guestperf-plot.py instead; of a bench, in the "
        "directories of the runs whose timelines its page shows",
    )


def run(given: argparse.Namespace) -> int:
    """Do what ``pageflip report`` says: write it, and print where it is."""
    directory: Path = given.directory
    if (directory / "bench.json").is_file():
        bench = compare.read(directory)
        if given.guestperf:
            paths = [
                write_guestperf(directory / run.run_directory, run.mechanism)
                for run in page.typical(bench)
            ]
        else:
            paths = [write_bench(bench, directory)]
    elif (directory / "result.json").is_file():
        paths = [write_guestperf(directory) if given.guestperf else write_run(directory)]
    else:
        raise UsageError(
            f"{directory}: there is no bench.json and no result.json",
            hint="name the directory of a bench or of an upgrade: out/...",
        )
    sys.stdout.writelines(f"{path}\n" for path in paths)
    return ExitCode.PASS
