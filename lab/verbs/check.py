# SPDX-License-Identifier: GPL-2.0-or-later
"""The verb `check`: run everything that tests this project."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from lab.base import process, xunit
from lab.base.errors import ExitCode, UsageError
from lab.base.layout import CHECKOUT
from lab.base.progress import console
from lab.base.xunit import Mark

_BIN = Path(sys.executable).parent


@dataclass(frozen=True)
class Step:
    """One tool; ``xunit`` is its option for a report that can be counted."""

    name: str
    argv: tuple[str, ...]
    xunit: str = ""
    slow: bool = False
    #: The option that leaves out the tests that take longest.
    shorter: tuple[str, ...] = ()


_GUEST_SCRIPTS = (
    "guests/tiny/init",
    *(f"guests/debian/{name}" for name in ("assemble", "customize", "init")),
    *(f"guests/debian/files/usr/local/lib/pageflip/{name}" for name in ("cpu", "database", "disk")),
)
_HOST_SCRIPTS = ("tests/hosts/provision", "tests/hosts/two", "tests/repeat")
STEPS = (
    Step("ruff", (f"{_BIN}/ruff", "check", "--quiet", ".")),
    Step("format", (f"{_BIN}/ruff", "format", "--check", "--quiet", ".")),
    Step("mypy", (f"{_BIN}/mypy",)),
    Step("shellcheck", ("shellcheck", "pageflip", ".ci/run", *_GUEST_SCRIPTS, *_HOST_SCRIPTS)),
    Step("unit", (f"{_BIN}/pytest", "-q", "-n", "auto", "tests/unit"), "--junitxml"),
    Step("page", (f"{_BIN}/pytest", "-q", "tests/page"), "--junitxml", slow=True),
    Step("patches", (f"{_BIN}/pytest", "-q", "tests/patches"), "--junitxml", slow=True),
    Step(
        "avocado",
        (f"{_BIN}/avocado", "run", "tests/avocado"),
        "--xunit",
        slow=True,
        shorter=("--filter-by-tags=-thorough",),
    ),
)


@dataclass
class Counts:
    """What a step's tests came to."""

    passed: int = 0
    failed: int = 0
    skipped: int = 0

    def add(self, report: Path) -> None:
        """Add the tests of an xunit report; a report that is missing counts as one failure."""
        found = xunit.read(report)
        if found is None:
            self.failed += 1
            return
        marks = [mark for _, mark in found]
        self.passed += marks.count(Mark.PASSED)
        self.failed += marks.count(Mark.FAILED)
        self.skipped += marks.count(Mark.SKIPPED)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``pageflip check``."""
    parser.add_argument(
        "steps",
        nargs="*",
        metavar="STEP",
        help=f"one of {', '.join(s.name for s in STEPS)}; default: all of them",
    )
    how_much = parser.add_mutually_exclusive_group()
    how_much.add_argument("--quick", action="store_true", help="only what needs no QEMU")
    how_much.add_argument(
        "--all", action="store_true", help="also the real upgrades that take longest (thorough)"
    )


def run(options: argparse.Namespace) -> int:
    """Run every step, even after one has failed, and sum up."""
    chosen = _choose(options.steps, quick=options.quick)
    if not (CHECKOUT / "tests").is_dir():
        raise UsageError(
            "what is installed has no tests", hint="check in a checkout (git clone) of pageflip"
        )
    table = Table(box=None)
    for column in ("step", "result", "seconds"):
        table.add_column(column)
    counts, broken = Counts(), 0
    with tempfile.TemporaryDirectory(prefix="pageflip-check-") as reports:
        for step in chosen:
            begun = time.monotonic()
            report = Path(reports) / f"{step.name}.xml"
            passed = _run(step, report, counts, () if options.all else step.shorter)
            broken += not passed
            table.add_row(
                step.name, "pass" if passed else "FAIL", f"{time.monotonic() - begun:.1f}"
            )
    console.print(table)
    sys.stdout.write(f"{counts.passed} passed, {counts.failed} failed, {counts.skipped} skipped\n")
    return ExitCode.FAIL if broken or counts.failed else ExitCode.PASS


def _choose(names: list[str], *, quick: bool) -> list[Step]:
    known = {step.name: step for step in STEPS}
    if unknown := [name for name in names if name not in known]:
        raise UsageError(f"there is no check {unknown[0]!r}", hint=f"one of: {', '.join(known)}")
    chosen = [known[name] for name in names] or list(STEPS)
    return [step for step in chosen if not (quick and step.slow)]


def _run(step: Step, report: Path, counts: Counts, more: tuple[str, ...]) -> bool:
    console.rule(step.name)
    argv = [*step.argv, *more, *([step.xunit, str(report)] if step.xunit else [])]
    done = process.run(
        argv,
        cwd=CHECKOUT,
        check=False,
        env={"PATH": f"{_BIN}:{os.environ.get('PATH', os.defpath)}"},
        on_line=lambda line: console.print(line, markup=False),
    )
    passed = done.returncode == 0
    if step.xunit:
        counts.add(report)
    elif passed:  # a tool without tests of its own counts as one
        counts.passed += 1
    else:
        counts.failed += 1
    return passed
