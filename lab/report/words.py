# SPDX-License-Identifier: GPL-2.0-or-later
"""What a bench, or a single upgrade, comes to, in sentences.  Pure."""

from __future__ import annotations

import enum
import statistics
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from lab.model import Integrity, Memory, Outcome, Pause, Result, VerdictKind
from lab.report.tables import digits, flat, interval
from lab.results.figures import WARM_UP, Bench, Load, Row, Run
from lab.results.statistics import Estimate
from lab.verdict import faults

#: What mechanisms are compared by: what a client of the guest notices.
_PAUSE = "pause_outside_ms"
#: With fewer rounds than this the interval is their range, and promises less than 95 %.
_FEW = 5
#: Of more loads than this only the largest has a sentence; the tables have them all.
_LOADS = 6
_METHODS = {"cgroup": "the kernel's count", "pss": "sampled PSS"}
_NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten",
            "eleven", "twelve")  # fmt: skip


class State(enum.StrEnum):
    """Good, bad, or neither yet."""

    PASS = "pass"  # noqa: S105 -- not a password
    FAIL = "fail"
    OPEN = "open"


@dataclass(frozen=True)
class Words:
    """A verdict: the headline, and the sentences below it."""

    state: State
    headline: str
    sentences: tuple[str, ...] = ()


class Says(enum.Enum):
    """What the rounds allow to say of a mechanism's pause against the reference's."""

    LONGER = enum.auto()
    SHORTER = enum.auto()
    #: The ratio's interval includes 1.
    UNDECIDED = enum.auto()
    #: It does not, but the host makes longer gaps than the difference by itself.
    NOISE = enum.auto()
    #: A single round has no interval.
    ONCE = enum.auto()


def says(ratio: Estimate, difference_ms: float, noise_ms: float | None) -> Says:
    """Return what can be said of a ratio, a difference, and the gaps without an upgrade."""
    if ratio.low is None or ratio.high is None:
        return Says.ONCE
    if ratio.low <= 1 <= ratio.high:
        return Says.UNDECIDED
    if noise_ms is not None and abs(difference_ms) < noise_ms:
        return Says.NOISE
    return Says.LONGER if ratio.low > 1 else Says.SHORTER


def of_bench(bench: Bench) -> Words:
    """Return the verdict on a bench: were the guests intact, and how do the pauses compare?"""
    failed = [run for run in bench.runs if run.faults]
    compared = tuple(_compared(bench))
    if failed:
        unfinished = () if bench.finished else (f"{_unfinished(bench)}.",)
        return Words(State.FAIL, _failures(bench, failed), (*unfinished, *compared))
    if not bench.runs:
        return Words(State.OPEN, _nothing(bench))
    if all(run.round == WARM_UP for run in bench.runs):
        return Words(
            State.OPEN,
            "Only the warm-up has been run, and it does not count: there is nothing to compare.",
        )
    if not bench.finished:
        return Words(
            State.OPEN, f"{_unfinished(bench)}. So far every guest was intact afterwards.", compared
        )
    upgrades = f"all {len(bench.runs)} upgrades" if len(bench.runs) > 1 else "the only upgrade"
    return Words(State.PASS, f"Every guest was intact after {upgrades}.", compared)


def _failures(bench: Bench, failed: Sequence[Run]) -> str:
    times = Counter(run.mechanism for run in failed)
    reasons = {run.mechanism: flat(run.faults[0]) for run in reversed(failed)}
    which = [f"{name} {_times(n)} ({reasons[name]})" for name, n in times.items()]
    return f"{len(failed)} of {len(bench.runs)} upgrades failed: {_and(which)}."


def _nothing(bench: Bench) -> str:
    if bench.troubles:
        return f"Nothing was measured. The first run ended in: {flat(bench.troubles[0].reason)}"
    if bench.inapplicable:
        return "Nothing was measured: none of the mechanisms can be used here. Reasons are below."
    return "Nothing has been measured."


def _unfinished(bench: Bench) -> str:
    request = bench.request
    never = {(entry.ram_bytes, entry.mechanism) for entry in bench.inapplicable}
    made = {(run.round, run.case) for run in bench.runs}
    wanted = {
        (number, (load, name))
        for load in request.loads
        for name in request.mechanisms
        if (load.ram_bytes, name) not in never
        for number in range(request.repeats + 1)
    }
    return f"Not finished: {len(made)} of {len(made | wanted)} runs have been made"


def _compared(bench: Bench) -> Iterator[str]:
    """Yield a sentence for each load that has counted runs; of many loads for the largest."""
    loads = [
        load
        for load in dict.fromkeys(row.load for row in bench.summary)
        if any(row.figures for row in bench.summary if row.load == load)
    ]
    if len(loads) > _LOADS:
        largest = max(loads)
        yield (
            f"Under the largest load, {bench.request.words(largest)}: {_one_load(bench, largest)} "
            f"The other {_count(len(loads) - 1)} loads are in the tables below."
        )
        return
    for load in loads:
        prefix = f"{bench.request.words(load)}: " if len(bench.request.loads) > 1 else ""
        yield prefix + _one_load(bench, load)


def _one_load(bench: Bench, load: Load) -> str:
    """Return how the pauses compare under a load."""
    rows = [row for row in bench.summary if row.load == load and _PAUSE in row.figures]
    name = bench.request.reference
    reference = next((row for row in rows if row.mechanism == name), None)
    others = [row for row in rows if row is not reference]
    if not rows:
        return "No pause could be measured."
    if reference is None:
        return (
            f"{name}, the reference, was not measured, so there is nothing to compare with. "
            f"As seen from outside, {_and([_alone(row) for row in others])}."
        )
    if not others:
        return (
            f"As seen from outside, {_alone(reference)}. No other mechanism was measured to "
            "compare it with."
        )
    noise = _noise(bench, load)
    if len(others) == 1:
        return _one(others[0], reference, noise)
    return _several(others, reference, noise)


def _noise(bench: Bench, load: Load) -> float | None:
    """Return the usual gap between heartbeats without an upgrade."""
    gaps = [run.noise_ms for run in bench.runs if run.load == load and run.noise_ms is not None]
    return statistics.median(gaps) if gaps else None


def _alone(row: Row) -> str:
    found = row.figures[_PAUSE]
    return f"{row.mechanism}'s pause is {digits(found.median)} ms{_interval(found)}"


def _said(row: Row, reference: Row, noise: float | None) -> Says | None:
    ratio = row.ratios.get(_PAUSE)
    if ratio is None:
        return None
    difference = row.figures[_PAUSE].median - reference.figures[_PAUSE].median
    return says(ratio, difference, noise)


def _one(row: Row, reference: Row, noise: float | None) -> str:
    """Return what can be said of the only mechanism beside the reference."""
    mine, theirs = row.mechanism, f"{reference.mechanism}'s"
    said = _said(row, reference, noise)
    if said is None:
        return (
            f"As seen from outside, {_alone(row)} and {_alone(reference)}; no round has both, so "
            "they cannot be compared."
        )
    ratio = row.ratios[_PAUSE]
    pause = f"{mine}'s pause as seen from outside"
    times = f"{digits(ratio.median)} times"
    rounds = f"{_count(ratio.n)} round{'s' if ratio.n > 1 else ''}"
    if said is Says.ONCE:
        return (
            f"{pause} is {times} {theirs} in the only round that has both: one round cannot tell "
            "a difference from noise."
        )
    if said is Says.UNDECIDED:
        return (
            f"{pause} is {times} {theirs}{_interval(ratio)}: {rounds} on this host cannot tell "
            "them apart."
        )
    if said is Says.NOISE:
        return f"{pause} is {times} {theirs}{_interval(ratio)}, but {_less_than_noise(noise)}."
    than = "longer" if said is Says.LONGER else "shorter"
    return f"{pause} is {than} than {theirs}: {times}{_interval(ratio)} in {rounds}.{_few([ratio])}"


def _several(rows: Sequence[Row], reference: Row, noise: float | None) -> str:
    """Return what can be said of several mechanisms, those of which the same can be said together.

    Those with the smallest ratio come first.
    """
    ratio_of = {row.mechanism: row.ratios[_PAUSE] for row in rows if _PAUSE in row.ratios}
    names: dict[Says | None, list[str]] = {}
    for row in sorted(rows, key=lambda row: getattr(row.ratios.get(_PAUSE), "median", 0.0)):
        ratio = ratio_of.get(row.mechanism)
        text = f" ({digits(ratio.median)} times{_interval(ratio)})" if ratio else ""
        names.setdefault(_said(row, reference, noise), []).append(row.mechanism + text)
    groups = {said: _and(some) for said, some in names.items()}
    undecided = _and(names.get(Says.UNDECIDED, [""]), "or")
    theirs = f"{reference.mechanism}'s ({digits(reference.figures[_PAUSE].median)} ms)"
    sure = [
        f"{than} than {theirs} with {groups[said]}"
        for said, than in ((Says.SHORTER, "shorter"), (Says.LONGER, "longer"))
        if said in groups
    ]
    told = [f"As seen from outside, the pause is {', and '.join(sure)}."] if sure else []
    if Says.UNDECIDED in groups:
        told.append(
            f"{_rounds(ratio_of.values())} on this host cannot tell {undecided} from "
            f"{reference.mechanism if sure else theirs}"
            f"{'' if sure else ' by the pause as seen from outside'}."
        )
    if Says.NOISE in groups:
        told.append(
            f"{groups[Says.NOISE]} differ{'s' if len(names[Says.NOISE]) == 1 else ''} from "
            f"{reference.mechanism}, but {_less_than_noise(noise)}."
        )
    if Says.ONCE in groups:
        told.append(
            f"There is only one round to compare {groups[Says.ONCE]} with {theirs} in: it cannot "
            "tell a difference from noise."
        )
    if None in groups:
        told.append(f"No round has both {reference.mechanism} and {_and(names[None], 'or')}.")
    return " ".join(told) + (_few(list(ratio_of.values())) if sure else "")


def _less_than_noise(noise: float | None) -> str:
    return (
        "the difference is smaller than the gaps between heartbeats without an upgrade "
        f"({digits(noise or 0.0)} ms): it shows nothing"
    )


def _few(ratios: Sequence[Estimate]) -> str:
    """Return what to add where there are too few rounds for an interval that deserves its name."""
    most = max(ratio.n for ratio in ratios)
    if most >= _FEW:
        return ""
    return f" {_count(most).capitalize()} rounds are few: an interval is no more than their range."


def _rounds(ratios: Iterable[Estimate]) -> str:
    """Return how many rounds there are to go by; no number where it differs."""
    numbers = {ratio.n for ratio in ratios}
    return f"{_count(min(numbers)).capitalize()} rounds" if len(numbers) == 1 else "The rounds"


def _interval(found: Estimate) -> str:
    return f" {interval(found, digits)}".rstrip()


def _count(number: int) -> str:
    return _NUMBERS[number] if number < len(_NUMBERS) else f"{number}"


def _times(number: int) -> str:
    return {1: "once", 2: "twice"}.get(number, f"{_count(number)} times")


def _and(parts: Sequence[str], word: str = "and") -> str:
    return f" {word} ".join(filter(None, (", ".join(parts[:-1]), parts[-1])))


def of_run(result: Result) -> Words:
    """Return the verdict on a single upgrade."""
    passed = result.verdict is VerdictKind.PASS
    told = [_pause(result.pause_ms), _memory(result.memory), _integrity(result.integrity)]
    if result.outcome is Outcome.LOST:
        told = []
    elif result.outcome is not Outcome.UPGRADED:
        told = told[2:]
    return Words(
        State.PASS if passed else State.FAIL,
        f"{'PASS' if passed else 'FAIL'}: {_outcome(result)}.",
        tuple(told),
    )


def _outcome(result: Result) -> str:
    name, old, new = result.mechanism, result.old.version, result.new.version
    pair = f"from QEMU {old} to {new}" if old != new else f"from one QEMU {old} to another"
    if result.outcome is Outcome.ROLLED_BACK:
        return f"{name} did not move the guest, which still runs under the old QEMU ({old})"
    if result.outcome is Outcome.REHEARSED:
        return (
            f"{name} rehearsed the upgrade {pair}: the new QEMU loads the guest, which runs on "
            "under the old one"
        )
    if result.outcome is Outcome.LOST:
        return f"{name} lost the guest: neither QEMU runs it"
    if result.outcome is Outcome.DOUBLED:
        return f"after {name} both QEMUs run the guest at once"
    if result.verdict is VerdictKind.PASS:
        return f"{name} moved the guest {pair}, and it arrived intact"
    but = "the checks found faults" if faults(result) else "not within the limits"
    return f"{name} moved the guest {pair}, but {but}"


def _pause(pause: Pause) -> str:
    qmp, outside, inside, before = (
        "an unknown time" if ms is None else f"{digits(ms)} ms"
        for ms in (pause.qmp, pause.outside, pause.inside, pause.outside_before)
    )
    noise = f" (the longest gap in the second before: {before})" if pause.outside_before else ""
    return (
        f"The guest paused for {qmp} from STOP to RESUME, {outside} as seen from outside{noise}, "
        f"and {inside} by its own clock."
    )


def _memory(memory: Memory | None) -> str:
    if memory is None:
        return "Memory was not measured."
    return (
        f"Memory peaked at {memory.ratio:.2f} times what the old QEMU used before, by "
        f"{_METHODS[memory.method]}."
    )


def _integrity(found: Integrity) -> str:
    checked = f"{found.pages_checked_after:,}"
    if found.pages_checked_after < found.pages_total or not found.pages_total:
        checked = f"Only {checked} of {found.pages_total:,} pages were checked afterwards"
    else:
        checked = f"All {checked} pages were checked afterwards"
    wrong = {
        "bad page": found.bad_pages,
        "damaged piece of the checker's table": found.bad_tables,
        "lost heartbeat": found.heartbeats_lost,
        "doubled heartbeat": found.heartbeats_doubled,
        "error in the guest's kernel log": found.kernel_errors,
        "unseen record of its kernel log": found.kernel_log_lost,
    }
    parts = [f"{n} {_plural(text, n)}" for text, n in wrong.items() if n]
    parts += ["a clock that went back"] * found.clock_went_back
    if parts:
        return f"{checked}. Found: {_and(parts)}."
    return f"{checked} and none is bad; no heartbeat was lost or came twice."


def _plural(text: str, number: int) -> str:
    """Return `text` with its noun in the plural, if there are several."""
    if number == 1:
        return text
    noun, of, rest = text.partition(" of ")
    noun, in_, where = noun.partition(" in ")
    return f"{noun}s{in_}{where}{of}{rest}"
