# SPDX-License-Identifier: GPL-2.0-or-later
"""Golden verdicts: each file holds limits, an observation and what must be said of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lab.model import Limits, Result, VerdictKind
from lab.verdict import Observation, faults, judge

GOLDEN = sorted((Path(__file__).parent / "golden").glob("*.json"))


@pytest.mark.parametrize("path", GOLDEN, ids=[path.stem for path in GOLDEN])
def test_golden(path: Path) -> None:
    case = json.loads(path.read_text(encoding="utf-8"))
    verdict = judge(Limits(**case["limits"]), Observation(**case["seen"]))
    assert {"verdict": verdict.kind, "reasons": verdict.reasons, "notes": verdict.notes} == case[
        "says"
    ]


def test_every_golden_failure_differs_from_the_pass() -> None:
    kinds = {
        path.stem: json.loads(path.read_text(encoding="utf-8"))["says"]["verdict"]
        for path in GOLDEN
    }
    assert kinds["pass"] == VerdictKind.PASS
    assert len(kinds) >= 12


@pytest.mark.parametrize("path", GOLDEN, ids=[path.stem for path in GOLDEN])
def test_a_limit_is_no_fault_and_everything_else_is(path: Path) -> None:
    case = json.loads(path.read_text(encoding="utf-8"))
    known = json.loads((Path(__file__).parent / "result.json").read_text(encoding="utf-8"))
    seen = {key: value for key, value in case["seen"].items() if key != "failure"}
    says = {key: case["says"][key] for key in ("verdict", "reasons")}
    result = Result(**{**known, **seen, **says, "limits": case["limits"]})
    assert faults(result) == [why for why in says["reasons"] if "the limit is" not in why]
