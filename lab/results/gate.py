# SPDX-License-Identifier: GPL-2.0-or-later
"""Two benches compared, and the conditions on which a comparison fails.  Pure.

A condition is ``MECHANISM.FIGURE[.STATISTIC] OP LIMIT``: ``gift.pause_ms.qmp.median > +10%`` is met
when gift's median pause is more than 10 % above the baseline's *and* chance alone does not explain
it.  A limit without a percent sign is in the figure's own unit and needs no baseline.  The
statistic ``ratio`` is the figure divided by the reference's, round by round, and counts only where
chance does not explain it either.  ``*`` stands for every mechanism.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lab.base import arguments
from lab.base.errors import UsageError
from lab.results import figures
from lab.results.figures import Bench, Case, Figures, Request, Row
from lab.results.statistics import Difference, Estimate, difference

_CONDITION = re.compile(
    r"(?P<mechanism>\*|\S+?)\.(?P<figure>[a-z_]+)(?:\.(?P<statistic>\w+))?\s*(?P<op>[<>])\s*"
    r"(?P<sign>[+-]?)(?P<limit>\d+(?:\.\d+)?)(?P<percent>%?)"
)
#: The figure divided by the reference's, round by round.
_RATIO = "ratio"
_STATISTICS = ("median", "p95", "minimum", "maximum", _RATIO)


class Change(Case):
    """One figure of one mechanism under one load, in both benches."""

    figure: str
    before: Estimate
    after: Estimate
    change: Difference | None


@dataclass(frozen=True)
class Condition:
    """One of them; `limit` is a share of the baseline's figure where `relative`."""

    text: str
    mechanism: str
    figure: str
    statistic: str
    above: bool
    limit: float
    relative: bool

    def measured(self, row: Row) -> Estimate | None:
        """Return what it is about; None where that was not measured."""
        return (row.ratios if self.statistic == _RATIO else row.figures).get(self.figure)

    def value(self, found: Estimate) -> float:
        """Return the number that it is about."""
        value = getattr(found, "median" if self.statistic == _RATIO else self.statistic)
        return found.maximum if value is None else float(value)  # a p95 of before there were any

    def met(self, found: Estimate, change: Change | None) -> bool:
        """Whether it is, by what was measured and what that is against the baseline."""
        value = self.value(found)
        if self.statistic == _RATIO and (
            found.low is None or found.high is None or found.low <= 1 <= found.high
        ):
            return False
        if self.relative:
            if not change or not change.change or not change.change.shown:
                return False
            value = value / self.value(change.before) - 1
        return value > self.limit if self.above else value < self.limit


def condition(text: str) -> Condition:
    """Read a condition; raise UsageError that says what it should look like."""
    hint = (
        "write it like 'gift.pause_ms.qmp.median > +10%' or '*.memory_ratio > 1.1'; figures: "
        + ", ".join(Figures.model_fields)
    )
    found = _CONDITION.fullmatch(spelt(text.strip()))
    if not found:
        raise UsageError(f"{text!r} is no condition", hint)
    figure, statistic = found["figure"], found["statistic"] or "median"
    if figure not in Figures.model_fields or statistic not in _STATISTICS:
        raise UsageError(f"{text!r}: there is no figure {figure}.{statistic}", hint)
    relative, sign = bool(found["percent"]), found["sign"]
    if bool(sign) is not relative or (relative and statistic == _RATIO):
        raise UsageError(f"{text!r}: a change has a sign and a percent sign, a value neither", hint)
    limit = float(found["limit"]) / (100 if relative else 1) * (-1 if sign == "-" else 1)
    return Condition(
        text, found["mechanism"], figure, statistic, found["op"] == ">", limit, relative
    )


def spelt(text: str) -> str:
    """Return a condition with ``pause_ms.qmp``, as results have it, spelt as benches have it."""
    return re.sub(r"pause_ms\.(qmp|outside|inside)", r"pause_\1_ms", text)


def changes(before: Bench, after: Bench) -> list[Change]:
    """Return every figure that both benches have."""
    found = []
    for row, values in _rows(after):
        other = next((v for r, v in _rows(before) if r.case == row.case), {})
        theirs = next((r for r in before.summary if r.case == row.case), None)
        for name, mine in row.figures.items():
            if theirs and (base := theirs.figures.get(name)):
                change = difference(other[name], values[name])
                found.append(
                    Change(
                        **row.load._asdict(),
                        mechanism=row.mechanism,
                        figure=name,
                        before=base,
                        after=mine,
                        change=change,
                    )
                )
    return found


def alarms(conditions: Sequence[Condition], before: Bench | None, after: Bench) -> Iterator[str]:
    """Yield a sentence for each condition that is met, for every load.

    Raises UsageError for a condition that nothing in the benches answers to: a gate that cannot
    close is worse than none.
    """
    compared = {(c.case, c.figure): c for c in changes(before, after)} if before else {}
    for one in conditions:
        asked = False
        for row in after.summary:
            mine = one.measured(row)
            if one.mechanism not in {"*", row.mechanism} or mine is None:
                continue
            change = compared.get((row.case, one.figure))
            asked = asked or not one.relative or change is not None
            if one.met(mine, change):
                where = f"{row.mechanism}, {after.request.words(row.load)}: {one.figure}"
                yield f"{one.text}: {where} {_said(one, mine, change)}"
        if not asked:
            raise UsageError(
                f"{one.text!r}: neither bench has this figure"
                if before
                else f"{one.text!r}: a change needs something to compare with",
                "name an earlier bench.json with --baseline" if not before else "",
            )


def _said(one: Condition, mine: Estimate, change: Change | None) -> str:
    if one.statistic == _RATIO:
        interval = f"[{mine.low:.4g}, {mine.high:.4g}]"
        return f"is {mine.median:.4g} times the reference's {interval}"
    if not one.relative or change is None:
        return f"is {one.value(mine):.4g}"
    return f"is {one.value(mine):.4g}, and was {one.value(change.before):.4g}"


def differences(before: Bench, after: Bench) -> Iterator[str]:
    """Yield what else differs between two benches, in words: it may be why the figures do."""
    if before.host != after.host:
        yield "the host is not the same"
    for name in arguments.compared(Request):
        was, now = (getattr(bench.request, name, None) for bench in (before, after))
        if was != now:
            yield f"{arguments.spelled(name)} was {was}, and is {now}"
    for side in ("old", "new"):
        was, now = getattr(before, side), getattr(after, side)
        if was and now and was.sha256 != now.sha256:
            yield f"the {side} QEMU is another one: {was.version} then, {now.version} now"


def _rows(bench: Bench) -> Iterator[tuple[Row, dict[str, list[float]]]]:
    for row in bench.summary:
        yield row, figures.values(bench, row)
