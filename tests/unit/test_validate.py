# SPDX-License-Identifier: GPL-2.0-or-later
"""What validate says of a series, with checks of our own in place of builds and guests."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import fake_bench
import pytest
from rich.console import Console

from lab import bench, cli
from lab.base.errors import ExitCode
from lab.base.layout import CHECKOUT, Layout
from lab.results import figures, rounds
from lab.results.figures import Bench
from lab.results.worse import Allowed
from lab.review import checks, suite
from lab.review.candidate import End, Subject
from lab.review.checks import Check, Status
from lab.review.suite import Ran
from lab.source.series import Series
from lab.verbs import validate as verb

SERIES = CHECKOUT / "tests" / "series"


def says(status: Status, tool: str) -> object:
    def check(_subject: Subject) -> Iterator[Check]:
        yield Check(tool=tool, status=status, summary="said", details="in full")

    return check


@pytest.mark.parametrize(
    ("statuses", "tools", "code"),
    [
        ((Status.PASS, Status.PASS, Status.PASS), ["a", "b", "c"], ExitCode.PASS),
        ((Status.WARN, Status.WARN, Status.PASS), ["a", "b", "c"], ExitCode.PASS),
        ((Status.PASS, Status.FAIL, Status.PASS), ["a", "b", "c"], ExitCode.FAIL),
        ((Status.FAIL, Status.PASS, Status.PASS), ["a"], ExitCode.FAIL),
    ],
)
def test_what_comes_after_a_failure_that_counts_is_not_tried(
    statuses: tuple[Status, ...],
    tools: list[str],
    code: ExitCode,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    steps = [
        (says(status, tool), tool == "a") for status, tool in zip(statuses, "abc", strict=True)
    ]
    monkeypatch.setattr(checks, "STEPS", steps)
    words = ["validate", str(SERIES / "good"), "--out", str(tmp_path)]
    assert cli.main(words) == code
    (directory,) = tmp_path.iterdir()
    kept = json.loads((directory / "validate.json").read_text())
    assert [check["tool"] for check in kept] == tools
    assert kept[0].keys() == {"tool", "status", "summary", "details"}
    text = (directory / "tested-by.txt").read_text()
    assert text in capsys.readouterr().out
    assert "2 patches on new, guests of 512M upgraded from old to new" in text


@pytest.mark.parametrize(
    "words",
    [
        ("--repeats", "1"),
        ("--new", "9.9"),
        ("--old", "9.9"),
        ("--mechanisms", "x"),
        ("--ram", "256M"),
        ("--tags", "nonsense"),
        ("--side", "old", "--old", "/q/qemu"),
    ],
)
def test_wrong_usage(
    words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(checks, "STEPS", ())
    series = str(SERIES / "good")
    assert cli.main(["validate", series, "--out", str(tmp_path), *words]) == ExitCode.USAGE


def subject(tmp_path: Path) -> Subject:
    return Subject(
        layout=fake_bench.layout(tmp_path),
        series=Series("s", (tmp_path / "s" / "0001-x.patch",)),
        old="old",
        new="new",
        directory=tmp_path,
        mechanisms=("gift",),
    )


def done(tmp_path: Path, ms: float, *, harm: bool = False, rounds: int = 3) -> Bench:
    """Return a bench in which the series' pause is `ms`, the base's 20 ms times the round."""
    label = f"gift@new+{tmp_path / 's'}"
    words = ("--mechanisms", f"gift,{label}", "--ram", "512M", "--repeats", str(rounds))
    runner = fake_bench.Runner({"gift": 20.0, label: ms})
    if harm:
        runner.trouble = lambda _number, options: (
            {"verdict": "fail", "outcome": "lost", "reasons": ["the guest is lost"]}
            if "+" in options.new
            else None
        )
    session = bench.begin(fake_bench.layout(tmp_path), fake_bench.request(*words), runner)
    session.go()
    return session.bench


def test_one_release_is_enough_to_end_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def on_each(subject: Subject) -> Iterator[Check]:
        for base, status in zip(subject.bases, (Status.FAIL, Status.PASS), strict=True):
            yield Check(tool=subject.tool("apply", base), status=status, summary="said")

    steps = [(on_each, True), (says(Status.PASS, "b"), True)]
    monkeypatch.setattr(checks, "STEPS", steps)
    words = ["validate", str(SERIES / "good"), "--side", "both", "--out", str(tmp_path)]
    assert cli.main([*words, "--on", "stock"]) == ExitCode.FAIL
    (kept,) = tmp_path.glob("*/validate.json")
    assert [check["tool"] for check in json.loads(kept.read_text())] == [
        "apply on stock:old", "apply on stock:new",
    ]  # fmt: skip


@pytest.mark.parametrize("side", list(End))
def test_guests_are_upgraded_from_and_to_the_right_qemus(side: End, tmp_path: Path) -> None:
    mine = dataclasses.replace(subject(tmp_path), side=side)
    old, new = mine.pair
    request = checks.request(mine)
    assert (request.old, request.new, request.reference) == ("old", "new", "gift")
    (theirs,) = (slot for slot in rounds.plan(request)[2:4] if "@" in slot.label)
    assert (theirs.options.old, theirs.options.new) == (old, new)


def measured(
    subject: Subject, monkeypatch: pytest.MonkeyPatch, *benches: Bench
) -> tuple[list[int], dict[str, Check]]:
    """Check upgrades with these benches in the place of real ones, one for each look."""
    asked: list[int] = []

    def measure(_layout: Layout, request: figures.Request, more: object) -> Bench:
        assert callable(more)
        wanted: int | None = request.repeats
        for found in benches:
            asked.append(wanted or 0)
            wanted = more(found)
            if not wanted:
                return found
        pytest.fail("more rounds were asked for than expected")

    monkeypatch.setattr(bench, "measure", measure)
    return asked, {check.tool: check for check in checks.upgrades(subject)}


@pytest.mark.parametrize(
    ("ms", "status"),
    [(20.0, Status.PASS), (24.0, Status.PASS), (60.0, Status.FAIL)],
)
def test_a_longer_pause_is_the_series_fault(
    ms: float, status: Status, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = dataclasses.replace(subject(tmp_path), repeats=6, most=6)
    _, found = measured(mine, monkeypatch, done(tmp_path, ms, rounds=6))
    assert found["bench of gift"].status is status
    assert ("WORSE: pause outside +" in found["bench of gift"].summary) is (status is Status.FAIL)


def test_worse_within_the_limit_is_a_warning_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    allowed = Allowed(slower_ms=1000.0, memory_ratio=9.0)
    mine = dataclasses.replace(subject(tmp_path), repeats=6, most=6, allowed=allowed)
    _, found = measured(mine, monkeypatch, done(tmp_path, 60.0, rounds=6))
    assert found["bench of gift"].status is Status.WARN
    verb.show(list(found.values()), Console(width=200))
    said = capsys.readouterr().out
    assert "PASS, BUT WORSE THAN THE BASE" in said
    assert "slower: " in said


def test_rounds_are_added_until_enough_can_be_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The runner's noise grows by 20 ms a round: it takes patience, or a generous limit."""
    benches = [done(tmp_path, 20.0, rounds=n) for n in (6, 9, 15)]
    mine = dataclasses.replace(subject(tmp_path), repeats=6, most=15)
    asked, found = measured(mine, monkeypatch, *benches)
    assert asked == [6, 9, 15]
    assert found[checks.POWER].status is Status.WARN
    assert "ms more pause, " in found[checks.POWER].summary
    assert "take --max-repeats 30" in found[checks.POWER].summary
    verb.show(list(found.values()), Console(width=200))
    assert "PASS, AS FAR AS COULD BE SEEN" in capsys.readouterr().out
    mine = dataclasses.replace(mine, allowed=Allowed(slower_ms=1000.0))
    asked, found = measured(mine, monkeypatch, *benches)
    assert asked == [6]
    assert found[checks.POWER].status is Status.PASS
    assert "would have been seen (gift)" in found[checks.POWER].summary
    assert "guests harmed in 35% of upgrades or more" in found[checks.POWER].details


def test_a_failure_needs_no_more_rounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = dataclasses.replace(subject(tmp_path), repeats=6, most=15)
    asked, found = measured(mine, monkeypatch, done(tmp_path, 90.0, rounds=6))
    assert asked == [6]
    assert found["bench of gift"].status is Status.FAIL


def test_two_rounds_tell_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = dataclasses.replace(subject(tmp_path), repeats=3, most=3)
    _, found = measured(mine, monkeypatch, done(tmp_path, 900.0))
    assert found["bench of gift"].status is Status.WARN
    assert "no slowdown could have been seen" in found[checks.POWER].summary


def test_a_bench_is_extended_and_its_runs_are_kept(tmp_path: Path) -> None:
    runner = fake_bench.Runner({"gift": 20.0})
    request = fake_bench.request("--mechanisms", "gift", "--ram", "512M", "--repeats", "2")
    session = bench.begin(fake_bench.layout(tmp_path), request, runner)
    session.go()
    session.extend(4)
    assert not session.bench.finished
    session.go()
    assert [run.round for run in session.bench.runs] == [0, 1, 2, 3, 4]
    assert "--repeats 4" in session.bench.command
    assert session.bench.finished


def test_a_harmed_guest_is_the_series_fault(tmp_path: Path) -> None:
    (found,) = checks._harm(done(tmp_path, 20.0, harm=True), subject(tmp_path))
    assert found.status is Status.FAIL
    assert "4 of 4 upgrades failed" in found.summary
    (found,) = checks._harm(done(tmp_path / "b", 20.0), subject(tmp_path / "b"))
    assert found.status is Status.PASS


@pytest.mark.parametrize(
    ("series", "base", "status", "summary"),
    [
        ((), (), Status.PASS, "avocado quick: 9 passed, 2 cancelled"),
        (("a", "b"), ("b",), Status.FAIL, "1 failed, 1 failed with the base as well"),
        (("a",), ("a",), Status.WARN, "9 passed, 1 failed with the base as well"),
    ],
)
def test_what_fails_with_the_base_as_well_is_not_the_series_fault(
    series: tuple[str, ...],
    base: tuple[str, ...],
    status: Status,
    summary: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    mine = dataclasses.replace(subject(tmp_path), tags="quick")
    asked = []

    def run(_title: str, tests: Sequence[str], pair: tuple[str, str], *_more: object) -> Ran:
        asked.append((list(tests), pair))
        return Ran(9, 2, series if pair == mine.pair else base)

    monkeypatch.setattr(suite, "run", run)
    (found,) = checks.avocado(mine)
    assert found.status is status
    assert summary in f"{found.tool}: {found.summary}"
    assert asked[0] == (["-t", "quick", "tests/avocado"], mine.pair)
    assert asked[1:] == ([(list(series), ("old", "new"))] if series else [])


def test_no_tags_are_no_check(tmp_path: Path) -> None:
    assert list(checks.avocado(subject(tmp_path))) == []


def test_examples_are_series() -> None:
    names = {directory.name for directory in SERIES.iterdir()}
    assert names == {
        "broken", "conflict", "corrupt", "crash", "good", "leak", "slow", "slow-after-10",
        "slow-after-200", "slow-after-40", "slow-before-10", "slow-before-40", "slow-third",
        "vmstate",
    }  # fmt: skip
    assert figures.WARM_UP == 0
