# SPDX-License-Identifier: GPL-2.0-or-later
"""The arithmetic of the three clocks."""

from __future__ import annotations

import time
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab.measure import downtime
from lab.measure.downtime import Window
from lab.vm.agent import Beat
from lab.vm.monitor import Event

MS = 1_000_000


def beats(
    first: int, host_ms: Sequence[float], guest_ms: Sequence[float] | None = None
) -> list[Beat]:
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


def taken_apart(
    beats: list[Beat],
    stop_ms: float | None,
    resume_ms: float | None,
    cpu: list[tuple[int, float]] | None = None,
) -> downtime.Parts:
    stamps = [None if ms is None else ms * MS for ms in (stop_ms, resume_ms)]
    return downtime.parts(beats, Window(0, 10_000 * MS), stamps[0], stamps[1], cpu or [])


@pytest.mark.parametrize(
    ("last", "stop", "resume", "next_one", "before", "after"),
    [
        (100, 102, 120, 123, 2, 3),  # nothing stalled
        (100, 160, 180, 181, 60, 1),  # before STOP
        (100, 101, 120, 260, 1, 140),  # after RESUME
        (100, 140, 150, 210, 40, 60),  # both
        (100, 400, 420, 190, 90, 0),  # long before the switch
        (400, 110, 120, 500, 0, 100),  # long after it
    ],
)
def test_the_parts_of_the_longest_gap(
    last: int, stop: int, resume: int, next_one: int, before: int, after: int
) -> None:
    ran = float(before + after)
    found = taken_apart(beats(7, [last, next_one], [50.0, 50.0 + ran]), stop, resume)
    assert (found.before_stop, found.after_resume, found.guest_ran) == (before, after, ran)


def test_parts_that_are_not_known() -> None:
    two = beats(1, [100, 200], [100, 103])
    assert taken_apart(two, None, None) == downtime.Parts(None, None, 3.0, None)
    assert taken_apart(two, 110, None) == downtime.Parts(10.0, None, 3.0, None)
    assert taken_apart([], 110, 120) == downtime.Parts()


@given(
    st.lists(st.floats(0.1, 400), min_size=4, max_size=4),
    st.lists(st.floats(0.1, 50), min_size=2, max_size=20),
)
def test_the_parts_and_the_stop_are_the_gap(points: list[float], steps: list[float]) -> None:
    """Wherever STOP and RESUME are, what is before, between and after them is the whole gap."""
    arrivals = [0.0]
    for step in steps:
        arrivals.append(arrivals[-1] + step)
    everything = beats(1, arrivals)
    stop, resume = sorted(points[:2])
    found = taken_apart(everything, stop, resume)
    outside = downtime.outside_ms(everything, 0, 10_000 * MS)
    assert outside is not None
    assert found.before_stop is not None
    assert found.after_resume is not None
    assert 0 <= found.before_stop + found.after_resume <= outside + 1e-3
    assert outside - found.before_stop - found.after_resume <= resume - stop + 1e-3


def test_the_processors_that_the_new_qemu_had_after_resume() -> None:
    cpu = [(80 * MS, 50.0), (120 * MS, 50.0), (170 * MS, 75.0), (220 * MS, 85.0)]
    gap = beats(1, [100, 220])
    assert taken_apart(gap, 101, 120, cpu).new_processors == pytest.approx(0.35)
    # in between readings, as if it were even
    assert taken_apart(gap, 101, 145, cpu).new_processors == pytest.approx(22.5 / 75)
    # readings are missing, or far apart
    assert taken_apart(gap, 101, 120, cpu[:3]).new_processors is None
    assert taken_apart(gap, 101, 120, [cpu[0], cpu[3]]).new_processors is None


def test_events_and_heartbeats_are_put_on_one_clock() -> None:
    """QEMU stamps its events with the time of day; heartbeats come on the monotonic clock."""
    now = time.monotonic_ns()
    wall = time.time()
    two = [Beat(n, now + at * MS, at * MS, 0) for n, at in ((1, 0), (2, 100))]
    pause = downtime.pause(
        two[:1],
        two[1:],
        Window(now, now + 50 * MS),
        [Event("STOP", {}, wall + 0.010)],
        [Event("RESUME", {}, wall + 0.030)],
        [(now, 0.0), (now + 50 * MS, 50.0), (now + 100 * MS, 100.0)],
    )
    assert pause.before_stop == pytest.approx(10, abs=2)
    assert pause.after_resume == pytest.approx(70, abs=2)
    assert pause.guest_ran == 100
    assert pause.new_processors == pytest.approx(1.0)
