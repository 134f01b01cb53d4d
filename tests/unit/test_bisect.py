# SPDX-License-Identifier: GPL-2.0-or-later
"""What bisect says of a series, with guests that nobody starts."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fake_bench
import pytest

from lab import bench, cli
from lab.base.errors import CannotTellError, ExitCode, UsageError
from lab.base.layout import CHECKOUT, Layout
from lab.options import UpgradeOptions
from lab.pair import build
from lab.results.figures import Bench, Request
from lab.source.series import Series
from lab.verbs import bisect as verb

SERIES = CHECKOUT / "tests" / "series" / "slow-third"
PAUSE = ("--metric", "pause_ms.outside")
More = Callable[[Bench], "int | None"]


def state_of(name: str) -> int:
    """Return how many patches the QEMU of that name has."""
    _, plus, directory = name.partition("+")
    if not plus:
        return 0
    return len((Path(directory) / "series").read_text().split())


@dataclass
class World:
    """QEMUs that differ by their pause, by whether they build, and by whether guests survive."""

    ms: Callable[[int], float] = lambda _number: 10.0
    builds: Callable[[int], bool] = lambda _number: True
    harms: Callable[[int], bool] = lambda _number: False
    kept: Callable[[int], float] = lambda _number: 1.0
    noise_ms: float = 0.02
    measured: list[int] = field(default_factory=list)
    rounds: list[int] = field(default_factory=list)

    def by_name(self, _layout: Layout, name: str) -> None:
        if not self.builds(state_of(name)):
            raise CannotTellError("it does not compile:\nerror: x")

    def measure(self, layout: Layout, request: Request, more: More) -> Bench:
        noise = random.Random(len(self.measured))

        def said(_number: int, options: UpgradeOptions) -> dict[str, Any]:
            number = state_of(options.new)
            ms = self.ms(number) + noise.uniform(-self.noise_ms, self.noise_ms)
            more: dict[str, Any] = {
                "pause_ms": {"qmp": ms, "outside": ms, "inside": ms, "outside_before": 1.0}
            }
            memory = fake_bench.known()["memory"]
            huge = int(self.kept(number) * memory["old_huge_bytes"])
            more["memory"] = {**memory, "new_huge_bytes": huge}
            if self.harms(number):
                more |= {"verdict": "fail", "outcome": "lost", "reasons": ["the guest is lost"]}
            return more

        self.measured.append(state_of(request.mechanisms[1].partition("@")[2]))
        session = bench.begin(layout, request, fake_bench.Runner(trouble=said))
        session.go()
        while rounds := more(session.bench):
            session.extend(rounds)
            session.go()
        self.rounds.append(session.bench.request.repeats)
        return session.bench


@pytest.fixture
def run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[..., tuple[int, dict[str, Any]]]:
    def run(world: World, *words: str) -> tuple[int, dict[str, Any]]:
        monkeypatch.setattr(build, "by_name", world.by_name)
        monkeypatch.setattr(bench, "measure", world.measure)
        asked = ["bisect", str(SERIES), "--out", str(tmp_path), *words]
        code = cli.main(asked)
        kept = max(tmp_path.glob("bisect-*/bisect.json"), key=lambda path: path.stat().st_mtime_ns)
        return code, json.loads(kept.read_text())

    return run


Run = Callable[..., tuple[int, dict[str, Any]]]


@pytest.mark.parametrize("first", [1, 2, 3, 4])
def test_the_patch_that_is_slow_is_found(
    first: int, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    world = World(ms=lambda number: 80.0 if number >= first else 10.0)
    code, kept = run(world, *PAUSE)
    assert code == ExitCode.PASS
    (found,) = kept["first_bad"]
    assert found.startswith(f"000{first}-")
    assert world.measured[:2] == [0, 4]
    assert [state["number"] for state in kept["states"]] == sorted(world.measured)
    compared = kept["states"][-1]["compared"]
    assert compared["worse"]
    assert (compared["base"], compared["more"]) == pytest.approx((10.0, 70.0), abs=0.2)
    assert set(world.rounds) == {6}
    said = capsys.readouterr().out
    assert f"first bad: {found}: pause outside +70.0 ms [" in said
    assert re.search(r"(7\.9|8\.0)\d times the base's", said)


def test_noise_is_not_taken_for_a_slow_patch(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    """What is not worse is good where it would have been seen, and otherwise nothing is known."""
    world = World(ms=lambda number: 400.0 if number >= 3 else 100.0, noise_ms=40.0)
    code, kept = run(world, *PAUSE)
    assert code == ExitCode.PASS
    assert kept["first_bad"][0].startswith("0003-")
    wild = World(ms=lambda _number: 100.0, noise_ms=90.0)
    assert run(wild, *PAUSE, "--threshold", "1.1")[0] == ExitCode.CANNOT_TELL
    assert wild.rounds == [15]
    assert "could have been seen" in capsys.readouterr().err


def test_what_is_worse_within_the_threshold_is_good(run: Run) -> None:
    world = World(ms=lambda number: (10.0, 13.0, 13.0, 13.0, 20.0)[number])
    code, kept = run(world, *PAUSE)
    assert code == ExitCode.PASS
    assert kept["first_bad"][0].startswith("0004-")
    within = kept["states"][1]
    assert (within["verdict"], within["compared"]["worse"]) == ("good", True)


@pytest.mark.parametrize(
    ("ms", "words", "why"),
    [
        (10.0, PAUSE, "the bad end, 0004"),
        (80.0, (*PAUSE, "--good", "3"), "the good end, 0003"),
        (80.0, ("--metric", "memory_ratio"), "the bad end, 0004"),
    ],
)
def test_ends_that_are_not_what_they_should_be_tell_nothing(
    ms: float, words: tuple[str, ...], why: str, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    code, kept = run(World(ms=lambda number: ms if number >= 2 else 10.0), *words)
    assert code == ExitCode.CANNOT_TELL
    assert kept["first_bad"] == []
    assert why in capsys.readouterr().err


def test_what_does_not_build_is_skipped_and_told(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    world = World(
        ms=lambda number: 80.0 if number >= 3 else 10.0, builds=lambda number: number != 2
    )
    code, kept = run(world, *PAUSE)
    assert code == ExitCode.CANNOT_TELL
    assert [name[:4] for name in kept["first_bad"]] == ["0002", "0003"]
    assert "first bad: one of 0002-" in capsys.readouterr().out
    assert {s["number"]: s["verdict"] for s in kept["states"]}[2] == "skip"


def test_a_build_that_fails_can_be_asked_for(run: Run) -> None:
    world = World(builds=lambda number: number < 2)
    code, kept = run(world, "--metric", "build")
    assert code == ExitCode.PASS
    assert kept["first_bad"][0].startswith("0002-")
    assert world.measured == []


def test_a_guest_that_is_harmed_can_be_asked_for(run: Run) -> None:
    code, kept = run(World(harms=lambda number: number >= 4), "--metric", "harm")
    assert code == ExitCode.PASS
    assert kept["first_bad"][0].startswith("0004-")
    assert kept["states"][-1]["said"] == "7 of 7 upgrades failed"


def test_a_base_that_harms_guests_tells_nothing(run: Run) -> None:
    code, kept = run(World(harms=lambda _number: True), "--metric", "harm")
    assert code == ExitCode.CANNOT_TELL
    assert kept["states"][0]["said"] == "the base harms guests as well"


def test_what_can_be_asked_for() -> None:
    assert verb.figure("pause_ms.outside", 1.5) == "pause_outside_ms"
    assert verb.figure("phase_resume_ms", 1.0) == "phase_resume_ms"
    assert verb.figure("huge_pages_kept", 0.8) == "huge_pages_kept"
    assert verb.figure("harm", 0.8) == ""


@pytest.mark.parametrize(
    ("metric", "threshold"),
    [("beauty", 1.5), ("memory_ratio", 0.0), ("memory_ratio", 0.9), ("huge_pages_kept", 1.5)],
)
def test_what_cannot_be_asked_for(metric: str, threshold: float) -> None:
    with pytest.raises(UsageError):
        verb.figure(metric, threshold)


def test_fewer_huge_pages_are_worse(run: Run) -> None:
    world = World(kept=lambda number: 0.5 if number >= 2 else 1.0)
    code, kept = run(world, "--metric", "huge_pages_kept", "--threshold", "0.8")
    assert code == ExitCode.PASS
    assert kept["first_bad"][0].startswith("0002-")
    assert "huge pages kept -0.5" in kept["states"][-1]["said"]


def test_a_patch_is_named_by_its_number_or_its_commit(tmp_path: Path) -> None:
    paths = []
    for number, commit in enumerate(("1234567890", "abcdef1234"), 1):
        paths.append(tmp_path / f"{number}.patch")
        paths[-1].write_text(f"From {commit} Mon Sep 17 00:00:00 2001\n")
    series = Series("s", tuple(paths))
    given = ("0", "2", "1234567", "abcdef123")
    assert [verb.number_of(text, series) for text in given] == [0, 2, 1, 2]
    for text in ("3", "-1", "abc", "fedcba9876"):
        with pytest.raises(UsageError):
            verb.number_of(text, series)


def test_the_good_end_comes_before_the_bad_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "by_name", World().by_name)
    monkeypatch.setattr(bench, "measure", World().measure)
    words = ["bisect", str(SERIES), *PAUSE, "--out", str(tmp_path), "--good", "3", "--bad", "3"]
    assert cli.main(words) == ExitCode.USAGE
