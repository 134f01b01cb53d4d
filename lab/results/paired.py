# SPDX-License-Identifier: GPL-2.0-or-later
"""What is worse with a series than without it, of many figures at once.  Pure.

Both were run in the same rounds, one right after the other.  Three rounds or more that follow each
other are a block; within it, if the series changes nothing, the runs with it and those without
could be exchanged.  So the test is a permutation test:

* **Statistic.**  A figure's values are aligned by their block's median and ranked, all together;
  the sum of the ranks with the series, less what is expected of it, is divided by its standard
  deviation over all relabellings within blocks.  (J. L. Hodges and E. L. Lehmann, "Rank methods
  for combination of independent experiments in analysis of variance", Annals of Mathematical
  Statistics 33 (1962), 482-497.)  Ranks: one run that stood still for a second weighs no more than
  another.
* **All mechanisms together.**  The mean of a figure's statistics in all mechanisms, times the root
  of their number: a slowdown that is in all of them is seen in fewer rounds.
* **Many figures, one error rate.**  A figure is worse when its statistic reaches the value that
  the *largest* of all of them reaches in no more than `alpha` of the relabellings, which move all
  figures of a mechanism at once.  (Single-step maxT: P. H. Westfall and S. S. Young,
  "Resampling-Based Multiple Testing" (1993), section 2.3.)  So `alpha` is the probability of one
  false alarm or more in the whole verdict, however figures depend on each other.
* **Relabellings** are drawn by a generator with a fixed seed: the same runs give the same verdict.
  What was measured counts as one of them (B. Phipson and G. K. Smyth, "Permutation p-values should
  never be zero", Statistical Applications in Genetics and Molecular Biology 9 (2010), 39).
* **Several looks.**  Rounds may be added and all of it done again: a verdict after each of K looks
  at alpha / K has at most alpha in all (Bonferroni's inequality), whatever made one go on.
* **Estimate and interval.**  The median of all differences within blocks, and the shifts that the
  same test does not reject: an interval that does not contain the resolution is "worse".
* **What could have been seen.**  The runs, relabelled, are noise without a series.  The smallest
  shift that is called worse in 95 of 100 such data sets is what this run could have seen.
"""

from __future__ import annotations

import itertools
import math
import random
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property

from pydantic import Field

from lab.model import Model

#: A round's value without the series and with it.
Pair = tuple[float, float]
#: What a figure of all mechanisms together is called.
TOGETHER = "all together"
#: Rounds in a block; the last one has those that are left over as well.
_BLOCK = 3
#: Fewer rounds than this say nothing.
FEWEST = 4
_DRAWS = 4000
_TRIALS = 100
_POWER = 0.95
_SEED = 1
#: Sums of the same numbers in another order differ by less.
_NEAR = 1e-9


class Compared(Model):
    """One figure of one mechanism, with the series against without it, in the figure's unit."""

    mechanism: str
    figure: str
    n: int = Field(description="rounds that have both")
    base: float = Field(description="median without the series")
    more: float = Field(description="how much more with it: Hodges-Lehmann estimate of the shift")
    low: float | None = Field(
        description="lower end of the shift's interval, simultaneous for all figures of the "
        "verdict; null when so few rounds bound nothing"
    )
    high: float | None = Field(description="upper end of it")
    worse: bool = Field(description="more than the noise and the resolution explain")
    seen: float | None = Field(
        description="smallest shift that would have been called worse 19 times in 20; null "
        "when none would have been"
    )

    @property
    def ratio(self) -> float | None:
        """With the series / without it; None where that was zero."""
        return (self.base + self.more) / self.base if self.base else None

    @property
    def seen_ratio(self) -> float | None:
        """The same of what could have been seen."""
        return (self.base + self.seen) / self.base if self.base and self.seen is not None else None


@dataclass(frozen=True)
class Track:
    """A figure of a mechanism: its values by block, those without the series first.

    A round that lacks one of the two has neither: None in both places.
    """

    blocks: tuple[tuple[float | None, ...], ...]

    @cached_property
    def pairs(self) -> list[tuple[list[float], list[float]]]:
        """Return for each block what is known without the series, and with it."""
        return [
            (
                [v for v in block[: len(block) // 2] if v is not None],
                [v for v in block[len(block) // 2 :] if v is not None],
            )
            for block in self.blocks
        ]

    @property
    def n(self) -> int:
        """How many rounds have both."""
        return sum(len(base) for base, _ in self.pairs)

    def differences(self) -> list[float]:
        """Return every difference within a block, with the series less without it."""
        return [s - b for base, series in self.pairs for b in base for s in series]

    def relabelled(self, shift: float, pick: random.Random) -> Track:
        """Return it without the `shift` that it has, and with labels by lot within blocks."""
        blocks = []
        for block in self.blocks:
            half = len(block) // 2
            values = [
                None if v is None else v - shift * (place >= half) for place, v in enumerate(block)
            ]
            order = _relabellings(half)[pick.randrange(len(_relabellings(half)))]
            rest = [place for place in range(2 * half) if place not in order]
            blocks.append(tuple(values[place] for place in (*rest, *order)))
        return Track(tuple(blocks))


@cache
def _relabellings(half: int) -> list[tuple[int, ...]]:
    """Return every choice of `half` places out of twice as many."""
    return list(itertools.combinations(range(2 * half), half))


def track(rounds: Sequence[Pair | None]) -> Track:
    """Return a figure's rounds, in their order, by block."""
    starts = list(range(0, max(len(rounds) - _BLOCK, 0) + 1, _BLOCK))
    ends = [*starts[1:], len(rounds)]
    return Track(
        tuple(
            tuple(pair[side] if pair else None for side in (0, 1) for pair in rounds[start:end])
            for start, end in zip(starts, ends, strict=True)
        )
    )


def scores(mine: Track, shift: float = 0.0) -> list[list[float]]:
    """Return, by block, each value's rank over the block's mean rank, in standard deviations.

    `shift` is taken from the values with the series first.  The sum over them is the statistic.
    """
    aligned: list[list[float | None]] = []
    for block in mine.blocks:
        half = len(block) // 2
        values = [
            None if v is None else v - shift * (place >= half) for place, v in enumerate(block)
        ]
        known = [v for v in values if v is not None]
        centre = statistics.median(known) if known else 0.0
        aligned.append([None if v is None else v - centre for v in values])
    ranks = _ranks([v for block in aligned for v in block if v is not None])
    found, variance = [], 0.0
    for values in aligned:
        mean = statistics.fmean([ranks[v] for v in values if v is not None] or [0.0])
        mine_here = [0.0 if v is None else ranks[v] - mean for v in values]
        # Of N = 2k scores with the mean 0, k are drawn: k (1 - k/N) times their variance.
        half = len(values) // 2
        variance += half / 2 * sum(s * s for s in mine_here) / (2 * half - 1)
        found.append(mine_here)
    if variance <= 0:
        return [[0.0] * len(block) for block in found]
    return [[score / math.sqrt(variance) for score in block] for block in found]


def _ranks(values: Sequence[float]) -> dict[float, float]:
    """Return the rank of each value, equal ones by the mean of theirs."""
    found: dict[float, float] = {}
    ordered = sorted(values)
    for value, same in itertools.groupby(range(len(ordered)), key=ordered.__getitem__):
        places = list(same)
        found[value] = (places[0] + places[-1]) / 2
    return found


def statistic(mine: Track, shift: float = 0.0) -> float:
    """Return the standardised sum of ranks with the series."""
    return sum(sum(block[len(block) // 2 :]) for block in scores(mine, shift))


@dataclass(frozen=True)
class Family:
    """Everything that one verdict compares.

    `tracks` by mechanism and figure; `resolution` is what a figure has to be more by before it is
    called worse, however little noise there is.
    """

    tracks: Mapping[str, Mapping[str, Track]]
    resolution: Callable[[str], float]

    @property
    def shared(self) -> dict[str, list[Track]]:
        """Return the figures that more than one mechanism has."""
        names = dict.fromkeys(name for mine in self.tracks.values() for name in mine)
        found = {name: [m[name] for m in self.tracks.values() if name in m] for name in names}
        return {name: tracks for name, tracks in found.items() if len(tracks) > 1}

    def critical(self, alpha: float) -> float:
        """Return what the largest statistic reaches in no more than `alpha` of relabellings.

        Infinity when there are so few of them that none may be called worse.
        """
        pick = random.Random(_SEED)  # noqa: S311 -- no secret
        names = {figure: place for place, figure in enumerate(self.shared)}
        weights = [1 / math.sqrt(len(tracks)) for tracks in self.shared.values()]
        tables = [_table(mine, self.resolution) for mine in self.tracks.values()]
        columns = [[names.get(figure) for figure in mine] for mine in self.tracks.values()]
        largest = []
        for _ in range(_DRAWS):
            top, sums = 0.0, [0.0] * len(weights)
            for table, where in zip(tables, columns, strict=True):
                drawn = [block[int(pick.random() * len(block))] for block in table]
                for place, z in zip(where, map(sum, zip(*drawn, strict=True)), strict=True):
                    top = max(top, z)
                    if place is not None:
                        sums[place] += z
            largest.append(max([top, *(z * w for z, w in zip(sums, weights, strict=True))]))
        largest.sort(reverse=True)
        allowed = math.floor(alpha * (_DRAWS + 1)) - 1  # what was measured is one of them
        return math.inf if allowed < 0 else largest[allowed] + _NEAR


def _table(
    mine: Mapping[str, Track], resolution: Callable[[str], float]
) -> list[list[tuple[float, ...]]]:
    """Return, for each block and each relabelling of it, what it adds to each figure."""
    by_figure = [scores(track, resolution(figure)) for figure, track in mine.items()]
    return [
        [
            tuple(sum(block[place] for place in chosen) for block in blocks)
            for chosen in _relabellings(len(blocks[0]) // 2)
        ]
        for blocks in zip(*by_figure, strict=True)
    ]


def compare(family: Family, alpha: float, wanted: Sequence[str] = ()) -> list[Compared]:
    """Compare every figure; those `wanted` are told what could have been seen of them as well."""
    critical = family.critical(alpha)
    found = [
        _compared(family, (mechanism, figure), [mine], critical, seen=figure in wanted)
        for mechanism, tracks in family.tracks.items()
        for figure, mine in tracks.items()
    ]
    together = [
        _compared(family, (TOGETHER, figure), tracks, critical, seen=figure in wanted)
        for figure, tracks in family.shared.items()
    ]
    return [*together, *found]


def _compared(
    family: Family, named: tuple[str, str], tracks: Sequence[Track], critical: float, *, seen: bool
) -> Compared:
    mechanism, figure = named
    least = family.resolution(figure)
    more = statistics.median([d for mine in tracks for d in mine.differences()])

    def z(shift: float) -> float:
        return _together(tracks, shift)

    spread = max((abs(d) for mine in tracks for d in mine.differences()), default=0.0) + 2 * least
    low = _crossing(lambda d: z(d) >= critical, -spread, spread)
    high = _crossing(lambda d: -z(-d) >= critical, -spread, spread)
    return Compared(
        mechanism=mechanism,
        figure=figure,
        n=min(mine.n for mine in tracks),
        base=statistics.median([b for mine in tracks for base, _ in mine.pairs for b in base]),
        more=more,
        low=low,
        high=None if high is None else -high,
        worse=z(least) >= critical,
        seen=_seen(tracks, critical, least) if seen else None,
    )


def _together(tracks: Sequence[Track], shift: float) -> float:
    return sum(statistic(mine, shift) for mine in tracks) / math.sqrt(len(tracks))


def _crossing(holds: Callable[[float], bool], low: float, high: float) -> float | None:
    """Return the largest number up to which `holds` does; None when it does not even at `low`."""
    if not holds(low):
        return None
    for _ in range(24):
        middle = (low + high) / 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


def _seen(tracks: Sequence[Track], critical: float, least: float) -> float | None:
    """Return the smallest shift that is called worse in 19 of 20 relabelled data sets."""
    pick = random.Random(_SEED)  # noqa: S311 -- no secret
    own = [statistics.median(mine.differences()) for mine in tracks]
    trials = [
        [mine.relabelled(shift, pick) for mine, shift in zip(tracks, own, strict=True)]
        for _ in range(_TRIALS)
    ]
    spread = max(abs(d) for trial in trials for mine in trial for d in mine.differences())

    def missed(shift: float) -> bool:
        hits = sum(_together(trial, least - shift) >= critical for trial in trials)
        return hits < _POWER * len(trials)

    most = 2 * spread + 2 * least
    if missed(most):
        return None
    return _crossing(missed, 0.0, most) or most / 2**24
