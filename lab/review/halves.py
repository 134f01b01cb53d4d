# SPDX-License-Identifier: GPL-2.0-or-later
"""Binary search for the first bad one of many.  Pure."""

from __future__ import annotations

import enum
from collections.abc import Callable


class Judgement(enum.StrEnum):
    """Whether a state is good, bad, or cannot be judged."""

    GOOD = "good"
    BAD = "bad"
    SKIP = "skip"


def first_bad(good: int, bad: int, judge: Callable[[int], Judgement]) -> list[int]:
    """Return the first bad one between `good` and `bad`, which are known to be so.

    Where those just before it cannot be judged it may be any of several: then all of them.
    """
    skipped: set[int] = set()
    while left := [number for number in range(good + 1, bad) if number not in skipped]:
        number = min(left, key=lambda one: abs(2 * one - good - bad))
        match judge(number):
            case Judgement.GOOD:
                good = number
            case Judgement.BAD:
                bad = number
            case Judgement.SKIP:
                skipped.add(number)
    return list(range(good + 1, bad + 1))
