# SPDX-License-Identifier: GPL-2.0-or-later
"""The median of a handful of measurements, and how far it can be trusted.

Pure, and without random numbers: the same measurements always give the same interval.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from itertools import accumulate

from pydantic import Field

from lab.model import Model

#: Each end of the interval leaves out one part in so many: 2.5 %, so that 95 % are within.
_TAIL = 40
_NEXT_TO_NONE = 10**9


class Estimate(Model):
    """The median of repeated measurements, in their unit."""

    n: int = Field(description="how many measurements")
    median: float
    low: float | None = Field(
        description="lower end of the median's 95 % bootstrap interval; null for one measurement"
    )
    high: float | None = Field(description="upper end of it")
    minimum: float
    maximum: float
    p95: float | None = Field(
        default=None, description="95th percentile, nearest rank: the largest of fewer than 20"
    )


class Difference(Model):
    """How one set of measurements compares with another, independent one."""

    ratio: float = Field(description="of the medians")
    low: float | None = Field(
        description="lower end of the ratio's 95 % bootstrap interval; null when one has one run"
    )
    high: float | None = Field(description="upper end of it")

    @property
    def shown(self) -> bool:
        """Whether chance alone does not explain it: the interval does not hold 1."""
        return self.low is not None and self.high is not None and not self.low <= 1 <= self.high


def estimate(values: Sequence[float]) -> Estimate | None:
    """Return the median of `values` with its interval; None when there are none."""
    if not values:
        return None
    low, high = interval(values) if len(values) > 1 else (None, None)
    return Estimate(
        n=len(values),
        median=statistics.median(values),
        low=low,
        high=high,
        minimum=min(values),
        maximum=max(values),
        p95=sorted(values)[math.ceil(0.95 * len(values)) - 1],
    )


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the percentile bootstrap's 95 % confidence interval of the median of `values`.

    The percentile interval spans the middle 95 % of the medians of all resamples (B. Efron,
    "Bootstrap methods: another look at the jackknife", Annals of Statistics 7 (1979), 1-26;
    B. Efron and R. Tibshirani, "An Introduction to the Bootstrap" (1993), chapter 13).
    """
    medians = resampled_medians(values)
    return _percentile(medians), _percentile(medians[::-1])


def _percentile(medians: Sequence[tuple[float, float]]) -> float:
    """Return the first of `medians` at which one part in `_TAIL` of the resamples is reached."""
    reached = accumulate(ways for _, ways in medians)
    everything = sum(ways for _, ways in medians)
    return next(
        median
        for (median, _), so_far in zip(medians, reached, strict=True)
        if so_far * _TAIL >= everything
    )


def resampled_medians(values: Sequence[float]) -> list[tuple[float, int]]:
    """Return every median that a resample of `values` can have, and how many resamples have it."""
    ordered = sorted(values)
    found = [((ordered[i] + ordered[j]) / 2, times) for i, j, times in _middles(len(ordered))]
    return sorted(found)


@cache
def _middles(n: int) -> list[tuple[int, int, int]]:
    """Return the places, from 0, of the two values in the middle, and how many resamples have them.

    That depends on nothing but how many values there are, and is worked out once.

    There are n**n resamples, all equally likely.  They are counted, not drawn, as Efron does in
    section 3 of the paper: the m-th smallest of a resample is one of the k smallest values when
    at least m of its n draws are.  For an even n the median is the mean of the two in the middle:
    the lower is the i-th and the upper the j-th value, i < j, when half of the draws are among the
    i smallest, the i-th among them, and half among the others from the j-th on, that one among
    them.
    """
    middle = (n + 1) // 2
    up_to = [
        sum(math.comb(n, t) * k**t * (n - k) ** (n - t) for t in range(middle, n + 1))
        for k in range(n + 1)
    ]
    found = []
    for i in range(1, n + 1):
        alone = up_to[i] - up_to[i - 1]
        for j in range(i + 1, n + 1) if n % 2 == 0 else ():
            below = i**middle - (i - 1) ** middle
            above = (n - j + 1) ** middle - (n - j) ** middle
            ways = math.comb(n, middle) * below * above
            found.append((i - 1, j - 1, ways))
            alone -= ways
        found.append((i - 1, i - 1, alone))
    return found


def _likely(medians: Sequence[tuple[float, int]]) -> Iterator[tuple[float, float]]:
    """Yield the medians with their share of all resamples, but for those that have next to none.

    Of 30 values there are 465 medians, most of them less likely than one in a thousand million.
    """
    everything = sum(ways for _, ways in medians)
    for median, ways in medians:
        if ways * _NEXT_TO_NONE > everything:
            yield median, ways / everything


def difference(before: Sequence[float], after: Sequence[float]) -> Difference | None:
    """Return the ratio of the medians, after / before, with its percentile bootstrap interval.

    The two sets are resampled independently of each other (Efron and Tibshirani, chapter 8): every
    pair of medians that resamples can have counts as often as it is reached.  None where there is
    nothing to compare, or the median before is zero.
    """
    if not before or not after or not statistics.median(before):
        return None
    ratio = statistics.median(after) / statistics.median(before)
    if min(len(before), len(after)) < 2 or min(before) <= 0:
        return Difference(ratio=ratio, low=None, high=None)
    below = list(_likely(resampled_medians(before)))
    pairs = sorted(
        (above / under, part * share)
        for above, part in _likely(resampled_medians(after))
        for under, share in below
    )
    return Difference(ratio=ratio, low=_percentile(pairs), high=_percentile(pairs[::-1]))


def ratios(these: Mapping[int, float], those: Mapping[int, float]) -> list[float]:
    """Return these / those, pair by pair, for every round that has both.

    Runs of the same round saw the same host; a round where the divisor is zero gives no ratio.
    """
    return [these[key] / those[key] for key in sorted(these) if those.get(key)]
