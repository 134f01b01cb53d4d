# SPDX-License-Identifier: GPL-2.0-or-later
"""What the checker in the guest says, before, during and after the upgrade."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lab.base.deadline import Deadline
from lab.base.progress import Tick
from lab.measure import downtime
from lab.model import Integrity
from lab.vm.agent import Beat, Control

#: A guest under TCG checks 100 MB/s or so; 4 where each processor has eight QEMUs (bytes/s).
_SLOWEST_RATE = 3 * 2**20
#: How long the guest may fill nothing (s).
_SILENCE_S = 60


def fill(control: Control, touched_bytes: int, dirty_rate: int, tick: Tick) -> None:
    """Let the agent fill memory, then dirty it at `dirty_rate` (bytes/s) and check it all along."""
    deadline = Deadline.after(_SILENCE_S, "fill the guest's memory")

    def progress(event: Mapping[str, Any]) -> None:
        tick(int(event.get("done", 0)) // 2**20, int(event.get("total", 0)) // 2**20)

    control.call("fill", deadline, on_event=progress, bytes=touched_bytes)
    control.call("dirty", Deadline.after(30, "start dirtying"), rate=dirty_rate)


@dataclass(frozen=True)
class FullPass:
    """The agent's answers after the upgrade: a full pass, and its totals."""

    full_pass: Mapping[str, Any]
    status: Mapping[str, Any]


def check(control: Control, touched_bytes: int) -> FullPass:
    """Let the agent check every page once more and say what it saw over the whole run."""
    deadline = Deadline.after(30 + touched_bytes / _SLOWEST_RATE, "check the guest's memory")
    full_pass = control.call("verify", deadline)
    return FullPass(full_pass, control.call("status", Deadline.after(30, "the agent's status")))


def integrity(report: FullPass, old: Sequence[Beat], new: Sequence[Beat]) -> Integrity:
    """Return the whole account."""
    status = report.status
    numbers = downtime.count(old, new, int(status["heartbeats_skipped"]))
    return Integrity(
        pages_checked=status["pages_checked"],
        pages_checked_after=report.full_pass["pages_checked"],
        pages_total=status["pages"],
        pages_dirtied=status["pages_dirtied"],
        bad_pages=status["bad_pages"],
        first_bad=status["first_bad"],
        bad_tables=status["bad_table_chunks"],
        clock_went_back=bool(status["clock_went_back"])
        or downtime.went_back(downtime.merge(old, new)),
        heartbeats=numbers.received,
        heartbeats_lost=numbers.lost,
        heartbeats_doubled=numbers.doubled,
        kernel_errors=status["kernel_errors"],
        kernel_error=status["last_kernel_error"],
        kernel_log_lost=status["kernel_log_lost"],
    )


def nothing_known(old: Sequence[Beat], new: Sequence[Beat]) -> Integrity:
    """Return the account of a guest that can no longer be asked: nothing was checked."""
    numbers = downtime.count(old, new, 0)
    return Integrity(
        pages_checked=0,
        pages_checked_after=0,
        pages_total=0,
        pages_dirtied=0,
        bad_pages=0,
        clock_went_back=downtime.went_back(downtime.merge(old, new)),
        heartbeats=numbers.received,
        heartbeats_lost=numbers.lost,
        heartbeats_doubled=numbers.doubled,
        kernel_errors=0,
    )
