# SPDX-License-Identifier: GPL-2.0-or-later
"""The test of many figures at once: on noise of our own making, with and without a slowdown.

The noise has what benches have: a body that is skewed, one run in six that stood still for 10 to
80 ms more, and a host that is up to some times as slow in one round as in the next.
"""

from __future__ import annotations

import itertools
import math
import random
import statistics
from collections.abc import Mapping

import pytest

from lab.results import paired, worse
from lab.results.paired import FEWEST, TOGETHER, Compared, Family, Pair, Track, compare, track

#: A mechanism's usual pause after RESUME (ms).
USUAL = {"cpr-transfer": 20.0, "precopy": 40.0, "postcopy": 60.0}
MS = 1.0


@pytest.fixture(autouse=True)
def _quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take fewer draws than a real verdict does: more alarms come of it, not fewer."""
    monkeypatch.setattr(paired, "_DRAWS", 1000)


def noisy(by_lot: random.Random, usual: float) -> float:
    """Return a time that is `usual`, more or less."""
    stood_still = by_lot.uniform(10, 80) if by_lot.random() < 1 / 6 else 0.0
    return usual * math.exp(by_lot.gauss(0, 0.2)) + stood_still


def measured(by_lot: random.Random, usual: float, busy: float, delay: float) -> dict[str, float]:
    """Return the clocks of one upgrade, which is `delay` longer after RESUME."""
    qmp, after = busy * noisy(by_lot, 5), busy * noisy(by_lot, usual) + delay
    inside, total = busy * noisy(by_lot, 15), 20 * busy * noisy(by_lot, usual)
    return {"qmp": qmp, "after": after, "outside": qmp + after, "inside": inside, "total": total}


def rounds(
    by_lot: random.Random, number: int, delays: Mapping[str, float]
) -> dict[str, dict[str, list[Pair]]]:
    """Return the rounds of a bench, in which mechanisms are delayed by the series."""
    found: dict[str, dict[str, list[Pair]]] = {name: {} for name in delays}
    for _ in range(number):
        busy = by_lot.choice((1.0, 1.0, 1.3, 2.5))
        for name, delay in delays.items():
            base = measured(by_lot, USUAL[name], busy, 0.0)
            series = measured(by_lot, USUAL[name], busy, delay)
            for figure in base:
                found[name].setdefault(figure, []).append((base[figure], series[figure]))
    return found


def family(bench: Mapping[str, Mapping[str, list[Pair]]], number: int) -> Family:
    """Return the first `number` rounds as what is compared."""
    tracks = {
        name: {figure: track(pairs[:number]) for figure, pairs in figures.items()}
        for name, figures in bench.items()
    }
    return Family(tracks, lambda _figure: MS)


def everywhere(delay: float) -> dict[str, float]:
    return dict.fromkeys(USUAL, delay)


def alarm(mine: Family, alpha: float) -> bool:
    """Whether anything is worse, without the estimates, which take longer."""
    critical = mine.critical(alpha)
    tracks = [[one] for figures in mine.tracks.values() for one in figures.values()]
    every = [*tracks, *mine.shared.values()]
    return any(paired._together(one, MS) >= critical for one in every)


def verdict(by_lot: random.Random, delays: Mapping[str, float], most: int = 15) -> bool:
    """Whether anything is called worse at any of the looks, of which all are taken."""
    looks = worse.looks(6, 15)
    bench = rounds(by_lot, most, delays)
    each = worse.ALPHA / len(looks)
    return any(alarm(family(bench, n), each) for n in looks if n <= most)


def of(found: list[Compared], mechanism: str, figure: str) -> Compared:
    (one,) = (c for c in found if (c.mechanism, c.figure) == (mechanism, figure))
    return one


def test_a_series_that_changes_nothing_is_rarely_called_worse() -> None:
    """All looks together alarm in 1 of 20 verdicts: in 8 of 60 or more once in 90 times."""
    by_lot = random.Random(20)
    assert sum(verdict(by_lot, everywhere(0.0)) for _ in range(60)) < 8


def test_without_the_correction_it_often_would_be() -> None:
    """That the noise of these tests is one in which figures do stand out by chance."""
    by_lot = random.Random(20)
    found = 0
    for _ in range(100):
        mine = family(rounds(by_lot, 9, everywhere(0.0)), 9)
        each = [one for figures in mine.tracks.values() for one in figures.values()]
        found += any(paired.statistic(one) > 1.645 for one in each)
    assert found > 15


@pytest.mark.parametrize(
    ("delay", "delayed", "most", "least"),
    [
        (40.0, tuple(USUAL), 6, 0.6),
        (40.0, tuple(USUAL), 9, 0.9),
        (200.0, tuple(USUAL), 6, 1.0),
        (200.0, ("precopy",), 9, 0.9),
        (40.0, ("cpr-transfer",), 15, 0.6),
    ],
)
def test_a_delay_is_found(delay: float, delayed: tuple[str, ...], most: int, least: float) -> None:
    by_lot = random.Random(3)
    delays = {name: delay if name in delayed else 0.0 for name in USUAL}
    assert statistics.fmean(verdict(by_lot, delays, most) for _ in range(20)) >= least


def test_a_delay_after_resume_is_said_of_the_clocks_that_see_it() -> None:
    bench = rounds(random.Random(4), 9, everywhere(80.0))
    found = compare(family(bench, 9), 0.05)
    assert {c.figure for c in found if c.worse} == {"after", "outside"}
    one = of(found, TOGETHER, "after")
    assert one.low is not None
    assert one.high is not None
    assert MS < one.low < 80 < one.high
    assert one.more == pytest.approx(80, abs=15)
    assert one.ratio == pytest.approx((one.base + one.more) / one.base)


def test_the_interval_and_the_verdict_agree() -> None:
    by_lot = random.Random(5)
    for delay in (0.0, 10.0, 30.0, 60.0):
        for one in compare(family(rounds(by_lot, 6, everywhere(delay)), 6), 0.05):
            assert one.worse == (one.low is not None and one.low > MS), one


def test_what_is_said_could_have_been_seen_mostly_is() -> None:
    """Series that are as slow as the last run says it would have seen, on noise of their own."""
    by_lot = random.Random(6)
    hits = []
    for _ in range(6):
        mine = family(rounds(by_lot, 9, everywhere(0.0)), 9)
        least = of(compare(mine, 0.05, ["after"]), TOGETHER, "after").seen
        assert least is not None
        for _ in range(5):
            slower = family(rounds(by_lot, 9, everywhere(least)), 9)
            hits.append(paired._together(slower.shared["after"], MS) >= slower.critical(0.05))
    assert statistics.fmean(hits) >= 0.7


def test_more_rounds_see_less() -> None:
    bench = rounds(random.Random(7), 18, everywhere(0.0))
    few, many = (
        of(compare(family(bench, n), 0.05, ["outside"]), TOGETHER, "outside").seen for n in (6, 18)
    )
    assert few is not None
    assert many is not None
    assert many < few


def test_only_what_was_asked_is_said_to_be_seen() -> None:
    found = compare(family(rounds(random.Random(8), 6, everywhere(0.0)), 6), 0.05, ["qmp"])
    assert {c.figure for c in found if c.seen is not None} == {"qmp"}


@pytest.mark.parametrize("number", [2, 3])
def test_too_few_rounds_call_nothing_worse(number: int) -> None:
    """Of two rounds there are six relabellings: the rarest of them is no rarer than one in six."""
    bench = {"precopy": {"qmp": [(1.0, 900.0)] * number}}
    (one,) = compare(family(bench, number), 0.04, ["qmp"])
    assert not one.worse
    assert (one.low, one.seen) == (None, None)
    assert number < FEWEST


def test_the_same_runs_give_the_same_verdict() -> None:
    bench = rounds(random.Random(9), 6, everywhere(20.0))
    assert compare(family(bench, 6), 0.05, ["qmp"]) == compare(family(bench, 6), 0.05, ["qmp"])


def test_less_than_the_resolution_is_not_worse_however_steady() -> None:
    pairs = [(100 + n / 100, 100.9 + n / 100) for n in range(9)]
    more = [(base, series + 1) for base, series in pairs]
    (one,) = compare(family({"precopy": {"qmp": pairs}}, 9), 0.05)
    assert not one.worse
    (one,) = compare(family({"precopy": {"qmp": more}}, 9), 0.05)
    assert one.worse


def test_the_critical_value_is_that_of_all_relabellings() -> None:
    """Against all 70 of four rounds: 3 of 70 is less than 5 %, 4 of 70 is more."""
    mine = track([(1.0, 5.0), (2.0, 8.0), (4.0, 3.0), (7.0, 6.0)])
    (block,) = paired.scores(mine, MS)
    every = sorted(sum(block[p] for p in c) for c in itertools.combinations(range(8), 4))
    paired_critical = Family({"m": {"qmp": mine}}, lambda _f: MS).critical(0.05)
    assert sum(z >= paired_critical for z in every) <= 3
    assert statistics.pvariance(every) == pytest.approx(1)
    assert statistics.fmean(every) == pytest.approx(0)


def test_the_largest_of_all_decides_that_of_all_mechanisms_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Against relabellings that are drawn here; without that of both it would be 0.024 of them."""
    monkeypatch.setattr(paired, "_DRAWS", 4000)
    by_lot = random.Random(2)
    tracks = [track([(by_lot.random(), by_lot.random()) for _ in range(9)]) for _ in range(2)]
    mine = Family(
        {name: {"qmp": one} for name, one in zip("ab", tracks, strict=True)}, lambda _f: 0
    )
    chosen = list(itertools.combinations(range(6), 3))
    added = [
        [[sum(block[place] for place in c) for c in chosen] for block in paired.scores(one)]
        for one in tracks
    ]
    largest = []
    for _ in range(20_000):
        a, b = (sum(by_lot.choice(block) for block in one) for one in added)
        largest.append(max(a, b, (a + b) / math.sqrt(2)))
    critical = mine.critical(0.02)
    assert 0.015 < statistics.fmean(z >= critical for z in largest) < 0.021


@pytest.mark.parametrize(
    ("number", "sizes"), [(4, [4]), (5, [5]), (6, [3, 3]), (8, [3, 5]), (9, [3, 3, 3])]
)
def test_blocks_are_three_rounds_or_more(number: int, sizes: list[int]) -> None:
    mine = track([(float(n), -float(n)) for n in range(number)])
    assert [len(block) // 2 for block in mine.blocks] == sizes
    assert [base for pair in mine.pairs for base in pair[0]] == list(range(number))


def test_a_round_that_lacks_a_figure_counts_for_the_others() -> None:
    full = [(10.0 + n, 90.0 + n) for n in range(9)]
    some: list[Pair | None] = [None if n == 4 else pair for n, pair in enumerate(full)]
    mine = Family({"m": {"a": track(full), "b": track(some)}}, lambda _f: MS)
    a, b = compare(mine, 0.05)
    assert (a.n, b.n) == (9, 8)
    assert a.worse
    assert b.worse
    assert b.more == pytest.approx(80, abs=1)


def test_equal_values_are_no_evidence() -> None:
    (one,) = compare(family({"m": {"qmp": [(1.0, 1.0)] * 6}}, 6), 0.05, ["qmp"])
    assert (one.worse, one.more, one.ratio) == (False, 0.0, 1.0)
    assert isinstance(track([(1.0, 1.0)] * 6), Track)
