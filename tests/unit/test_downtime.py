# SPDX-License-Identifier: GPL-2.0-or-later
"""The arithmetic of the three clocks."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab.measure import downtime
from lab.measure.downtime import Window
from lab.vm.agent import Beat
from lab.vm.monitor import Event

MS = 1_000_000


def beats(first: int, host_ms: list[float], guest_ms: list[float] | None = None) -> list[Beat]:
    guest_ms = guest_ms or host_ms
    return [
        Beat(first + i, int(host * MS), int(guest * MS), int(guest * MS))
        for i, (host, guest) in enumerate(zip(host_ms, guest_ms, strict=True))
    ]


def test_pause_by_all_clocks() -> None:
    old = beats(1, [2000.0, 2001.0, 2002.0])
    # 40 ms pass outside, 1.5 ms inside: the guest's clock stands still while it is stopped.
    new = beats(4, [2042.0, 2043.0], [2003.5, 2004.5])
    pause = downtime.pause(
        old,
        new,
        Window(2_001 * MS, 2_043 * MS),
        [Event("STOP", {}, 10.000), Event("RESUME", {}, 9.0)],
        [Event("RESUME", {}, 10.0305)],
    )
    assert pause.qmp == pytest.approx(30.5)
    assert pause.outside == pytest.approx(40.0)
    assert pause.inside == pytest.approx(1.5)
    assert pause.outside_before == pytest.approx(1.0)


def test_the_noise_before_does_not_include_the_pause() -> None:
    old = beats(1, [1000.0, 1001.0])
    new = beats(3, [1500.0])
    pause = downtime.pause(old, new, Window(1_001 * MS + 1, 1_400 * MS), [], [])
    assert pause.outside == pytest.approx(499.0)
    assert pause.outside_before == pytest.approx(1.0)


def test_no_resume_is_not_a_pause_of_zero() -> None:
    assert downtime.qmp_pause_ms([Event("STOP", {}, 10.0)], []) is None
    assert downtime.qmp_pause_ms([], [Event("RESUME", {}, 10.0)]) is None
    assert downtime.qmp_pause_ms([Event("STOP", {}, 10.0)], [Event("RESUME", {}, 9.0)]) is None
    assert downtime.outside_ms([], 0, 1) is None


def test_numbers_lost_and_doubled() -> None:
    old, new = beats(1, [1.0, 2.0, 3.0]), beats(3, [4.0, 5.0])
    assert downtime.count(old, new, 0) == downtime.Numbers(received=5, lost=0, doubled=1)
    late = beats(6, [9.0])
    assert downtime.count(old, late, 0).lost == 2
    assert downtime.count(old, late, 2).lost == 0  # the guest says it never sent them


def test_clock_that_goes_back() -> None:
    assert not downtime.went_back(beats(1, [1.0, 2.0], [1.0, 1.0]))
    assert downtime.went_back(beats(1, [1.0, 2.0], [2.0, 1.9]))


@given(st.lists(st.integers(1, 50), min_size=2, max_size=60), st.integers(1, 59))
def test_merge_keeps_order_and_gap_does_not_depend_on_the_split(gaps: list[int], cut: int) -> None:
    arrivals, now = [], 0
    for gap in gaps:
        now += gap
        arrivals.append(float(now))
    everything = beats(1, arrivals)
    cut = min(cut, len(everything))
    merged = downtime.merge(everything[:cut], everything[cut:])
    assert merged == everything
    assert downtime.outside_ms(merged, 0, now * MS) == max(gaps[1:])
