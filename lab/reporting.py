# SPDX-License-Identifier: GPL-2.0-or-later
"""The verb `report`: ``report.html`` from what a bench or an upgrade has left behind."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from pydantic import ValidationError

from lab import compare, page
from lab.errors import ExitCode, UsageError
from lab.figures import Bench
from lab.measure.timeline import Timeline
from lab.model import Result
from lab.record import write_whole

_PAGE = "report.html"


def write_bench(bench: Bench, directory: Path) -> Path:
    """Write the page of the bench in `directory`, and return where it is."""
    lines = {
        name: line
        for name in page.typical_directories(bench)
        if (line := _timeline(directory / name))
    }
    write_whole(directory / _PAGE, page.of_bench(bench, lines))
    return directory / _PAGE


def write_run(directory: Path) -> Path:
    """Write the page of the upgrade in `directory`, and return where it is; raise UsageError."""
    file = directory / "result.json"
    try:
        result = Result.model_validate_json(file.read_text(encoding="utf-8"))
    except ValidationError as error:
        raise UsageError(f"{file}: {error}", "it is of another version of pageflip") from error
    write_whole(directory / _PAGE, page.of_run(result, _timeline(directory)))
    return directory / _PAGE


def _timeline(directory: Path) -> Timeline | None:
    """Return when what happened in a run; None where that was not written down."""
    for file in directory.glob("*-measure.json"):
        kept = json.loads(file.read_text(encoding="utf-8")).get("timeline")
        return Timeline.model_validate(kept) if kept else None
    return None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``pageflip report``."""
    parser.add_argument(
        "directory", type=Path, metavar="DIR", help="of an upgrade or of a bench: out/..."
    )


def run(given: argparse.Namespace) -> int:
    """Do what ``pageflip report`` says: write the page, and print where it is."""
    directory: Path = given.directory
    if (directory / "bench.json").is_file():
        path = write_bench(compare.read(directory), directory)
    elif (directory / "result.json").is_file():
        path = write_run(directory)
    else:
        raise UsageError(
            f"{directory}: there is no bench.json and no result.json",
            hint="name the directory of a bench or of an upgrade: out/...",
        )
    sys.stdout.write(f"{path}\n")
    return ExitCode.PASS
