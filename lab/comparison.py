# SPDX-License-Identifier: GPL-2.0-or-later
"""Stock beside patched, test by test; what that comes to; and how it is told.  No QEMU in here."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from lab.errors import ExitCode
from lab.model import Side
from lab.qtests import ABSENT, Outcome, TestResult
from lab.vmstate import Finding

#: How much of a device state that differs is put on the screen.
_SHOWN_LINES = 12


@dataclass(frozen=True)
class Row:
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
        """What there is to say of it; "": it passes, or is skipped, with both."""
        said = "DIFFERS" if self.differs else "" if self.agrees else "differed once"
        if self.again:
            stock, patched = self.again
            return f"{said}; run again: stock {stock.outcome}, patched {patched.outcome}"
        return said or ("fails with stock too" if self.stock.outcome is Outcome.FAILED else "")


@dataclass(frozen=True)
class Comparison:
    """All tests of one driver; ``added`` are those that only the patched pair's driver has."""

    title: str
    rows: list[Row]
    added: list[str] = field(default_factory=list)

    def count(self, outcome: Outcome) -> tuple[int, int]:
        """Return how many tests came to `outcome` with the stock pair and with the patched one."""
        stock = sum(row.stock.outcome is outcome for row in self.rows)
        return stock, sum(row.patched.outcome is outcome for row in self.rows)

    @property
    def differs(self) -> bool:
        """Whether any test came to different things."""
        return any(row.differs for row in self.rows)


def compare(
    title: str,
    stock: Mapping[str, TestResult],
    patched: Mapping[str, TestResult],
    rerun: Callable[[str], tuple[TestResult, TestResult]],
    added: Sequence[str] = (),
) -> Comparison:
    """Compare test by test what `stock` has; what differs is run again, once, with both.

    `rerun` runs a test with the stock pair and then with the patched one.
    """
    rows = [Row(test, one, patched.get(test, ABSENT)) for test, one in stock.items()]
    return Comparison(
        title,
        [
            row if row.agrees or row.patched is ABSENT else replace(row, again=rerun(row.test))
            for row in rows
        ],
        list(added),
    )


@dataclass(frozen=True)
class Report:
    """What a run of `regress` came to."""

    qemus: dict[str, Side]
    accel: str
    reproduce: str
    directory: Path
    comparisons: list[Comparison] = field(default_factory=list)
    vmstate: list[Finding] = field(default_factory=list)

    @property
    def exit_code(self) -> ExitCode:
        """FAIL when anything differs; CANNOT_TELL when a driver's tests all fail with stock."""
        if any(one.differs for one in self.comparisons) or not all(f.passed for f in self.vmstate):
            return ExitCode.FAIL
        if not all(one.count(Outcome.OK)[0] for one in self.comparisons):
            return ExitCode.CANNOT_TELL
        return ExitCode.PASS

    @property
    def verdict(self) -> str:
        """The exit code in words."""
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
                    "added": one.added,
                }
                for one in self.comparisons
            ],
            "vmstate": [dataclasses.asdict(one) for one in self.vmstate],
        }


def counts(comparison: Comparison) -> Iterator[tuple[str, str]]:
    """Yield each outcome that came about, and how often with stock and with patched."""
    for outcome in Outcome:
        stock, patched = comparison.count(outcome)
        if stock or patched:
            yield outcome, f"{stock} stock, {patched} patched"


def markdown(report: Report) -> str:
    """Return the whole report as regress.md has it."""
    lines = [f"# {report.verdict}", "", f"    {report.reproduce}", ""]
    lines += _rule(("QEMU", "version", "SHA-256"))
    lines += [_line((name, f.version, f.sha256)) for name, f in report.qemus.items()]
    for one in report.comparisons:
        lines += ["", f"## {one.title}", ""]
        lines += [f"- {outcome}: {number}" for outcome, number in counts(one)]
        if one.added:
            lines += [f"- not compared, only the series' driver has them: {len(one.added)} tests"]
        lines += ["", *_rule(("test", "stock", "patched", "remark"))]
        lines += [_line((r.test, str(r.stock), str(r.patched), r.remark)) for r in one.rows]
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


def show(report: Report, console: Console | None = None) -> None:
    """Print to stdout what there is to say: counts, and every test that is not plainly the same."""
    console = console or Console(highlight=False, soft_wrap=True)
    for one in report.comparisons:
        console.print(Text(one.title, style="bold"))
        for outcome, number in counts(one):
            console.print(Text(f"  {outcome}: {number}"))
        for row in (row for row in one.rows if row.remark):
            style = "red" if row.differs else "yellow"
            console.print(Text(f"  {row.test}: {row.remark}", style=style))
            console.print(Text(f"      stock: {row.stock}\n      patched: {row.patched}", "dim"))
    if report.vmstate:
        console.print(Text("the devices' state (-dump-vmstate)", style="bold"))
    for found in report.vmstate:
        text = f"  {found.machine}, {found.what}: "
        if found.passed:  # what the checker says of any two releases is long: it is in regress.md
            console.print(Text(text + found.text.partition("\n")[0].removesuffix(":")))
        else:
            few = "\n".join(found.text.splitlines()[:_SHOWN_LINES])
            console.print(Text(f"{text}DIFFERS\n{few}", style="red"))
    passed = report.exit_code is ExitCode.PASS
    console.print(Text(report.verdict, style="bold green" if passed else "bold red"))
    console.print(Text(f"  all of it: {report.directory}/regress.md", style="dim"))
