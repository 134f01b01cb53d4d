# SPDX-License-Identifier: GPL-2.0-or-later
"""Reports of tests in xunit's form, as pytest and avocado write them."""

from __future__ import annotations

import enum
import xml.etree.ElementTree as ET
from pathlib import Path


class Mark(enum.StrEnum):
    """What became of a test."""

    PASSED = "passed"
    FAILED = "failed"
    SKIPPED = "skipped"


def read(report: Path) -> list[tuple[str, Mark]] | None:
    """Return every test of a report by its name; None where there is no report to be read."""
    try:
        root = ET.parse(report).getroot()  # noqa: S314 -- our own
    except (OSError, ET.ParseError):
        return None
    return [
        (case.get("name", ""), _mark({child.tag for child in case}))
        for case in root.iter("testcase")
    ]


def _mark(tags: set[str]) -> Mark:
    if tags & {"failure", "error"}:
        return Mark.FAILED
    return Mark.SKIPPED if "skipped" in tags else Mark.PASSED
