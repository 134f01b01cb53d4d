# SPDX-License-Identifier: GPL-2.0-or-later
"""From limits and observations to a verdict.  Pure: the same input gives the same words."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lab.model import (
    Findings,
    Integrity,
    Limits,
    Memory,
    Model,
    Outcome,
    Pause,
    Result,
    VerdictKind,
)

#: Clocks (a) and (b) that differ by more than this, and by more than half, are pointed out (ms).
_DISAGREEMENT_MS = 20.0
#: A guest's virtual processor that has less of one waits for others on the host.
_WHOLE = 0.75
#: A peak by the kernel's count that exceeds the one by PSS by more than this is explained.
_UNSEEN_RATIO = 0.1


class Observation(Model):
    """What the judge sees of an upgrade."""

    mechanism: str
    outcome: Outcome
    failure: str
    pause_ms: Pause
    memory: Memory | None
    #: Whether it was to be measured.
    memory_sampled: bool = True
    integrity: Integrity
    workloads: tuple[Findings, ...] = ()


@dataclass(frozen=True)
class Verdict:
    """Pass or fail, why, and what a reader should know besides."""

    kind: VerdictKind
    reasons: list[str]
    notes: list[str]


def judge(limits: Limits, seen: Observation) -> Verdict:
    """Judge an upgrade."""
    reasons = [
        *_outcome(seen),
        *_integrity(seen),
        *_workloads(seen),
        *_pause(limits, seen),
        *_memory(limits, seen),
    ]
    kind = VerdictKind.FAIL if reasons else VerdictKind.PASS
    return Verdict(kind, reasons, _notes(seen))


def faults(result: Result) -> list[str]:
    """Return the reasons of `result` that no limit, however generous, would take away."""
    seen = _seen(result)
    boundless = Limits(pause_ms=math.inf, memory_ratio=math.inf)
    beyond = set(judge(result.limits, seen).reasons) - set(judge(boundless, seen).reasons)
    return [reason for reason in result.reasons if reason not in beyond]


def harm(result: Result) -> list[str]:
    """Return what the guest of `result` lost, under whichever QEMU it runs now."""
    seen = _seen(result)
    return [*_integrity(seen), *_workloads(seen)]


def _seen(result: Result) -> Observation:
    """Return what a result was made from, but for the words of a failure."""
    return Observation(
        mechanism=result.mechanism,
        outcome=result.outcome,
        failure="",
        pause_ms=result.pause_ms,
        memory=result.memory,
        integrity=result.integrity,
        workloads=tuple(result.workloads),
    )


def _outcome(seen: Observation) -> list[str]:
    where = {
        Outcome.UPGRADED: "",
        Outcome.REHEARSED: "",
        Outcome.ROLLED_BACK: "the guest was not upgraded; it still runs under the old QEMU",
        Outcome.LOST: "the guest is lost: neither QEMU runs it",
        Outcome.DOUBLED: "both QEMUs run the guest at once",
    }[seen.outcome]
    return [text for text in (seen.failure, where) if text]


def _integrity(seen: Observation) -> list[str]:
    if seen.outcome is Outcome.LOST:
        return []
    found = seen.integrity
    checks = {
        f"bad pages: {found.bad_pages} (first: {found.first_bad})": found.bad_pages,
        f"damaged pieces of the checker's own table: {found.bad_tables}": found.bad_tables,
        f"only {found.pages_checked_after} of {found.pages_total} pages were checked after the "
        "upgrade": found.pages_checked_after < found.pages_total or not found.pages_total,
        "the guest's clock went back": found.clock_went_back,
        f"heartbeats lost: {found.heartbeats_lost}": found.heartbeats_lost,
        f"heartbeats that came twice: {found.heartbeats_doubled}": found.heartbeats_doubled,
        f"errors in the guest's kernel log: {found.kernel_errors} "
        f"(last: {found.kernel_error})": found.kernel_errors,
        f"kernel log records not seen: {found.kernel_log_lost}": found.kernel_log_lost,
    }
    return [text for text, wrong in checks.items() if wrong]


def _workloads(seen: Observation) -> list[str]:
    return [f"{found.name}: {text}" for found in seen.workloads for text in found.problems]


def _pause(limits: Limits, seen: Observation) -> list[str]:
    if seen.outcome is not Outcome.UPGRADED:
        return []
    clocks = {
        "QMP": seen.pause_ms.qmp,
        "outside": seen.pause_ms.outside,
        "inside": seen.pause_ms.inside,
    }
    reasons = []
    for clock, value in clocks.items():
        if value is None:
            reasons.append(f"the pause could not be measured by the {clock} clock")
        elif value > limits.pause_ms:
            reasons.append(
                f"pause of {value:.1f} ms by the {clock} clock; the limit is {limits.pause_ms:g} ms"
            )
    return reasons


def _memory(limits: Limits, seen: Observation) -> list[str]:
    if seen.memory is None:
        wanted = seen.memory_sampled and seen.outcome is Outcome.UPGRADED
        return ["memory was not measured"] if wanted else []
    if seen.memory.ratio <= limits.memory_ratio:
        return []
    return [
        f"memory peaked at {seen.memory.ratio:.2f} times what it was before; the limit is "
        f"{limits.memory_ratio:.2f}"
    ]


def _gap(pause: Pause) -> str:
    """Say what the longest gap between heartbeats consists of, and what the guest did in it."""
    before, after, ran = pause.before_stop, pause.after_resume, pause.guest_ran
    if before is None or after is None:
        return ", and how much of these before STOP and after RESUME is not known"
    words = f", {before:.1f} ms of these before STOP and {after:.1f} ms after RESUME"
    turn = ran is None or ran >= (before + after) / 2
    if ran is not None:
        words += f"; the guest's own clock went on for {ran:.1f} ms: " + (
            "it ran, and its heartbeat had no turn"
            if turn
            else "it was being stopped, or its heartbeats came late"
            if before > after
            else "its heartbeats came late: the new QEMU or the lab had no turn to carry them"
        )
    used = pause.new_processors
    if used is not None and after > _DISAGREEMENT_MS:
        words += f"; after RESUME the new QEMU had {used:.2f} processors"
        if used < _WHOLE:
            words += ": others kept the host's processors busy, or it waited"
        elif turn:
            words += ": busy with what is cold after a move (TCG's translations, page tables)"
    return words


def _notes(seen: Observation) -> list[str]:
    notes = []
    qmp, outside = seen.pause_ms.qmp, seen.pause_ms.outside
    if qmp is not None and outside is not None:
        apart = abs(outside - qmp)
        if apart > _DISAGREEMENT_MS and apart > 0.5 * max(outside, qmp):
            notes.append(
                f"the clocks disagree: {qmp:.1f} ms from STOP to RESUME, {outside:.1f} ms "
                f"between heartbeats as the host got them{_gap(seen.pause_ms)}"
            )
    memory = seen.memory
    if not memory and not seen.memory_sampled:
        notes.append("memory was not measured (--no-memory-samples), so it was not judged")
    if memory and memory.samples_discarded > memory.samples / 2:
        notes.append(
            f"{memory.samples_discarded} of {memory.samples} PSS readings were discarded: "
            "memory moved faster than it can be read"
        )
    if memory and memory.ratio - memory.pss_ratio > _UNSEEN_RATIO:
        notes.append(
            f"the kernel still held {memory.ratio:.2f} times the memory when the processes used "
            f"{memory.pss_ratio:.2f} times: huge pages freed in part stay charged until memory is "
            "short"
        )
    return notes
