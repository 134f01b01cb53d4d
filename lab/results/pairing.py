# SPDX-License-Identifier: GPL-2.0-or-later
"""Every old QEMU by every new one: what is asked, and what came of it, as kept in ``pairs.json``.

Pure.  ``docs/pairs.md`` says what the answers mean.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError

from lab import mechanisms, options
from lab.base import arguments
from lab.base.arguments import Option
from lab.base.errors import UsageError
from lab.model import Host, Model, Outcome, Pause, Result, Side
from lab.options import GuestOptions, UpgradeOptions
from lab.verdict import faults, harm
from lab.vm.boards import BOARDS

#: What a table is kept in, in its directory, or in that of a test: then it has one cell.
FILE = "pairs.json"


class PairAnswer(enum.StrEnum):
    """What came of moving a guest from one QEMU to another, worst last."""

    PASS = "pass"  # noqa: S105 -- not a password
    REFUSED = "refused"  # before the guest was touched: the pair, or the host, cannot do it
    ROLLED_BACK = "rolled back"  # the move failed, and the guest goes on under the old QEMU
    UNKNOWN = "not known"  # the lab could not tell; tried again the next time
    HARMED = "harmed"  # it runs, and has lost something
    LOST = "lost"  # it runs nowhere, or twice


#: Answers that are not asked for again while everything that went into them is the same.
KEPT = frozenset({PairAnswer.PASS, PairAnswer.ROLLED_BACK, PairAnswer.HARMED, PairAnswer.LOST})
_ORDER = list(PairAnswer)


class PairRequest(GuestOptions):
    """The options of ``pageflip pairs``."""

    old: Annotated[
        str, Option("QEMUs to upgrade from (default: all that are in the cache)", "NAME,...")
    ] = ""
    new: Annotated[str, Option("QEMUs to upgrade to (default: the same)", "NAME,...")] = ""
    mechanisms: Annotated[tuple[str, ...], Option("how guests are moved", "A,B,...")] = (
        "precopy",
        "transplant",
        "flip",
    )
    ram: Annotated[str, Option("guest RAM", "SIZE")] = "256M"
    touch: Annotated[str, Option("how much of its RAM is filled and checked", "SIZE|PERCENT")] = (
        "50%"
    )
    dirty_rate: Annotated[
        str, Option("how much of that the guest rewrites each second", "SIZE")
    ] = "10M"
    machine: Annotated[
        str,
        Option(
            f"the guest's board ({', '.join(BOARDS)}), of the newest version that both QEMUs of a "
            "pair have, or a machine type (default: what the guest is made for)",
            "BOARD|TYPE",
        ),
    ] = ""
    repeats: Annotated[int, Option("how often each is tried; the worst answer counts", "N")] = 1
    forward_only: Annotated[bool, Option("not back as well, from the new ones to the old")] = False

    @property
    def olds(self) -> list[str]:
        """The old QEMUs' names, in the order given."""
        return list(dict.fromkeys(filter(None, self.old.split(","))))

    @property
    def news(self) -> list[str]:
        """The new ones'."""
        return list(dict.fromkeys(filter(None, self.new.split(","))))


class PairTrial(Model):
    """One upgrade of the plan."""

    asked: UpgradeOptions
    round: int

    @property
    def title(self) -> str:
        """It in words."""
        turn = f", round {self.round}" if self.round > 1 else ""
        return f"{self.asked.old} to {self.asked.new} by {self.asked.mechanism}{turn}"


class PairRun(Model):
    """A trial, and what came of it."""

    old: str = Field(description="the old QEMU's name, as it was typed")
    new: str = Field(description="the new one's")
    mechanism: str
    round: int = Field(description="from 1")
    answer: PairAnswer
    reasons: list[str] = Field(description="why; empty when it passed")
    old_qemu: Side | None = Field(default=None, description="null when nothing was started")
    new_qemu: Side | None = None
    machine: str = Field(default="", description="machine type")
    accel: str = ""
    pause_ms: Pause | None = None
    memory_ratio: float | None = Field(default=None, description="memory peak / before")
    took_s: float = Field(default=0.0, description="the whole run: boot, fill, upgrade, check")
    run_directory: str = ""
    reproduce: str = Field(default="", description="the command line that does it alone")


class Grid(Model):
    """Everything that ``pageflip pairs`` leaves behind."""

    schema_version: Literal[1] = 1
    finished: bool = False
    started: str
    command: str
    guest: str = Field(description="what was moved, in words")
    olds: list[str] = Field(description="in the order of the table's rows")
    news: list[str] = Field(description="in the order of its columns")
    mechanisms: list[str]
    hosts: list[Host]
    runs: list[PairRun] = Field(default_factory=list)


def plan(request: PairRequest) -> list[PairTrial]:
    """Return every trial in its order; raise UsageError for what cannot be asked."""
    if request.repeats < 1:
        raise UsageError(f"--repeats {request.repeats}: each pair is tried at least once")
    if not request.mechanisms:
        raise UsageError("--mechanisms: name at least one")
    for name in request.mechanisms:
        mechanisms.named(name)
    pairs = [(old, new) for old in request.olds for new in request.news]
    if not request.forward_only:
        pairs += [(new, old) for old, new in pairs]
    shared = {name: getattr(request, name) for name in GuestOptions.model_fields}
    return [
        PairTrial(
            asked=options.of(
                **{**shared, "old": old, "new": new},
                ram=request.ram,
                machine=request.machine,
                mechanism=mechanism,
            ),
            round=number,
        )
        for number in range(1, request.repeats + 1)
        for old, new in dict.fromkeys(pairs)
        for mechanism in dict.fromkeys(request.mechanisms)
    ]


def empty(trials: Sequence[PairTrial], command: str, started: str, host: Host) -> Grid:
    """Return the table of `trials`, of which none has been done."""
    guests = {guest_words(trial.asked) for trial in trials}
    return Grid(
        started=started,
        command=command,
        guest=" and ".join(sorted(guests)),
        olds=list(dict.fromkeys(trial.asked.old for trial in trials)),
        news=list(dict.fromkeys(trial.asked.new for trial in trials)),
        mechanisms=list(dict.fromkeys(trial.asked.mechanism for trial in trials)),
        hosts=[host],
    )


def guest_words(asked: UpgradeOptions) -> str:
    """Return in words what is moved."""
    words = [
        f"guest {asked.guest}, {asked.ram_bytes // 2**20} MiB, {asked.touch} filled, "
        f"{asked.dirty_rate}/s rewritten",
        f"{asked.cpus} processor{'s' if asked.cpus > 1 else ''}",
    ]
    more = {
        "machine": asked.machine,
        "workload": asked.workload,
        "devices": asked.devices,
        "accelerator": asked.accel,
    }
    return ", ".join([*words, *(f"{name} {text}" for name, text in more.items() if text)])


def not_done(trial: PairTrial, answer: PairAnswer, reason: str) -> PairRun:
    """Return the answer to a trial that has no result."""
    return PairRun(
        old=trial.asked.old,
        new=trial.asked.new,
        mechanism=trial.asked.mechanism,
        round=trial.round,
        answer=answer,
        reasons=[reason],
        reproduce=trial.asked.reproduce,
    )


def done(trial: PairTrial, result: Result, took_s: float) -> PairRun:
    """Return the answer that a result is; limits of time and memory are no part of it."""
    answer, reasons = _answer(result)
    return PairRun(
        old=trial.asked.old,
        new=trial.asked.new,
        mechanism=trial.asked.mechanism,
        round=trial.round,
        answer=answer,
        reasons=reasons,
        old_qemu=result.old,
        new_qemu=result.new,
        machine=result.machine,
        accel=result.accel,
        pause_ms=result.pause_ms,
        memory_ratio=result.memory.ratio if result.memory else None,
        took_s=took_s,
        run_directory=result.run_directory,
        reproduce=result.reproduce,
    )


def _answer(result: Result) -> tuple[PairAnswer, list[str]]:
    reasons = faults(result)
    match result.outcome:
        case Outcome.LOST | Outcome.DOUBLED:
            return PairAnswer.LOST, reasons
        case Outcome.UPGRADED if not reasons:
            return PairAnswer.PASS, []
        case Outcome.ROLLED_BACK if not harm(result):
            return PairAnswer.ROLLED_BACK, reasons
    return PairAnswer.HARMED, reasons


def worst(runs: Iterable[PairRun]) -> PairRun | None:
    """Return the run with the worst answer, the first of several; None of none."""
    return max(runs, key=lambda run: _ORDER.index(run.answer), default=None)


def cell(grid: Grid, old: str, new: str, mechanism: str) -> PairRun | None:
    """Return the run that a cell of the table shows; None where there is none."""
    return worst(
        run for run in grid.runs if (run.old, run.new, run.mechanism) == (old, new, mechanism)
    )


def merged(grids: Sequence[Grid], command: str) -> Grid:
    """Return the tables that several hosts have made as one.

    Of a trial that is in several the latest one counts.  Raises UsageError when there is none, or
    when their guests differ.
    """
    if not grids:
        raise UsageError(
            f"there is no {FILE} in there",
            hint="name the directory of an avocado job, or one that holds several",
        )
    ordered = sorted(grids, key=lambda grid: grid.started)
    guests = list(dict.fromkeys(grid.guest for grid in ordered))
    if len(guests) > 1:
        raise UsageError(
            f"these are answers to different questions: {guests[0]}; {guests[1]}",
            hint="name a directory with those of one",
        )
    runs = {
        (run.old, run.new, run.mechanism, run.round): run for grid in ordered for run in grid.runs
    }

    def of_all(name: str) -> list[str]:
        return list(dict.fromkeys(one for grid in ordered for one in getattr(grid, name)))

    hosts: list[Host] = []
    for host in (host for grid in ordered for host in grid.hosts):
        hosts += [host] if host not in hosts else []
    olds, news, ways = of_all("olds"), of_all("news"), of_all("mechanisms")
    cells = {(old, new, way) for old in olds for new in news for way in ways}
    whole = cells <= {(run.old, run.new, run.mechanism) for run in runs.values()}
    return Grid(
        finished=whole or all(grid.finished for grid in ordered),
        started=ordered[0].started,
        command=command,
        guest=guests[0],
        olds=olds,
        news=news,
        mechanisms=ways,
        hosts=hosts,
        runs=list(runs.values()),
    )


def read(path: Path) -> Grid:
    """Read a table from its file; raise UsageError that names it."""
    try:
        return Grid.model_validate_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from error
    except ValidationError as error:
        raise UsageError(f"{path}: {error}", "it is of another version of pageflip") from error


def command(request: PairRequest) -> str:
    """Return the command line that asks for the same again."""
    return arguments.command("pairs", request)
