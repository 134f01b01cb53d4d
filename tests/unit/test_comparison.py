# SPDX-License-Identifier: GPL-2.0-or-later
"""Stock beside patched: what differs, what only seems to, and what nobody can tell."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from lab.base.errors import ExitCode
from lab.model import Side
from lab.review import comparison
from lab.review.comparison import Comparison, QtestPair, Regression, compare
from lab.review.qtests import ABSENT, QtestOutcome, TestResult
from lab.review.vmstate import StateCheck

OK = TestResult(QtestOutcome.OK)
FAILED = TestResult(QtestOutcome.FAILED, "a | b")
SKIPPED = TestResult(QtestOutcome.SKIPPED, "no shm")


def never(test: str) -> tuple[TestResult, TestResult]:
    raise AssertionError(f"{test} was run again")


def test_what_agrees_is_not_run_again() -> None:
    stock = {"/ok": OK, "/failed": FAILED, "/skipped": SKIPPED}
    found = compare("t", stock, stock, never, {"/new": OK})
    assert not found.differs
    assert [row.remark for row in found.rows] == ["", "fails with stock too", ""]
    assert found.added == {"/new": OK}
    assert found.broken == []
    assert [found.count(one) for one in QtestOutcome] == [(1, 1), (1, 1), (1, 1), (0, 0)]


@pytest.mark.parametrize("patched", [FAILED, SKIPPED, ABSENT])
def test_what_differs_again_is_a_difference(patched: TestResult) -> None:
    again: list[str] = []

    def rerun(test: str) -> tuple[TestResult, TestResult]:
        again.append(test)
        return OK, patched

    results = {} if patched is ABSENT else {"/a": patched}
    found = compare("t", {"/a": OK}, results, rerun)
    assert found.differs
    assert found.rows[0].remark.startswith("DIFFERS")
    # A test that is not there is not there the second time either.
    assert again == ([] if patched is ABSENT else ["/a"])


@pytest.mark.parametrize(
    ("again", "differs"), [((OK, OK), False), ((FAILED, FAILED), False), ((FAILED, OK), True)]
)
def test_a_difference_counts_when_it_comes_again(
    again: tuple[TestResult, TestResult], differs: bool
) -> None:
    found = compare("t", {"/a": OK}, {"/a": FAILED}, lambda _: again)
    assert found.differs is differs
    word = "DIFFERS" if differs else "differed once"
    assert found.rows[0].remark == (
        f"{word}; run again: stock {again[0].outcome}, patched {again[1].outcome}"
    )


def report(*rows: QtestPair, passed: bool = True, own: TestResult = OK) -> Regression:
    side = Side(release="10.0", version="10.0.13", path="/qemu", sha256="0" * 64)
    return Regression(
        {"stock old": side},
        "tcg",
        "./pageflip regress",
        Path("/run"),
        [Comparison("the tests", list(rows), {"/localhost": own})],
        [StateCheck("pc-q35-10.0", "old", passed, "two:\nlines")],
    )


@pytest.mark.parametrize(
    ("given", "code", "verdict"),
    [
        (report(QtestPair("/a", OK, OK), QtestPair("/b", FAILED, FAILED)), ExitCode.PASS, "same"),
        (report(QtestPair("/a", OK, FAILED)), ExitCode.FAIL, "different"),
        (report(QtestPair("/a", OK, FAILED, (OK, OK))), ExitCode.PASS, "same"),
        (report(QtestPair("/a", OK, OK), passed=False), ExitCode.FAIL, "different"),
        (report(QtestPair("/a", FAILED, FAILED)), ExitCode.CANNOT_TELL, "cannot tell"),
        (report(QtestPair("/a", SKIPPED, SKIPPED)), ExitCode.CANNOT_TELL, "cannot tell"),
        (report(), ExitCode.PASS, "same"),
        # The series' own tests have nothing to be compared with, and must pass.
        (report(QtestPair("/a", OK, OK), own=FAILED), ExitCode.FAIL, "broken"),
        (report(QtestPair("/a", OK, OK), own=SKIPPED), ExitCode.PASS, "same"),
        # A difference is one whatever else cannot be told.
        (report(QtestPair("/a", FAILED, OK)), ExitCode.FAIL, "different"),
    ],
)
def test_the_exit_code_is_the_verdict(given: Regression, code: ExitCode, verdict: str) -> None:
    assert given.exit_code is code
    assert given.record()["verdict"] == verdict


def test_the_devices_state_alone_is_a_verdict() -> None:
    only = dataclasses.replace(report(), comparisons=[])
    assert only.exit_code is ExitCode.PASS


def test_the_series_own_tests_alone_are_not_called_a_comparison() -> None:
    only = dataclasses.replace(report(), vmstate=[])
    assert only.exit_code is ExitCode.PASS
    assert only.verdict.startswith("PASSED: the series' own tests")


def test_the_record_has_every_row() -> None:
    record = json.loads(json.dumps(report(QtestPair("/a", OK, FAILED, (OK, OK))).record()))
    assert record["comparisons"] == [
        {
            "title": "the tests",
            "rows": [
                {
                    "test": "/a",
                    "stock": {"outcome": "ok", "reason": ""},
                    "patched": {"outcome": "failed", "reason": "a | b"},
                    "again": [{"outcome": "ok", "reason": ""}] * 2,
                    "remark": "differed once; run again: stock ok, patched ok",
                }
            ],
            "added": {"/localhost": {"outcome": "ok", "reason": ""}},
        }
    ]
    assert record["qemus"]["stock old"]["sha256"] == "0" * 64
    assert record["vmstate"][0]["passed"] is True


def test_the_summary_has_every_row_and_count() -> None:
    text = comparison.markdown(
        report(QtestPair("/a", OK, OK), QtestPair("/b", FAILED, FAILED), passed=False)
    )
    lines = text.splitlines()
    assert lines[0].startswith("# DIFFERENT")
    assert "- ok: 1 stock, 1 patched" in lines
    assert "- failed: 1 stock, 1 patched" in lines
    assert not any(line.startswith("- skipped") for line in lines)
    assert "- ok, the series' own: 1" in lines
    assert "| /localhost |  | ok | the series' own |" in lines
    assert "| /a | ok | ok |  |" in lines
    assert r"| /b | failed (a \| b) | failed (a \| b) | fails with stock too |" in lines
    assert "| pc-q35-10.0 | old | DIFFERS | two:<br>lines |" in lines


def shown(given: Regression) -> list[str]:
    out = io.StringIO()
    comparison.show(given, Console(file=out, width=40, soft_wrap=True))
    return out.getvalue().splitlines()


def test_the_screen_has_what_is_not_plainly_the_same() -> None:
    lines = shown(
        report(
            QtestPair("/plain", OK, OK),
            QtestPair("/b", FAILED, FAILED),
            QtestPair("/c", OK, FAILED),
        )
    )
    assert "  ok: 2 stock, 1 patched" in lines
    assert not any("/plain" in line for line in lines)
    at = lines.index("  /b: fails with stock too")
    assert lines[at + 1 : at + 4] == [
        "      stock: failed (a | b)",
        "      patched: failed (a | b)",
        "  /c: DIFFERS",
    ]
    assert lines[-2].startswith("DIFFERENT")
    assert lines[-1] == "  in full: /run/regress.md"


def test_the_screen_has_all_of_a_device_state_that_differs_and_a_line_of_one_that_does_not() -> (
    None
):
    assert shown(report())[-3] == "  pc-q35-10.0, old: two"
    assert "lines" not in shown(report())
    assert shown(report(passed=False))[-4:-2] == ["two:", "lines"]
    assert "DIFFERS" in shown(report(passed=False))[-5]
    long = report()
    long.vmstate[:] = [StateCheck("pc", "old", passed=False, text="line\n" * 99)]
    assert shown(long).count("line") == 12
