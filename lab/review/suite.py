# SPDX-License-Identifier: GPL-2.0-or-later
"""The lab's own Avocado tests of upgrades, run with a pair of QEMUs."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lab.base import process, xunit
from lab.base.errors import CannotTellError, UsageError
from lab.base.layout import CHECKOUT
from lab.base.progress import step
from lab.base.xunit import Mark

_TESTS = Path("tests") / "avocado"
_STARTED = re.compile(r"^\s*\((\d+)/(\d+)\) \S+: +STARTED")


@dataclass(frozen=True)
class Ran:
    """What the tests came to: how many passed or were cancelled, which failed."""

    passed: int
    cancelled: int
    failed: tuple[str, ...]


def known(tags: str) -> None:
    """Raise UsageError when no test has `tags`, as ``avocado -t`` takes them."""
    if not (CHECKOUT / _TESTS).is_dir():
        raise UsageError("what is installed has no tests", hint="use a checkout of pageflip")
    said = process.run(_argv("list", "-t", tags, _TESTS), cwd=CHECKOUT, check=False).stdout
    if ":" not in said:
        raise UsageError(
            f"--tags {tags}: no test has them",
            hint="one of quick, medium, thorough, fault, baseline",
        )


def run(title: str, tests: Sequence[str], pair: tuple[str, str], accel: str, into: Path) -> Ran:
    """Run `tests`, words for ``avocado run``; what they leave is kept in the directory `into`.

    Raises CannotTellError when avocado did not get to the end.
    """
    report = into / "results.xml"
    old, new = pair
    parameters = ("-p", f"old={old}", "-p", f"new={new}", "-p", f"accel={accel}")
    argv = _argv("run", *tests, *parameters, "--xunit", report, "--job-results-dir", into)
    into.mkdir()
    with step(title) as tick:

        def on_line(line: str) -> None:
            if started := _STARTED.match(line):
                tick(int(started[1]) - 1, int(started[2]))

        process.run(
            argv,
            cwd=CHECKOUT,
            env={"PYTHONPATH": str(CHECKOUT)},
            check=False,
            log=into / "avocado.log",
            on_line=on_line,
        )
    return read(report)


def read(report: Path) -> Ran:
    """Read an xunit report of avocado's; raise CannotTellError when it says nothing."""
    marks = dict(xunit.read(report) or ())
    if not marks:
        raise CannotTellError(
            f"avocado ran no test: there is none in {report}",
            hint=f"see {report.with_name('avocado.log')}",
        )
    failed = tuple(name for name, mark in marks.items() if mark is Mark.FAILED)
    cancelled = list(marks.values()).count(Mark.SKIPPED)
    return Ran(len(marks) - cancelled - len(failed), cancelled, failed)


def _argv(verb: str, *words: str | Path) -> list[str | Path]:
    return [sys.executable, "-m", "avocado", verb, *words]


def tagged(tags: str) -> list[str]:
    """Return the words for ``avocado run`` that choose the tests with `tags`."""
    return ["-t", tags, str(_TESTS)]
