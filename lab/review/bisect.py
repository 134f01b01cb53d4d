# SPDX-License-Identifier: GPL-2.0-or-later
"""Which patch of a series makes a figure worse, harms a guest, or breaks the build.

State 0 is the base, state N the base with the first N patches.  Each is measured against the base
in the same rounds of a bench of its own: a figure of yesterday's says nothing on a noisy host.
They are compared as `validate` does (`lab.results.paired`), but in the one figure that is asked
about.
"""

from __future__ import annotations

import dataclasses
import math
import shutil
from dataclasses import dataclass, field

from pydantic import Field

from lab import bench
from lab.base.errors import CannotTellError
from lab.base.files import write_whole
from lab.base.progress import note, overall
from lab.model import Model
from lab.pair import build
from lab.results import worse
from lab.results.figures import Bench
from lab.results.paired import Compared
from lab.review import checks
from lab.review.candidate import Subject
from lab.review.halves import Judgement, first_bad
from lab.source.series import Series, load_series

#: What can be searched for instead of a figure: a harmed guest, a patch that does not compile.
HARM, BUILD = "harm", "build"


class BisectState(Model):
    """The base with the first `number` patches, and the judgement on it."""

    number: int
    patch: str
    verdict: Judgement
    said: str
    compared: Compared | None = Field(
        default=None, description="the figure, against the base's; null where it was not measured"
    )


class Bisection(Model):
    """Everything that is kept, in ``bisect.json``."""

    schema_version: int = 1
    series: str
    old: str
    new: str
    side: str
    mechanism: str
    metric: str
    threshold: float
    ram: str
    repeats: int
    states: list[BisectState] = Field(default_factory=list)
    first_bad: list[str] = Field(
        default_factory=list, description="more than one where those between were skipped"
    )


@dataclass
class Search:
    """A search that is going on."""

    subject: Subject
    #: The figure by its name in a bench; empty for `HARM` and `BUILD`.
    figure: str
    kept: Bisection
    #: The probability that the base itself would be called bad, in each look at a state.
    alpha: float = worse.ALPHA
    done: dict[int, BisectState] = field(default_factory=dict)

    def name(self, number: int) -> str:
        """Return what a state is called."""
        return self.subject.series.patches[number - 1].name if number else "the base"

    def judge(self, number: int) -> Judgement:
        """Build and measure a state, keep what was found, and return it."""
        found = self._found(number)
        self.done[number] = found
        states = [self.done[key] for key in sorted(self.done)]
        self.keep(states=states)
        note(f"{found.verdict.upper():4}  {number}  {found.patch}: {found.said}")
        return found.verdict

    def keep(self, **news: object) -> None:
        """Write what is known by now."""
        self.kept = self.kept.model_copy(update=news)
        text = self.kept.model_dump_json(indent=2) + "\n"
        write_whole(self.subject.directory / "bisect.json", text)

    def _found(self, number: int) -> BisectState:
        part = self.part(number)

        def state(verdict: Judgement, said: str, compared: Compared | None = None) -> BisectState:
            return BisectState(
                number=number,
                patch=self.name(number),
                verdict=verdict,
                said=said,
                compared=compared,
            )

        try:
            for base in part.bases:
                build.by_name(part.layout, base.patched)
        except CannotTellError as error:
            bad = Judgement.BAD if self.kept.metric == BUILD else Judgement.SKIP
            return state(bad, error.message.partition("\n")[0])
        if self.kept.metric == BUILD:
            return state(Judgement.GOOD, "it builds")
        layout = part.layout.into(self.subject.directory)
        return state(*self.judged(bench.measure(layout, checks.request(part), self.more)))

    def more(self, done: Bench) -> int | None:
        """Return how many rounds there are to be in all, while too little can be seen in them."""
        subject = self.subject
        later = [n for n in worse.looks(subject.repeats, subject.most) if n > done.request.repeats]
        one = self.compared(done) if self.figure else None
        if not later or one is None or self.weighed(one) is not Judgement.SKIP:
            return None
        note(f"too little can be seen in {done.request.repeats} rounds: on to {later[0]}")
        return later[0]

    def compared(self, done: Bench) -> Compared | None:
        """Return the figure against the base's; None where it was not measured often enough."""
        base, label = done.request.mechanisms
        return worse.compare_one(done, base, (base, label), self.figure, self.alpha)

    def weighed(self, one: Compared) -> Judgement:
        """Judge a state by its figure: it is good only if what is bad would have been seen.

        Without a base to divide by, what is worse is bad.
        """
        if one.worse and (one.ratio is None or self._beyond(one.ratio)):
            return Judgement.BAD
        within = one.seen_ratio is not None and not self._beyond(one.seen_ratio)
        bounded = one.high is not None and one.base and not self._beyond(1 + one.high / one.base)
        return Judgement.GOOD if within or bounded else Judgement.SKIP

    def _beyond(self, ratio: float) -> bool:
        threshold = self.kept.threshold
        return ratio < threshold if self.figure in worse.GOOD else ratio > threshold

    def judged(self, done: Bench) -> tuple[Judgement, str, Compared | None]:
        """Judge the state that a bench has compared with the base."""
        _, label = done.request.mechanisms
        ill = [run for run in done.runs if run.faults]
        if not self.figure:
            runs = [run for run in done.runs if run.mechanism == label]
            mine = [run for run in ill if run.mechanism == label]
            if not runs:
                return Judgement.SKIP, _why(done), None
            if mine != ill:
                return Judgement.SKIP, "the base harms guests as well", None
            said = f"{len(mine)} of {len(runs)} upgrades failed"
            return (Judgement.BAD if mine else Judgement.GOOD), said, None
        one = self.compared(done)
        if one is None:
            return Judgement.SKIP, ill[0].faults[0] if ill else _why(done), None
        verdict, said = self.weighed(one), worse.words(one)
        if verdict is Judgement.SKIP:
            said = f"not known: {said}; {worse.smallest(one)} could have been seen"
        return verdict, said, one

    def part(self, number: int) -> Subject:
        """Return the base with the first `number` patches."""
        whole = self.subject.series.patches
        if number == len(whole):
            return self.subject
        series = Series("none")
        if number:
            into = self.subject.directory / f"upto-{number}"
            into.mkdir(exist_ok=True)
            for patch in whole[:number]:
                shutil.copyfile(patch, into / patch.name)
            names = "".join(f"{patch.name}\n" for patch in whole[:number])
            (into / "series").write_text(names, encoding="utf-8")
            series = load_series(into)
        return dataclasses.replace(self.subject, series=series)

    def ends(self, good: int, bad: int) -> None:
        """Measure both ends; raise CannotTellError when one is not good or bad as expected."""
        for number, wanted in ((good, Judgement.GOOD), (bad, Judgement.BAD)):
            if self.judge(number) is not wanted:
                found = self.done[number]
                raise CannotTellError(
                    f"the {wanted} end, {found.patch}, is {found.verdict}: {found.said}",
                    hint="between such ends no patch can be named: more --max-repeats, another "
                    "--metric or --threshold, or other ends",
                )


def _why(done: Bench) -> str:
    """Return why there is no figure."""
    entries = [*done.inapplicable, *done.troubles]
    return entries[0].reason if entries else "nothing was measured"


def most_states(good: int, bad: int) -> int:
    """Return how many states are measured at most, the ends among them, if none is skipped."""
    return 2 + math.ceil(math.log2(max(bad - good, 1)))


def find(search: Search, good: int, bad: int) -> list[str]:
    """Return the first bad patch, or all that may be it, and keep that."""
    most = most_states(good, bad)
    with overall("bisect") as told:

        def judge(number: int) -> Judgement:
            told(len(search.done), most, search.name(number))
            return search.judge(number)

        told(0, most, "the ends")
        search.ends(good, bad)
        found = [search.name(number) for number in first_bad(good, bad, judge)]
    search.keep(first_bad=found)
    return found
