# SPDX-License-Identifier: GPL-2.0-or-later
"""What a bench of a series and its base comes to, in grades and in words."""

from __future__ import annotations

from typing import Any

import made_bench
import pytest

from lab.results import paired, worse
from lab.results.figures import Bench, Run
from lab.results.paired import TOGETHER
from lab.results.worse import WORSE, Allowed, Grade, Weighed

SERIES = "@10.2+s"
MECHANISMS = ("cpr-transfer", "precopy")
PAIRS = {name: (name, name + SERIES) for name in MECHANISMS}


@pytest.fixture(autouse=True)
def _quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take fewer draws than a real verdict does."""
    monkeypatch.setattr(paired, "_DRAWS", 600)
    monkeypatch.setattr(paired, "_TRIALS", 20)


def upgraded(label: str, number: int, **more: float) -> Run:
    """Return an upgrade of 30 ms, or so, with what `more` adds to its figures and parts."""
    jitter = (number * 7 + len(label)) % 5 / 10
    usual: dict[str, float] = {
        "pause_qmp_ms": 5 + jitter,
        "pause_outside_ms": 30 + jitter,
        "pause_inside_ms": 15 + jitter,
        "total_ms": 200 + jitter,
        "memory_ratio": 1.02,
        "huge_pages_kept": 1.0,
    }
    parts = {
        "after_resume_ms": 20 + jitter,
        "memory_after_mib": 400.0,
        "phase_save_ms": 1.0,
        "phase_new_start_ms": 60.0,
    }
    found = made_bench.run(label, number, 0.0)
    mine = {name: value + more.get(name, 0.0) for name, value in usual.items()}
    return found.model_copy(
        update={
            "figures": found.figures.model_copy(update=mine),
            "parts": {name: value + more.get(name, 0.0) for name, value in parts.items()},
        }
    )


def compared(rounds: int = 9, only: str = "", lost: int = 0, **more: float) -> Weighed:
    """Judge a series that adds `more`, by one mechanism only where one is named."""
    runs = []
    for number in range(rounds + 1):
        for name in MECHANISMS:
            runs.append(upgraded(name, number))
            mine = upgraded(name + SERIES, number, **(more if only in {"", name} else {}))
            faults: dict[str, Any] = {"faults": ["the guest is lost"]} if number < lost else {}
            runs.append(mine.model_copy(update=faults))
    labels = [run.mechanism for run in runs[:4]]
    bench: Bench = made_bench.of_runs(runs, labels, repeats=rounds)
    return worse.judge(bench, PAIRS, Allowed(), worse.ALPHA / 3)


def grades(found: Weighed) -> dict[str, Grade]:
    return {row.mechanism: row.grade for row in found.rows}


def test_what_changes_nothing_is_the_same_and_says_what_it_could_have_seen() -> None:
    found = compared()
    assert set(grades(found).values()) == {Grade.SAME}
    assert list(grades(found)) == [TOGETHER, *MECHANISMS]
    assert found.enough
    assert found.steadiest is not None
    assert 1 < (found.steadiest.seen or 0) < 5
    told = worse.seen(found.rows[0])
    assert "slower: " in told
    assert "leaked: " in told
    assert "more at the peak: 1.0" in told
    assert worse.sentence(found.rows[0]).startswith("no worse beyond the noise: pause outside ")


@pytest.mark.parametrize(
    ("more", "grade", "said"),
    [
        ({"pause_outside_ms": 10.0}, Grade.WORSE, "pause outside +10.0 ms"),
        ({"pause_outside_ms": 40.0}, Grade.TOO_MUCH, "pause outside +40.0 ms"),
        ({"pause_qmp_ms": 40.0}, Grade.TOO_MUCH, "pause STOP to RESUME +40.0 ms"),
        ({"pause_inside_ms": 40.0}, Grade.TOO_MUCH, "pause inside +40.0 ms"),
        ({"after_resume_ms": 40.0}, Grade.TOO_MUCH, "part of the pause after RESUME +40.0 ms"),
        ({"phase_save_ms": 40.0}, Grade.TOO_MUCH, "phase save +40.0 ms"),
        ({"phase_new_start_ms": 40.0}, Grade.WORSE, "phase_new_start_ms +40.0 ms"),
        ({"total_ms": 400.0}, Grade.WORSE, "total +400.0 ms"),
        ({"memory_after_mib": 10.0}, Grade.WORSE, "memory afterwards +10.0 MiB"),
        ({"memory_after_mib": 60.0}, Grade.TOO_MUCH, "memory afterwards +60.0 MiB"),
        ({"memory_ratio": 0.05}, Grade.WORSE, "memory peak / before +0.05 "),
        ({"memory_ratio": 0.9}, Grade.TOO_MUCH, "memory peak / before +0.9 "),
        ({"huge_pages_kept": -0.5}, Grade.WORSE, "huge pages kept -0.5 "),
    ],
)
def test_each_figure_is_compared_and_has_its_limit(
    more: dict[str, float], grade: Grade, said: str
) -> None:
    found = compared(**more)
    assert set(grades(found).values()) == {grade}
    assert found.too_much == (grade is Grade.TOO_MUCH)
    for row in found.rows:
        told = worse.sentence(row)
        assert told.startswith(WORSE + said)
        assert "times the base's" in told


@pytest.mark.parametrize(
    "more",
    [{"huge_pages_kept": 0.5}, {"pause_outside_ms": -20.0}, {"memory_ratio": 0.004}, {}],
)
def test_what_is_better_or_next_to_nothing_is_not_worse(more: dict[str, float]) -> None:
    assert set(grades(compared(**more)).values()) == {Grade.SAME}


def test_a_mechanism_alone_is_named() -> None:
    found = grades(compared(only="precopy", pause_outside_ms=40.0))
    assert (found["precopy"], found["cpr-transfer"]) == (Grade.TOO_MUCH, Grade.SAME)


def test_too_few_good_rounds_are_unknown_and_never_fine() -> None:
    found = compared(rounds=6, lost=4)
    assert set(grades(found).values()) == {Grade.UNKNOWN}
    assert not found.enough
    assert found.steadiest is None
    assert worse.sentence(found.rows[0]).startswith("not compared")


def test_the_warm_up_and_failed_runs_do_not_count() -> None:
    found = compared(rounds=9, lost=3)
    assert {one.n for row in found.rows for one in row.compared} == {7}
    assert {one.n for row in compared(rounds=5).rows for one in row.compared} == {5}


def test_it_is_not_enough_to_see_what_is_in_all_mechanisms() -> None:
    found = compared(rounds=4)
    assert found.steadiest is not None
    assert found.steadiest.mechanism == TOGETHER
    assert (found.steadiest.seen or 0) < found.allowed.slower_ms
    assert not found.enough


def test_what_could_not_be_seen_is_said() -> None:
    found = compared(rounds=4)
    (alone,) = (row for row in found.rows if row.mechanism == "precopy")
    assert "slower: no amount, after 4 rounds" in worse.seen(alone)


@pytest.mark.parametrize(
    ("first", "most", "looks"),
    [(6, 15, [6, 9, 15]), (6, 6, [6]), (9, 4, [9]), (20, 15, [20]), (2, 3, [2, 3])],
)
def test_there_are_few_looks(first: int, most: int, looks: list[int]) -> None:
    assert worse.looks(first, most) == looks


def test_how_rare_a_harm_may_have_been_missed() -> None:
    assert worse.rarest_harm(0) == 1
    assert worse.rarest_harm(1) == pytest.approx(0.95)
    assert worse.rarest_harm(59) == pytest.approx(0.05, abs=0.001)
