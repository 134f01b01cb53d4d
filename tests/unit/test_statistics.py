# SPDX-License-Identifier: GPL-2.0-or-later
"""The median's interval against every resample there is, and against values known by hand."""

from __future__ import annotations

import itertools
import statistics
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab.results.statistics import (
    Estimate,
    difference,
    estimate,
    interval,
    ratios,
    resampled_medians,
)


def test_nothing_is_not_zero() -> None:
    assert estimate([]) is None


def test_one_measurement_has_no_interval() -> None:
    assert estimate([7.5]) == Estimate(
        n=1, median=7.5, low=None, high=None, minimum=7.5, maximum=7.5, p95=7.5
    )


def test_known_values() -> None:
    assert estimate([5.0, 1.0, 3.0, 2.0, 4.0]) == Estimate(
        n=5, median=3.0, low=1.0, high=5.0, minimum=1.0, maximum=5.0, p95=5.0
    )
    assert estimate([4.0, 1.0]) == Estimate(
        n=2, median=2.5, low=1.0, high=4.0, minimum=1.0, maximum=4.0, p95=4.0
    )


@pytest.mark.parametrize(("n", "low"), [(5, 1), (6, 1.5), (7, 2), (15, 4), (21, 7)])
def test_more_measurements_leave_the_extremes_out(n: int, low: float) -> None:
    """Five runs cannot do better than their range; see docs/measuring.md."""
    assert interval(range(1, n + 1)) == (low, n + 1 - low)


def test_ties() -> None:
    assert interval([3.0] * 6) == (3.0, 3.0)
    found = estimate([1.0, 2.0, 2.0, 2.0, 2.0, 2.0, 9.0])
    assert found is not None
    assert (found.low, found.median, found.high) == (2.0, 2.0, 2.0)
    assert (found.minimum, found.maximum) == (1.0, 9.0)


@given(st.lists(st.integers(0, 9), min_size=1, max_size=6))
def test_counting_the_resamples_is_drawing_them_all(values: list[int]) -> None:
    drawn = Counter(
        float(statistics.median(resample))
        for resample in itertools.product(values, repeat=len(values))
    )
    counted: Counter[float] = Counter()
    for median, ways in resampled_medians(values):
        counted[median] += ways
    assert +counted == drawn


@given(st.lists(st.floats(0, 1e6), min_size=2, max_size=30))
def test_the_interval_holds_the_median_and_is_within_the_range(values: list[float]) -> None:
    low, high = interval(values)
    assert min(values) <= low <= statistics.median(values) <= high <= max(values)


def test_ratios_are_taken_within_a_round() -> None:
    assert ratios({1: 2.0, 2: 9.0, 4: 5.0}, {1: 4.0, 2: 3.0, 3: 1.0}) == [0.5, 3.0]
    assert ratios({1: 2.0}, {1: 0.0}) == []


def test_the_95th_percentile_is_a_measurement() -> None:
    for n, expected in ((1, 1), (19, 19), (20, 19), (40, 38), (100, 95)):
        found = estimate([float(value) for value in range(1, n + 1)])
        assert found is not None
        assert found.p95 == expected


def test_a_difference_is_shown_or_is_not() -> None:
    before = [10.0, 11.0, 12.0, 13.0, 14.0]
    same = difference(before, before)
    assert same is not None
    assert (same.ratio, same.shown) == (1.0, False)
    slower = difference(before, [value + 20 for value in before])
    assert slower is not None
    assert slower.shown
    assert slower.low is not None
    assert slower.high is not None
    assert slower.low <= 32 / 12 == slower.ratio <= slower.high


def test_what_cannot_be_compared() -> None:
    assert difference([], [1.0]) is None
    assert difference([1.0], []) is None
    assert difference([0.0, 0.0], [1.0, 1.0]) is None
    once = difference([1.0], [3.0])
    assert once is not None
    assert (once.ratio, once.low, once.shown) == (3.0, None, False)


@given(
    st.lists(st.integers(1, 9), min_size=2, max_size=3),
    st.lists(st.integers(1, 9), min_size=2, max_size=3),
)
def test_a_difference_is_that_of_all_resamples(before: list[int], after: list[int]) -> None:
    """Against every pair of resamples, drawn one by one."""
    drawn = sorted(
        statistics.median(above) / statistics.median(below)
        for below in itertools.product(before, repeat=len(before))
        for above in itertools.product(after, repeat=len(after))
    )
    found = difference(before, after)
    assert found is not None
    tail = -(-len(drawn) // 40)
    assert (found.low, found.high) == (drawn[tail - 1], drawn[-tail])
