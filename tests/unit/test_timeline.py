# SPDX-License-Identifier: GPL-2.0-or-later
"""One clock for everything, and how slow the guest was."""

from __future__ import annotations

import time

import pytest

from lab.measure.downtime import Window
from lab.measure.timeline import CpuTime, Timeline, brownout, rates, timeline
from lab.model import Sample
from lab.vm.agent import Beat
from lab.vm.monitor import Event


def line(old: list[float], new: list[float], end_ms: float = 100.0) -> Timeline:
    return Timeline(
        end_ms=end_ms,
        stop_ms=None,
        resume_ms=None,
        old_beats_ms=old,
        new_beats_ms=new,
        samples=[],
    )


def every_ms(first: int, last: int) -> list[float]:
    return [float(ms) for ms in range(first, last)]


def test_all_is_told_on_one_clock() -> None:
    start = time.monotonic_ns()
    wall = time.time()
    sample = Sample(at_ms=5.0, old_pss_bytes=2, new_pss_bytes=1, skew_bytes=0)
    found = timeline(
        [Beat(n, start + n * 1_000_000, 0, 0) for n in (-2000, -1, 3)],
        [Beat(4, start + 9_000_000, 0, 0)],
        Window(start, start + 20_000_000),
        (
            [Event("MIGRATION", {"status": "setup"}, wall), Event("STOP", {}, wall + 0.010)],
            [Event("RESUME", {}, wall + 0.015)],
        ),
        (start - 2_000_000, [sample]),
        [(start - 3_000_000, 70.0)],
    )
    assert found.began_s == pytest.approx(wall, abs=0.002)
    assert found.steps[0].at_ms == pytest.approx(0, abs=2)
    assert [step.status for step in found.steps] == ["setup"]
    assert found.cpu == [CpuTime(at_ms=-3.0, used_ms=70.0)]
    assert found.end_ms == 20
    assert found.old_beats_ms == [-1, 3]  # and no older ones than a second
    assert found.new_beats_ms == [9]
    assert found.stop_ms == pytest.approx(10, abs=2)
    assert found.resume_ms == pytest.approx(15, abs=2)
    assert found.samples == [sample.model_copy(update={"at_ms": 3.0})]


def test_rates_are_of_whole_pieces() -> None:
    assert rates(every_ms(0, 50), 0, 59) == [(10.0, 1.0), (30.0, 1.0)]
    assert rates([], 0, 10) == []


def test_a_guest_that_never_slowed_down() -> None:
    found = brownout(line(every_ms(-1000, 50), every_ms(50, 1100)))
    assert found is not None
    assert (found.lowest_share, found.slow_ms, found.slow_before_ms) == (1.0, 0.0, 0.0)


def test_a_pause_and_a_slow_beginning() -> None:
    """Silent for 60 ms, then half as many for 200 ms."""
    slowly = [float(ms) for ms in range(100, 300, 2)]
    found = brownout(line(every_ms(-1000, 40), [*slowly, *every_ms(300, 1100)]))
    assert found is not None
    assert found.lowest_share == 0.0
    assert found.slow_ms == 260.0
    assert found.slow_before_ms == 0.0


def test_noise_before_is_told_apart() -> None:
    found = brownout(line([*every_ms(-1000, -500), *every_ms(-440, 0)], every_ms(0, 1100)))
    assert found is not None
    assert (found.slow_before_ms, found.slow_ms) == (60.0, 0.0)


def test_a_guest_that_was_never_heard() -> None:
    assert brownout(line([], every_ms(0, 1100))) is None
