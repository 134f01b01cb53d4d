# SPDX-License-Identifier: GPL-2.0-or-later
"""Stock and patched compared test by test, and the result as text.  Pure."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from lab.base.errors import ExitCode
from lab.model import Side
from lab.review.qtests import ABSENT, QtestOutcome, TestResult
from lab.review.vmstate import StateCheck

#: How much of a device state that differs is put on the screen.
_SHOWN_LINES = 12


@dataclass(frozen=True)
class QtestPair:
    """One test with stock QEMUs and with patched ones; ``again`` is both, run once more."""

    test: str
    stock: TestResult
    patched: TestResult
    again: tuple[TestResult, TestResult] | None = None

    @property
    def agrees(self) -> bool:
        """Whether both came to the same at the first go."""
        return self.stock.agrees(self.patched)

    @property
    def differs(self) -> bool:
        """Whether they came to different things, and did so again."""
        return not self.agrees and not (self.again and self.again[0].agrees(self.again[1]))

    @property
    def remark(self) -> str:
        """What a reader should know; "" when it passes, or is skipped, with both."""
        said = "DIFFERS" if self.differs else "" if self.agrees else "differed once"
        if self.again:
            stock, patched = self.again
            return f"{said}; run again: stock {stock.outcome}, patched {patched.outcome}"
        return said or ("fails with stock too" if self.stock.outcome is QtestOutcome.FAILED else "")


@dataclass(frozen=True)
class Comparison:
    """All tests of one driver; ``added`` are those that only the patched pair's driver has.

    There is nothing to compare those with: they must pass.
    """

    title: str
    rows: list[QtestPair]
    added: dict[str, TestResult] = field(default_factory=dict)

    def count(self, outcome: QtestOutcome) -> tuple[int, int]:
        """Return how many tests came to `outcome` with the stock pair and with the patched one."""
        stock = sum(row.stock.outcome is outcome for row in self.rows)
        return stock, sum(row.patched.outcome is outcome for row in self.rows)

    @property
    def differs(self) -> bool:
        """Whether any test came to different things."""
        return any(row.differs for row in self.rows)

    @property
    def broken(self) -> list[str]:
        """The series' own tests that failed."""
        return [test for test, one in self.added.items() if one.outcome is QtestOutcome.FAILED]


def compare(
    title: str,
    stock: Mapping[str, TestResult],
    patched: Mapping[str, TestResult],
    rerun: Callable[[str], tuple[TestResult, TestResult]],
    added: Mapping[str, TestResult] | None = None,
) -> Comparison:
    """Compare test by test what `stock` has; what differs is run again, once, with both.

    `rerun` runs a test with the stock pair and then with the patched one.
    """
    rows = [QtestPair(test, one, patched.get(test, ABSENT)) for test, one in stock.items()]
    return Comparison(
        title,
        [
            row if row.agrees or row.patched is ABSENT else replace(row, again=rerun(row.test))
            for row in rows
        ],
        dict(added or {}),
    )


@dataclass(frozen=True)
class Regression:
    """What a run of `regress` came to."""

    qemus: dict[str, Side]
    accel: str
    reproduce: str
    directory: Path
    comparisons: list[Comparison] = field(default_factory=list)
    vmstate: list[StateCheck] = field(default_factory=list)

    @property
    def exit_code(self) -> ExitCode:
        """FAIL when anything differs or a test of the series' own fails.

        CANNOT_TELL when a driver's tests all fail with stock.
        """
        if any(one.differs or one.broken for one in self.comparisons):
            return ExitCode.FAIL
        if not all(f.passed for f in self.vmstate):
            return ExitCode.FAIL
        if not all(one.count(QtestOutcome.OK)[0] for one in self.comparisons if one.rows):
            return ExitCode.CANNOT_TELL
        return ExitCode.PASS

    @property
    def verdict(self) -> str:
        """The exit code in words."""
        if any(one.broken for one in self.comparisons):
            return "BROKEN: tests of the series' own fail"
        if not self.vmstate and not any(one.rows for one in self.comparisons):
            return "PASSED: the series' own tests; nothing was compared"
        return {
            ExitCode.PASS: "SAME: the patched QEMUs behave like the stock ones",
            ExitCode.FAIL: "DIFFERENT: the patched QEMUs do not behave like the stock ones",
        }.get(self.exit_code, "CANNOT TELL: a driver has no test that passes with the stock pair")

    def record(self) -> dict[str, Any]:
        """Return it as it stands in regress.json."""
        return {
            "verdict": self.verdict.split(":", 1)[0].lower(),
            "reproduce": self.reproduce,
            "accel": self.accel,
            "qemus": {name: side.model_dump(mode="json") for name, side in self.qemus.items()},
            "comparisons": [
                {
                    "title": one.title,
                    "rows": [{**dataclasses.asdict(r), "remark": r.remark} for r in one.rows],
                    "added": {test: dataclasses.asdict(r) for test, r in one.added.items()},
                }
                for one in self.comparisons
            ],
            "vmstate": [dataclasses.asdict(one) for one in self.vmstate],
        }


def counts(comparison: Comparison) -> Iterator[tuple[str, str]]:
    """Yield each outcome that came about, and how often with stock and with patched."""
    for outcome in QtestOutcome:
        stock, patched = comparison.count(outcome)
        if stock or patched:
            yield outcome, f"{stock} stock, {patched} patched"


def own(comparison: Comparison) -> Iterator[str]:
    """Yield what the series' own tests came to."""
    for outcome in QtestOutcome:
        if number := sum(one.outcome is outcome for one in comparison.added.values()):
            yield f"{outcome}, the series' own: {number}"


def markdown(report: Regression) -> str:
    """Return the whole report as regress.md has it."""
    lines = [f"# {report.verdict}", "", f"    {report.reproduce}", ""]
    lines += _rule(("QEMU", "version", "SHA-256"))
    lines += [_line((name, f.version, f.sha256)) for name, f in report.qemus.items()]
    for one in report.comparisons:
        lines += ["", f"## {one.title}", ""]
        lines += [f"- {outcome}: {number}" for outcome, number in counts(one)]
        lines += [f"- {text}" for text in own(one)]
        lines += ["", *_rule(("test", "stock", "patched", "remark"))]
        lines += [_line((r.test, str(r.stock), str(r.patched), r.remark)) for r in one.rows]
        lines += [_line((test, "", str(r), "the series' own")) for test, r in one.added.items()]
    if report.vmstate:
        lines += ["", "## The devices' state (-dump-vmstate)", ""]
        lines += _rule(("machine", "compared", "result", "what was found"))
        lines += [
            _line((one.machine, one.what, "same" if one.passed else "DIFFERS", one.text))
            for one in report.vmstate
        ]
    return "\n".join([*lines, ""])


def _line(cells: Iterable[str]) -> str:
    cleaned = (cell.replace("|", "\\|").replace("\n", "<br>") for cell in cells)
    return f"| {' | '.join(cleaned)} |"


def _rule(heads: Sequence[str]) -> list[str]:
    return [_line(heads), "|" + " --- |" * len(heads)]


def show(report: Regression, console: Console | None = None) -> None:
    """Print to stdout what there is to say: counts, and every test that is not plainly the same."""
    console = console or Console(highlight=False, soft_wrap=True)
    for one in report.comparisons:
        console.print(Text(one.title, style="bold"))
        for outcome, number in counts(one):
            console.print(Text(f"  {outcome}: {number}"))
        for text in own(one):
            console.print(Text(f"  {text}"))
        for test in one.broken:
            console.print(Text(f"  {test}: {one.added[test]}", style="red"))
        for row in (row for row in one.rows if row.remark):
            style = "red" if row.differs else "yellow"
            console.print(Text(f"  {row.test}: {row.remark}", style=style))
            console.print(Text(f"      stock: {row.stock}\n      patched: {row.patched}", "dim"))
    if report.vmstate:
        console.print(Text("the devices' state (-dump-vmstate)", style="bold"))
    for found in report.vmstate:
        text = f"  {found.machine}, {found.what}: "
        if found.passed:  # the checker's findings are long: they are in regress.md
            console.print(Text(text + found.text.partition("\n")[0].removesuffix(":")))
        else:
            few = "\n".join(found.text.splitlines()[:_SHOWN_LINES])
            console.print(Text(f"{text}DIFFERS\n{few}", style="red"))
    passed = report.exit_code is ExitCode.PASS
    console.print(Text(report.verdict, style="bold green" if passed else "bold red"))
    console.print(Text(f"  in full: {report.directory}/regress.md", style="dim"))
