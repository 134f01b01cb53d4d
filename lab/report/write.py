# SPDX-License-Identifier: GPL-2.0-or-later
"""``report.html``, or ``guestperf.json``, from what a bench or an upgrade has left behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from lab.base.errors import UsageError
from lab.base.files import write_whole
from lab.measure.timeline import Timeline
from lab.model import Result
from lab.report import chart, guestperf, page, picture
from lab.results.figures import Bench

_PAGE = "report.html"
PICTURE = "picture.svg"
CHART = "chart.svg"
GUESTPERF = "guestperf.json"


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


def write_picture(directory: Path, other: Path) -> Path:
    """Draw the upgrade in `directory` above that in `other`; return where; raise UsageError."""
    drawn = picture.draw(*((_result(each), _some_timeline(each)) for each in (directory, other)))
    write_whole(directory / PICTURE, drawn)
    return directory / PICTURE


def write_chart(bench: Bench, directory: Path) -> Path:
    """Draw the pause of the bench in `directory`; return where; raise UsageError."""
    write_whole(directory / CHART, chart.draw(bench))
    return directory / CHART


def write_guestperf(directory: Path, name: str = "") -> Path:
    """Write what guestperf reads of the upgrade in `directory`, and return where it is.

    `name` is what charts call it; the mechanism's name unless given.  Raises UsageError.
    """
    result, line = _result(directory), _some_timeline(directory)
    machine = _stage(directory, "run").get("machine", {})
    info = _stage(directory, "upgrade").get("query_migrate", {})
    told = guestperf.report(result, line, name or result.mechanism, machine, info)
    write_whole(directory / GUESTPERF, json.dumps(told, indent=4) + "\n")
    return directory / GUESTPERF


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


def _some_timeline(directory: Path) -> Timeline:
    """Return when what happened in a run; raise UsageError where that was not written down."""
    if line := _timeline(directory):
        return line
    raise UsageError(f"{directory}: it was not written down when what happened")


def _stage(directory: Path, name: str) -> dict[str, Any]:
    """Return what a stage of a run left behind; nothing where it left nothing."""
    for file in directory.glob(f"*-{name}.json"):
        kept: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return kept
    return {}
