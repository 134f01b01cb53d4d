# SPDX-License-Identifier: GPL-2.0-or-later
"""Compare mechanisms: the same upgrade again and again, in rounds, interleaved.

Only ratios survive a noisy host, and only when what is compared was run side by side: each round
runs every mechanism once, in another order.  ``docs/measuring.md`` is the method.
"""

from __future__ import annotations

import dataclasses
import shlex
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from lab.base.errors import CannotTellError, ExitCode, PreconditionError, UsageError
from lab.base.files import write_whole
from lab.base.layout import Layout
from lab.base.progress import note, overall
from lab.guest import images
from lab.host import facts
from lab.model import Result, Side
from lab.options import UpgradeOptions
from lab.pipeline import upgrade_once
from lab.report import tables, write
from lab.report.changes import NO_GATE, Gate
from lab.results import figures
from lab.results.figures import FILE, WARM_UP, Bench, NotRun, Request, Turn, read_bench, run_of
from lab.results.rounds import Slot, plan, split
from lab.vm.binary import binary_of

#: How one guest is upgraded; the tests have another one.
Runner = Callable[[Layout, UpgradeOptions], Result]


@dataclass
class BenchSession:
    """A bench that is going on, in its directory."""

    directory: Path
    layout: Layout
    bench: Bench
    runner: Runner
    #: Whether the last run was one that the lab could not tell of.
    troubled: bool = False

    def go(self) -> None:
        """Do the remaining runs, keeping each result as soon as there is one."""
        slots = plan(self.bench.request)
        self._keep()
        with overall("bench") as told:
            while left := self._left(slots):
                done = len(self.bench.runs) + len(self.bench.troubles)
                told(done, done + len(left), f"{left[0].title}  {self.time_left(left)}")
                said = self._once(left[0])
                note(f"{done + 1}/{done + len(left)}  {left[0].title}: {tables.flat(said)}")
        self._keep(finished=not self.bench.troubles)

    def extend(self, repeats: int) -> None:
        """Ask for so many rounds in all."""
        request = self.bench.request.model_copy(update={"repeats": repeats})
        self._keep(request=request, command=request.command, finished=False)

    def _left(self, slots: Sequence[Slot]) -> list[Slot]:
        turns: list[Turn] = [*self.bench.runs, *self.bench.troubles]
        done = {(turn.round, turn.case) for turn in turns}
        # A mechanism that cannot be used at one dirty rate cannot be used at any.
        never = {(entry.ram_bytes, entry.mechanism) for entry in self.bench.inapplicable}
        return [
            slot
            for slot in slots
            if (slot.round, slot.case) not in done
            and (slot.load.ram_bytes, slot.label) not in never
        ]

    def _once(self, slot: Slot) -> str:
        """Do one run, keep its result, and return that in a few words.

        What the lab cannot do is kept as well and the bench goes on; twice in a row ends it.
        """
        begun = time.monotonic()
        try:
            result = self.runner(self.layout, slot.options)
        except PreconditionError as error:
            entry = self._not_run(slot, error)
            self._keep(inapplicable=[*self.bench.inapplicable, entry])
            return error.message
        except CannotTellError as error:
            again, self.troubled = self.troubled, True
            self._keep(troubles=[*self.bench.troubles, self._not_run(slot, error)])
            if again:
                raise
            return f"the lab could not tell: {error.message}"
        self.troubled = False
        sides = self._same_qemus(slot, result)
        directory = Path(result.run_directory).name
        took_s = round(time.monotonic() - begun, 1)
        run = run_of(result, slot.label, slot.round, took_s, directory)
        self._keep(runs=[*self.bench.runs, run], **sides)
        return tables.one_line(run)

    @staticmethod
    def _not_run(slot: Slot, error: CannotTellError) -> NotRun:
        return NotRun(
            round=slot.round, **slot.load._asdict(), mechanism=slot.label, reason=error.message
        )

    def _same_qemus(self, slot: Slot, result: Result) -> dict[str, object]:
        """Return what is to be kept of the two QEMUs; raise UsageError when one has changed."""
        label = split(slot.label)
        own: dict[str, Side] = {}
        others = dict(self.bench.others)
        for side, other, now in (
            ("old", label.old, result.old),
            ("new", label.new, result.new),
        ):
            before = others.get(other) if other else getattr(self.bench, side)
            if before and before.sha256 != now.sha256:
                raise UsageError(
                    f"the {side} QEMU ({now.path}) is no longer the one this bench began with",
                    hint="begin a new bench: runs of different binaries are not mixed",
                )
            if other:
                others[other] = now
            else:
                own[side] = now
        return {**own, "others": others}

    def _keep(self, **news: object) -> None:
        bench = self.bench.model_copy(update=news)
        self.bench = bench.model_copy(update={"summary": figures.summarise(bench)})
        write_whole(self.directory / FILE, self.bench.model_dump_json(indent=2) + "\n")

    def time_left(self, left: Sequence[Slot]) -> str:
        """Return how long `left` may take, in words; nothing before there is a run to go by."""
        runs = self.bench.runs
        if not runs:
            return ""
        everything = [run.took_s for run in runs]
        seconds = sum(
            statistics.mean(
                [r.took_s for r in runs if r.ram_bytes == slot.load.ram_bytes] or everything
            )
            for slot in left
        )
        time_left = f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
        return f"about {time_left} left"


def exit_code(bench: Bench) -> ExitCode:
    """Return what a bench says to the shell."""
    if any(run.faults for run in bench.runs):
        return ExitCode.FAIL
    counted = any(run.round != WARM_UP for run in bench.runs)
    return ExitCode.PASS if counted and not bench.troubles else ExitCode.CANNOT_TELL


def begin(layout: Layout, request: Request, runner: Runner) -> BenchSession:
    """Make a bench directory and return the session that is to fill it."""
    directory = layout.new_run("bench-")
    bench = Bench(
        started=datetime.now(UTC).isoformat(timespec="seconds"),
        command=request.command,
        request=request,
        host=facts.fingerprint(),
    )
    return BenchSession(directory, dataclasses.replace(layout, out=directory), bench, runner)


def resume(layout: Layout, directory: Path, runner: Runner) -> BenchSession:
    """Return the session that resumes the bench in `directory`; raise UsageError."""
    path = directory / FILE
    bench = read_bench(path)
    if (here := facts.fingerprint()) != bench.host:
        raise UsageError(
            f"{path} was begun on another machine or kernel: {bench.host} there, {here} here",
            hint="begin a new bench: runs of different hosts are not mixed",
        )
    bench = bench.model_copy(update={"troubles": []})  # those are tried again
    return BenchSession(directory, dataclasses.replace(layout, out=directory), bench, runner)


def carry_out(session: BenchSession, gate: Gate = NO_GATE) -> ExitCode:
    """Do the runs, show what there is however they end, and return what that says to the shell."""
    try:
        session.go()
    finally:
        leave(session)
        tables.show(session.bench)
        note(f"bench directory: {session.directory}")
        if not session.bench.finished:
            again = shlex.join(["./pageflip", "bench", "--resume", str(session.directory)])
            note(f"not finished; to go on: {again}")
    return exit_code(session.bench) or gate.judge(session.bench)


def leave(session: BenchSession) -> None:
    """Write bench.md and report.html."""
    tables.write(session.bench, session.directory / "bench.md")
    write.write_bench(session.bench, session.directory)


def _as_asked(_bench: Bench) -> None:
    """Ask for no more rounds."""


def measure(
    layout: Layout,
    request: Request,
    more: Callable[[Bench], int | None] = _as_asked,
    runner: Runner = upgrade_once,
) -> Bench:
    """Build what is missing, run the bench and return it, without showing anything.

    `more` is asked after the last round how many there are to be in all; None ends it.
    """
    prepare(layout, request)
    session = begin(layout, request, runner)
    session.go()
    while repeats := more(session.bench):
        session.extend(repeats)
        session.go()
    leave(session)
    return session.bench


def prepare(layout: Layout, request: Request) -> None:
    """Build what is missing before anything is run; raise UsageError for names nobody knows."""
    others = [name for label in request.mechanisms for name in split(label)[1:] if name]
    guest = images.named(layout, request.guest)
    images.build(request.guest, layout)
    for name in dict.fromkeys((request.old, request.new, *others)):
        binary_of(layout, name, guest.architecture)
