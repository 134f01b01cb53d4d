# SPDX-License-Identifier: GPL-2.0-or-later
"""What a bench says of a series: what is worse than the base, and what could have been seen.  Pure.

The base and the series are in the same bench, by the same mechanisms (`lab.results.paired` is the
test).  All three clocks are compared and what the pause consists of, as a delay can hide from each:
one before RESUME from none, one after it from the QMP events, one while the guest's clock stands
still from the guest.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from lab.model import Model
from lab.results import figures, paired
from lab.results.figures import WARM_UP, Bench, Run
from lab.results.paired import Compared, Family

#: The probability that a verdict on a series which changes nothing calls anything worse.
ALPHA = 0.05
#: The pause by what the guest's clients see of it.
OUTSIDE = "pause_outside_ms"
#: The pause and what it consists of: there is a limit on these, and for the rest there is none.
_PAUSES = {
    OUTSIDE: "pause outside",
    "pause_qmp_ms": "pause STOP to RESUME",
    "pause_inside_ms": "pause inside",
    "before_stop_ms": "part of the pause before STOP",
    "after_resume_ms": "part of the pause after RESUME",
    "phase_stop_ms": "phase stop",
    "phase_save_ms": "phase save",
    "phase_load_ms": "phase load",
    "phase_resume_ms": "phase resume",
}
#: Of these it is said how small a slowdown could have been seen: by the guest's clients, and in
#: QEMU's own account of what comes before the guest runs again.
_SEEN = {OUTSIDE: "", "pause_qmp_ms": " from STOP to RESUME", "phase_resume_ms": " in phase resume"}
#: What a series leaks, and what it doubles.
_LEAK, _PEAK = "memory_after_mib", "memory_ratio"
_MEMORY = {_PEAK: "memory peak / before", _LEAK: "memory afterwards"}
_OTHERS = {"total_ms": "total", "huge_pages_kept": "huge pages kept"}
#: Less of these is worse.
GOOD = ("huge_pages_kept",)
#: Everything that is compared by name; the other phases are, too.
FIGURES = (*_PAUSES, *_MEMORY, *_OTHERS)
#: A figure that is more by less than this is not called worse: the heartbeat's own ms; what a
#: binary's size and the kernel's rounding may change of memory.
_RESOLUTION = {_PEAK: 0.005, _LEAK: 1.0, "huge_pages_kept": 0.02}
_RESOLUTION_MS = 1.0
#: What the sentence on something worse begins with.
WORSE = "WORSE: "


class Allowed(Model):
    """From where on what is worse is a failure."""

    slower_ms: float = 20.0
    memory_ratio: float = 1.1


class Grade(enum.StrEnum):
    """How a series compares with its base."""

    SAME = "same"
    WORSE = "worse"
    TOO_MUCH = "too much"  # worse, and beyond a limit
    UNKNOWN = "unknown"


class Judged(NamedTuple):
    """A mechanism, or all of them together."""

    mechanism: str
    grade: Grade
    compared: Sequence[Compared]

    @property
    def worse(self) -> list[Compared]:
        """What is worse than the noise, the pause first."""
        found = [one for one in self.compared if one.worse]
        return sorted(found, key=lambda one: [*FIGURES, one.figure].index(one.figure))

    def figure(self, name: str) -> Compared | None:
        """Return one of its figures."""
        return next((one for one in self.compared if one.figure == name), None)


class Weighed(NamedTuple):
    """What a bench says."""

    rows: Sequence[Judged]
    allowed: Allowed

    @property
    def too_much(self) -> bool:
        """Whether anything is worse by more than is allowed."""
        return any(row.grade is Grade.TOO_MUCH for row in self.rows)

    @property
    def steadiest(self) -> Compared | None:
        """The pause in which the smallest slowdown could have been seen; None if none could."""
        known = [one for row in self.rows if (one := row.figure(OUTSIDE)) and one.seen is not None]
        return min(known, key=lambda one: one.seen or 0.0, default=None)

    @property
    def enough(self) -> bool:
        """Whether a slowdown that is a failure could have been seen, and one of each mechanism.

        One that is in all of them is seen first; a large one that is in one of them must not pass.
        """
        found = self.steadiest
        if found is None or (found.seen or 0.0) > self.allowed.slower_ms:
            return False
        each = [one for row in self.rows if (one := row.figure(OUTSIDE))]
        return all(one.seen is not None for one in each)


def looks(first: int, most: int) -> list[int]:
    """Return after how many rounds there is a verdict, unless an earlier one was enough.

    Few, as each takes its share of the false alarms that all may raise together.
    """
    between = math.isqrt(first * most)
    return sorted({first, max(first, between), max(first, most)})


def judge(
    bench: Bench, pairs: Mapping[str, tuple[str, str]], allowed: Allowed, alpha: float
) -> Weighed:
    """Compare, for each mechanism, two labels of the bench: without the series, and with it.

    `alpha` is the probability of a false alarm in this verdict.
    """
    family = Family(
        {
            mechanism: tracks
            for mechanism, (base, series) in pairs.items()
            if (tracks := _tracks(bench, base, series))
        },
        resolution,
    )
    found = paired.compare(family, alpha, (*_SEEN, *_MEMORY)) if family.tracks else []
    names = [*([paired.TOGETHER] if family.shared else []), *pairs]
    return Weighed([_judged(name, found, allowed) for name in names], allowed)


def compare_one(
    bench: Bench, mechanism: str, labels: tuple[str, str], figure: str, alpha: float
) -> Compared | None:
    """Compare one figure of two labels of the bench: without the series, and with it.

    None when fewer rounds than `paired.FEWEST` have it.
    """
    mine = _tracks(bench, *labels).get(figure)
    if mine is None:
        return None
    (found,) = paired.compare(Family({mechanism: {figure: mine}}, resolution), alpha, (figure,))
    return found


def _judged(mechanism: str, found: Sequence[Compared], allowed: Allowed) -> Judged:
    mine = [one for one in found if one.mechanism == mechanism]
    if not mine:
        return Judged(mechanism, Grade.UNKNOWN, mine)
    worse = [one for one in mine if one.worse]
    if any(_too_much(one, allowed) for one in worse):
        return Judged(mechanism, Grade.TOO_MUCH, mine)
    return Judged(mechanism, Grade.WORSE if worse else Grade.SAME, mine)


def _too_much(one: Compared, allowed: Allowed) -> bool:
    if one.figure in _PAUSES:
        return one.more > allowed.slower_ms
    return one.figure in _MEMORY and (one.ratio is None or one.ratio > allowed.memory_ratio)


def resolution(figure: str) -> float:
    """Return what a figure has to be more by, in its own unit."""
    return _RESOLUTION.get(figure, _RESOLUTION_MS)


def _tracks(bench: Bench, base: str, series: str) -> dict[str, paired.Track]:
    """Return every figure that enough rounds have both without the series and with it."""
    without, with_it = _by_round(bench, base), _by_round(bench, series)
    rounds = sorted(without.keys() & with_it.keys())
    if len(rounds) < paired.FEWEST:
        return {}
    known = dict.fromkeys(name for number in rounds for name in without[number])
    found = {}
    for name in known:
        pairs = [
            (without[number][name], with_it[number][name])
            if name in without[number] and name in with_it[number]
            else None
            for number in rounds
        ]
        if sum(pair is not None for pair in pairs) >= paired.FEWEST:
            found[name] = paired.track(pairs)
    return found


def _by_round(bench: Bench, label: str) -> dict[int, dict[str, float]]:
    """Return what is compared of a label's good runs; of what is better when more, the lack."""
    return {
        run.round: _values(run)
        for run in bench.runs
        if run.mechanism == label and run.round != WARM_UP and not run.faults
    }


def _values(run: Run) -> dict[str, float]:
    own = {name: getattr(run.figures, name) for name in figures.Figures.model_fields}
    known = {name: value for name, value in own.items() if value is not None and name in FIGURES}
    return {
        name: -value if name in GOOD else value for name, value in {**known, **run.parts}.items()
    }


def sentence(row: Judged) -> str:
    """Return what there is to say of a mechanism on one line."""
    if row.grade is Grade.UNKNOWN:
        return "not compared: too few rounds are good both without the series and with it"
    if row.worse:
        some = row.worse[:3]
        more = f"; and {len(row.worse) - 3} more figures" if len(row.worse) > 3 else ""
        return WORSE + "; ".join(map(words, some)) + more
    told = [one for name in (OUTSIDE, _PEAK) if (one := row.figure(name))]
    return "no worse beyond the noise: " + "; ".join(map(words, told))


def words(one: Compared) -> str:
    """Return one figure's comparison in words."""
    title = {**_PAUSES, **_MEMORY, **_OTHERS}.get(one.figure, one.figure)
    sign, ends = (-1, (one.high, one.low)) if one.figure in GOOD else (1, (one.low, one.high))
    low, high = (_bound(end, sign, one.figure) for end in ends)
    text = f"{title} {_number(sign * one.more, one.figure):+}"
    ratio = one.ratio
    times = f", {ratio:.2f} times the base's" if ratio is not None and ratio > 0 else ""
    return f"{text}{_unit(one.figure)} [{low}, {high}]{times}"


def _bound(end: float | None, sign: int, figure: str) -> str:
    return "?" if end is None else f"{_number(sign * end, figure):g}"


def _number(value: float, figure: str) -> float:
    return round(value, 3 if not _unit(figure) else 1) + 0.0  # and no -0.0


def _unit(figure: str) -> str:
    return " ms" if figure.endswith("_ms") else " MiB" if figure.endswith("_mib") else ""


def seen(row: Judged) -> str:
    """Return the smallest slowdown, leak and doubling that could have been seen, in words."""
    slower = {name: f"slower{where}" for name, where in _SEEN.items()}
    wanted = {**slower, _LEAK: "leaked", _PEAK: "more at the peak"}
    known = {name: row.figure(name) for name in wanted}
    return ", ".join(
        f"{wanted[name]}: {smallest(one) if one else 'not measured'}" for name, one in known.items()
    )


def smallest(one: Compared) -> str:
    """Return the smallest change for the worse that could have been seen, in words."""
    if one.seen is None:
        return f"no amount, after {one.n} rounds"
    if one.figure == _PEAK:
        return f"{one.seen_ratio:.3f} times"
    ratio = f" ({one.seen_ratio:.2f} times)" if one.seen_ratio and one.figure in _PAUSES else ""
    return f"{one.seen:.1f}{_unit(one.figure)}{ratio}"


def rarest_harm(upgrades: int) -> float:
    """Return the share of harmful upgrades that none of so many shows in one case of twenty.

    The exact (Clopper-Pearson) upper end for no failure: 1 - 0.05^(1/n).
    """
    return 1 - 0.05 ** (1 / upgrades) if upgrades else 1.0
