# SPDX-License-Identifier: GPL-2.0-or-later
"""The result of a live upgrade, and how it is told."""

from __future__ import annotations

from pydantic import Field

from lab.base.progress import note
from lab.live import journal
from lab.model import Model, Outcome

#: What an upgrade ends in, or a rehearsal.
SUCCESS = frozenset({Outcome.UPGRADED, Outcome.REHEARSED})


class Moved(Model):
    """The result for one QEMU."""

    pid: int
    new_pid: int = Field(description="0 where there is none")
    outcome: Outcome
    failure: str = Field(description="why, when it did not move; empty when it did")
    mechanism: str
    old_version: str
    new_version: str
    monitor: str = Field(description="the QMP socket, of both")
    pause_ms: float | None = Field(description="STOP to RESUME")
    total_ms: float
    memory_ratio: float | None = Field(description="peak of both QEMUs' PSS to before")
    run_directory: str
    differences: list[str] = Field(
        default=[], description="what the new QEMU has not as the old one had it; none is expected"
    )

    @property
    def done(self) -> bool:
        """Whether everything is as it was asked for."""
        return self.outcome in SUCCESS and not self.differences


def tell(moved: Moved) -> None:
    """Report the result for one QEMU."""
    if moved.outcome is Outcome.UPGRADED:
        pause = "" if moved.pause_ms is None else f", stood still for {moved.pause_ms:.1f} ms"
        ratio = "" if moved.memory_ratio is None else f", memory {moved.memory_ratio:.2f}"
        note(
            f"process {moved.pid}, QEMU {moved.old_version}, is process {moved.new_pid}, QEMU "
            f"{moved.new_version}, by {moved.mechanism}{pause}{ratio}"
        )
        for one in moved.differences:
            note(f"process {moved.new_pid} is not what process {moved.pid} was: {one}")
        return
    if moved.outcome is Outcome.REHEARSED:
        pause = "" if moved.pause_ms is None else f", standing still for {moved.pause_ms:.1f} ms"
        note(
            f"process {moved.pid}, QEMU {moved.old_version}: QEMU {moved.new_version} loads its "
            f"guest by {moved.mechanism}; the guest went back{pause}"
        )
        return
    where = {
        Outcome.ROLLED_BACK: "its guest keeps running there, unaffected",
        Outcome.DOUBLED: f"and process {moved.new_pid} BOTH run the guest: stop one of them",
    }.get(moved.outcome, f"nobody runs its guest; process {moved.new_pid} may have it, stopped")
    note(f"process {moved.pid} was not upgraded; {where}: {moved.failure}")
    if moved.outcome is not Outcome.ROLLED_BACK:
        note(
            f"what can still be done, and puts its files in their places: {journal.hint(moved.pid)}"
        )
