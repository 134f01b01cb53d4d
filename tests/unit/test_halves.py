# SPDX-License-Identifier: GPL-2.0-or-later
"""The search by halves."""

from __future__ import annotations

import math

import pytest

from lab.review.halves import Judgement, first_bad


def judge_of(first: int, skipped: set[int], asked: list[int]) -> object:
    def judge(number: int) -> Judgement:
        asked.append(number)
        if number in skipped:
            return Judgement.SKIP
        return Judgement.BAD if number >= first else Judgement.GOOD

    return judge


@pytest.mark.parametrize("last", [1, 2, 3, 4, 7, 16, 33])
def test_every_first_bad_one_is_found_in_few_steps(last: int) -> None:
    for first in range(1, last + 1):
        asked: list[int] = []
        assert first_bad(0, last, judge_of(first, set(), asked)) == [first]
        assert len(asked) <= math.ceil(math.log2(last)) if last > 1 else not asked
        assert len(set(asked)) == len(asked)
        assert not {0, last} & set(asked)  # the ends are known


def test_what_cannot_be_judged_is_gone_round() -> None:
    for skipped in ({4}, {4, 5}, {3, 4, 5}, {1, 7}):
        for first in set(range(1, 9)):
            asked: list[int] = []
            found = first_bad(0, 8, judge_of(first, skipped, asked))
            assert first in found
            # Those before the first that can be judged bad, as far as nobody can tell them apart.
            assert set(found[:-1]) <= skipped
            assert asked.count(4) <= 1


def test_only_what_is_between_is_searched() -> None:
    asked: list[int] = []
    assert first_bad(2, 5, judge_of(4, set(), asked)) == [4]
    assert set(asked) <= {3, 4}
