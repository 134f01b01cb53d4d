# SPDX-License-Identifier: GPL-2.0-or-later
"""The result of an upgrade: the one source of the schema of ``result.json``.

Times are in milliseconds and sizes in bytes, as their names say.  A value that could not be had is
null, never zero.
"""

from __future__ import annotations

import enum
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class Model(BaseModel):
    """A frozen record that refuses keys it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Outcome(enum.StrEnum):
    """Where the guest was found after the upgrade."""

    UPGRADED = "upgraded"  # it runs under the new QEMU, and only there
    ROLLED_BACK = "rolled-back"  # it runs under the old QEMU, and only there
    REHEARSED = "rehearsed"  # the same, on purpose: the new QEMU had loaded its device state
    LOST = "lost"  # it runs nowhere
    DOUBLED = "doubled"  # it runs under both: the worst there is


class Pages(enum.StrEnum):
    """What pages guest RAM consists of."""

    THP = "thp"  # ordinary ones, and transparent huge pages as far as the kernel gives any
    SMALL = "4k"  # ordinary ones alone
    HUGETLB = "hugetlb"  # huge pages of the kernel's pool, private


class VerdictKind(enum.StrEnum):
    """What the lab says in the end."""

    PASS = "pass"  # noqa: S105 -- not a password
    FAIL = "fail"


class Side(Model):
    """One QEMU of the pair."""

    release: str | None = Field(
        description="release as named in patches/releases.toml; null for a path"
    )
    version: str = Field(description="the version that the binary reports")
    path: str
    sha256: str


class Pause(Model):
    """The pause by three clocks (ms)."""

    qmp: float | None = Field(description="QMP event STOP of the old to RESUME of the new QEMU")
    outside: float | None = Field(description="longest gap between heartbeats as the host got them")
    inside: float | None = Field(
        description="longest step of the guest's own clock between two ticks"
    )
    outside_before: float | None = Field(
        description="longest gap between heartbeats in the second before the upgrade: the noise"
    )
    before_stop: float | None = Field(default=None, description="part of `outside` before STOP")
    after_resume: float | None = Field(default=None, description="part of it after RESUME")
    guest_ran: float | None = Field(
        default=None, description="how far the guest's own clock went on in `outside`"
    )
    new_processors: float | None = Field(
        default=None, description="processors that the new QEMU had in `after_resume`, on average"
    )


class Brownout(Model):
    """How slow the guest was, from its heartbeats in slices of 20 ms; this includes the pause."""

    lowest_share: float = Field(
        description="fewest heartbeats in a piece, as a share of the usual number"
    )
    slow_ms: float = Field(
        description="slices below 80 % of the usual rate, until a second after the end"
    )
    slow_before_ms: float = Field(description="the same in the second before: the noise")


class Sample(Model):
    """Memory at one instant of the upgrade, relative to its start."""

    at_ms: float
    old_pss_bytes: int
    new_pss_bytes: int
    skew_bytes: int = Field(
        description="how far the old side moved while the new one was read: the reading's error"
    )


class Memory(Model):
    """What the upgrade cost in memory, both processes together."""

    before_bytes: int = Field(description="the old QEMU alone, just before the new one was started")
    peak_bytes: int = Field(description="both together, the highest seen during the upgrade")
    ratio: float = Field(description="peak_bytes / before_bytes")
    method: Literal["cgroup", "pss"] = Field(
        description="cgroup: the kernel's own peak of a group with both QEMUs and nothing else; "
        "pss: the highest of the sampled sums"
    )
    pss_before_bytes: int
    pss_peak_bytes: int
    pss_ratio: float
    samples: int = Field(description="PSS readings taken during the upgrade")
    samples_discarded: int = Field(
        description="readings with an error above 5 % of before: two processes are not read in "
        "one instant"
    )
    new_huge_bytes: int | None = Field(
        default=None, description="guest RAM in anonymous huge pages under the new QEMU, afterwards"
    )
    new_pss_bytes: int | None = Field(
        default=None, description="PSS of the new QEMU alone, when the guest has been checked"
    )
    old_huge_bytes: int | None = Field(
        description="guest RAM in anonymous huge pages under the old QEMU, before"
    )


class Integrity(Model):
    """What the checker in the guest found, over the whole run."""

    pages_checked: int = Field(description="pages compared since the guest was filled")
    pages_checked_after: int = Field(
        description="pages compared in the full pass after the upgrade"
    )
    pages_total: int = Field(description="pages that carry a pattern")
    pages_dirtied: int = Field(description="pages rewritten while all this went on")
    bad_pages: int
    first_bad: dict[str, Any] | None = None
    bad_tables: int = Field(
        default=0, description="pieces of the checker's own table that were damaged"
    )
    clock_went_back: bool
    heartbeats: int = Field(description="heartbeats received")
    heartbeats_lost: int = Field(description="numbers missing from the sequence")
    heartbeats_doubled: int = Field(description="numbers that came twice")
    kernel_errors: int = Field(
        description="records of level err or worse in the guest's kernel log"
    )
    kernel_error: str | None = None
    kernel_log_lost: int = Field(default=0, description="kernel log records that came too fast")


class Findings(Model):
    """What a workload found out."""

    name: str = Field(description="the workload")
    figures: dict[str, int | float | None] = Field(
        description="what was measured and counted, units in the names"
    )
    problems: list[str] = Field(description="what was lost, one sentence each; empty when nothing")


class Block(Model):
    """How one RAM block moved.  Every byte is counted once, under what really happened to it."""

    name: str
    mechanism: str
    used_bytes: int | None = None
    flipped_bytes: int = Field(
        default=0, description="stayed in place: private memory that the new QEMU inherited"
    )
    handed_over_bytes: int = Field(
        default=0, description="stayed in place: their descriptor was passed and mapped"
    )
    remapped_bytes: int = Field(
        default=0, description="stayed in place: moved to other addresses of the same memory map"
    )
    gifted_bytes: int = Field(
        default=0, description="vmspliced into a pipe; the kernel copies once on read"
    )
    copied_bytes: int = Field(default=0, description="through a socket")
    faulted_bytes: int = Field(
        default=0, description="fetched because the device state touched them"
    )
    zero_bytes: int = Field(default=0, description="touched, but zero: not sent")
    untouched_bytes: int = Field(default=0, description="never touched: not sent, not populated")


class Phases(Model):
    """The phases of the upgrade (ms), where the mechanism reports them."""

    drain: float | None = Field(
        default=None, description="disk requests in flight awaited, while the guest runs"
    )
    fork: float | None = Field(
        default=None,
        description="the old QEMU forks, and the guest cannot touch its memory; before STOP in an "
        "early start",
    )
    new_start: float | None = Field(
        default=None, description="start of the new process to its monitor"
    )
    handshake: float | None = None
    ahead: float | None = Field(
        default=None,
        description="what the guest changed since the fork is sent, while it goes on running",
    )
    stop: float | None = Field(default=None, description="guest stopped, its disks let go")
    save: float | None = Field(default=None, description="device state saved by the old QEMU")
    changes: float | None = Field(
        default=None,
        description="what the guest changed since the fork, and was not sent ahead, is sent",
    )
    load: float | None = Field(default=None, description="device state loaded by the new QEMU")
    resume: float | None = Field(
        default=None,
        description="everything loaded to virtual processors started, in the new QEMU",
    )
    move: float | None = Field(default=None, description="first page to last page")


class Host(Model):
    """The machine this was measured on."""

    cpu: str
    cores: int
    memory_bytes: int
    kernel: str
    distribution: str
    thp: str
    cgroup: str
    virtual: bool = Field(description="the CPU says that it is itself under a hypervisor")


class Pinning(Model):
    """Processors that were kept for the guest, by number."""

    guest_cpus: list[int] = Field(description="where only virtual processors ran")
    other_cpus: list[int] = Field(
        description="where everything else did, QEMU's threads and the lab"
    )


class Limits(Model):
    """What the verdict allows; the user's to set, generous by default."""

    pause_ms: float = 10_000.0
    memory_ratio: float = 1.25


class Result(Model):
    """Everything an upgrade leaves behind, as printed by ``--json``."""

    schema_version: Literal[1] = 1
    verdict: VerdictKind
    reasons: list[str] = Field(description="why the verdict is fail; empty when it is pass")
    notes: list[str] = Field(description="what a reader should know, such as clocks that disagree")
    outcome: Outcome
    mechanism: str
    accel: str
    guest: str
    ram_bytes: int
    touched_bytes: int
    dirty_rate: int = Field(description="bytes a second that the guest rewrites")
    pages: Pages = Field(description="what pages guest RAM consists of")
    machine: str = Field(description="machine type")
    cpus: int = Field(description="virtual processors")
    total_ms: float | None = Field(
        description="first command of the upgrade until both QEMUs say it is complete"
    )
    pause_ms: Pause
    phases_ms: Phases
    brownout: Brownout | None = Field(
        default=None, description="null when nothing was heard before the upgrade"
    )
    memory: Memory | None
    memory_sampled: bool = Field(default=True, description="whether it was to be measured")
    integrity: Integrity
    blocks: list[Block]
    workloads: list[Findings] = Field(default=[], description="what each workload found")
    limits: Limits
    old: Side
    new: Side
    host: Host
    pinning: Pinning | None = Field(default=None, description="null when nothing was pinned")
    run_directory: str
    reproduce: str
