# SPDX-License-Identifier: GPL-2.0-or-later
"""``pageflip upgrade --pid``: upgrade QEMUs that the lab did not start, for real.

There is no agent of ours in such a guest: what it has in its memory cannot be checked here.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from lab import mechanisms
from lab.base import becoming, process
from lab.base.deadline import Deadline, DeadlineError
from lab.base.errors import CannotTellError, LabError
from lab.base.identity import Who
from lab.base.layout import Layout, socket_directory
from lab.base.progress import note
from lab.base.record import Spare, as_json
from lab.live import aside, joined, journal, look, planning, start, trial
from lab.live.aside import Aside, File
from lab.live.check import Sameness
from lab.live.journal import Entry, Journal, LiveStep, Owner
from lab.live.moved import Moved, tell
from lab.live.output import Output
from lab.live.planning import Plan
from lab.live.start import CommandLine
from lab.measure import downtime, memory
from lab.mechanisms import calloff
from lab.mechanisms.move import Move, move
from lab.model import Outcome
from lab.vm.qemu import Qemu, VmFactory, factory

_QUIT_S = 30.0


class Mover:
    """Upgrades QEMUs one by one, or some at once, and stops at the first that does not move."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._stop = threading.Event()
        #: What calls each off.
        self._on_their_way: dict[Qemu, Callable[[], bool]] = {}

    def all(self, plans: Sequence[Plan], at_once: int) -> list[Moved]:
        """Upgrade all of them; the list returned leaves out those that were not started."""
        with ThreadPoolExecutor(at_once) as pool:
            try:
                found = list(pool.map(self._next, plans))
            except KeyboardInterrupt:  # those on their way go back, and no other one is started
                self._stop.set()
                for call_off in list(self._on_their_way.values()):
                    with suppress(LabError):
                        call_off()
                raise
        return [one for one in found if one]

    def _next(self, plan: Plan) -> Moved | None:
        if self._stop.is_set():
            return None
        try:
            moved = self.one(plan)
        except BaseException:
            self._stop.set()
            raise
        if not moved.done:
            self._stop.set()
        tell(moved)
        return moved

    def one(self, plan: Plan) -> Moved:
        """Upgrade one, and leave whoever has the guest then in peace.

        Where a new QEMU that is no good could cost the guest, it is rehearsed before.
        """
        if rehearsal := planning.rehearsal(plan):
            rehearsed = self._one(rehearsal)
            if rehearsed.outcome is not Outcome.REHEARSED or self._stop.is_set():
                return rehearsed
        return self._one(plan)

    def _one(self, plan: Plan) -> Moved:
        record = Spare(self._layout.new_run("live-"))
        record.write("preflight", plan.seen.model_dump(mode="json"))
        with ExitStack() as stack:
            sockets = stack.enter_context(socket_directory())
            passed = stack.enter_context(aside.descriptors(plan.found.pid, plan.successor.passed))
            files = aside.named(
                [*plan.successor.files, plan.found.monitor], aside.listening(passed)
            )
            book = stack.enter_context(journal.begun(_entry(plan, record, sockets, files)))
            try:
                result = self._journaled(plan, record, sockets, passed, Aside(files), book)
            except BaseException:
                if book.entry.step in {LiveStep.PLANNED, LiveStep.STARTING}:
                    book.finish()  # everything has been undone
                else:
                    note(f"how far it got is in the journal: {journal.hint(plan.found.pid)}")
                raise
            if book.entry.runs is not Owner.EITHER:
                book.finish()
        if result.outcome is Outcome.UPGRADED:
            _verify(result)
        return result

    def _journaled(
        self,
        plan: Plan,
        record: Spare,
        sockets: Path,
        passed: Sequence[int],
        files: Aside,
        book: Journal,
    ) -> Moved:
        found = plan.found
        with ExitStack() as stack:
            os.chown(sockets, *start.owner(found.pid))
            vms = stack.enter_context(factory(record.directory, None))
            command = CommandLine(found.argv, sockets, found.monitor)
            old = Qemu("old", command, process.Foreign(found.pid), record.directory / "old.log")
            vms.connect(old)
            check = Sameness(old, [*plan.successor.files, *_own(plan)], sockets)
            resources = (*book.entry.resources, *check.resources())
            book.write(LiveStep.STARTING, resources=resources)
            stack.enter_context(files.held())
            new, keep = stack.enter_context(_successor(plan, record, sockets, passed))
            if not plan.mechanism.inherits:
                book.write(new=Who.of(new.pid))
            book.write(LiveStep.MOVING, runs=Owner.EITHER)
            try:
                with self._under_way(plan, old, new):
                    result = _move(vms, plan, old, new, record, check, files, book)
            except BaseException:
                keep()
                files.leave()
                raise
            if result.outcome is Outcome.UPGRADED:
                keep()
                book.write(LiveStep.SETTLING, runs=Owner.NEW, new=Who.of(new.pid))
                files.keep()
                _quit(old)
                if plan.mechanism.joins:
                    joined.wait_alone(new.pid, str(sockets))
                result = _checked(result, check, new, record)
            elif result.outcome in {Outcome.ROLLED_BACK, Outcome.REHEARSED}:
                book.write(LiveStep.SETTLING, runs=Owner.OLD)
                check.restore(old)
                if plan.mechanism.inherits and new.pid:  # by the old one: others are ended by us
                    _wait_ended(new)
            else:
                keep()
                files.leave()
        return result

    @contextmanager
    def _under_way(self, plan: Plan, old: Qemu, new: Qemu) -> Iterator[None]:
        """Let a move be called off for as long as the block lasts."""
        how = functools.partial(calloff.call_off, plan.mechanism, old, new, plan.found.state)
        self._on_their_way[old] = how
        try:
            yield
        finally:
            del self._on_their_way[old]


def _own(plan: Plan) -> Iterator[Path]:
    """Yield files that one of both has open, and that the other one need not have."""
    yield from plan.own
    if plan.mechanism.joins:  # its program, to give /proc its name when the old one has ended
        yield Path(plan.successor.argv[0])


def _entry(plan: Plan, record: Spare, sockets: Path, files: Sequence[File]) -> Entry:
    """Return how the journal of an upgrade begins; its socket directory is its mark."""
    monitor = plan.found.monitor
    return Entry(
        began=journal.now(),
        lab=Who.of(os.getpid()),
        old=Who.of(plan.found.pid),
        mark=str(sockets),
        mechanism=plan.mechanism.name,
        stops=not plan.mechanism.resumes,
        ran=plan.found.state == "running",
        monitor=str(next((one.path for one in files if one.has(monitor)), monitor)),
        run_directory=str(record.directory),
        resources=tuple(one.resource() for one in files),
    )


@contextmanager
def _successor(
    plan: Plan, record: Spare, sockets: Path, passed: Sequence[int]
) -> Iterator[tuple[Qemu, Callable[[], None]]]:
    """Have the new QEMU, or the promise of one, and what is called for it to stay."""
    found = plan.found
    command = CommandLine(
        tuple(plan.successor.with_descriptors(passed)), sockets, found.monitor, tuple(passed)
    )
    command = dataclasses.replace(command, incoming=plan.mechanism.incoming(command))
    record.write("new", {"argv": command.argv()})
    if plan.mechanism.inherits:
        helpers = set(process.children(found.pid))
        promised = becoming.ChildOf(found.pid, helpers)
        yield Qemu("new", command, promised, record.directory / "new.log"), lambda: None
        return
    log, mark = record.log("new.log"), {journal.MARK: str(sockets)}
    if plan.asked.rehearse:  # it is never to have the guest, and goes with the lab
        argv = [*start.as_user(found.pid, "--pdeathsig", "KILL"), *command.argv()]
        with process.spawned(argv, log=log, cwd=found.cwd, env=mark) as child:
            yield Qemu("new", command, child, log), lambda: None
        return
    argv = [*start.as_user(found.pid), *command.argv()]
    umask = start.umask(found.pid)
    with process.lent(argv, log=log, cwd=found.cwd, umask=umask, env=mark) as lent:
        yield Qemu("new", command, lent.process, log), lent.keep


def _move(
    vms: VmFactory,
    plan: Plan,
    old: Qemu,
    new: Qemu,
    record: Spare,
    check: Sameness,
    files: Aside,
    book: Journal,
) -> Moved:
    """Move the guest and return the result."""

    def look_at(there: Qemu) -> None:
        if plan.mechanism.joins:  # /proc does not call it by its own name before the old one ends
            book.write(new=Who.of(there.pid))
        files.lend()
        check.before(there)

    asked = dataclasses.replace(plan.asked, hold=plan.mechanism.can_hold(plan.found.binary))
    output = Output(plan.found.pid, plan.log)
    with memory.sampled(old, new, considerate=True) as sampler:
        moved = move(
            vms,
            old,
            new,
            plan.mechanism,
            asked,
            look=look_at,
            try_out=functools.partial(trial.compare, vms, plan.found, plan.successor, new, check),
            state=plan.found.state,
            resuming=lambda _new: book.write(LiveStep.RESUMING),
        )
    record.write("upgrade", moved.record())
    used = memory.summarise(plan.seen.used_bytes, sampler.samples, 0, None)
    result = Moved(
        pid=plan.found.pid,
        new_pid=new.pid if not new.dead else 0,
        outcome=moved.outcome,
        failure="; ".join(filter(None, (moved.failure, _said(vms, plan, new, moved, output)))),
        mechanism=_used(plan, moved),
        old_version=plan.seen.version,
        new_version=plan.seen.new_version,
        monitor=str(plan.found.monitor),
        pause_ms=downtime.qmp_pause_ms(old.events, moved.resumed(old).events),
        total_ms=moved.window.ms,
        memory_ratio=used.ratio if used.samples > 1 else None,
        run_directory=str(record.directory),
    )
    record.keep("moved.json", as_json(result))
    return result


def _used(plan: Plan, moved: Move[Qemu]) -> str:
    """Return the mechanism that it was in the end, and say so if it is another one."""
    if moved.fallback:
        note(moved.fallback)
    return mechanisms.Flip.name if moved.fallback else plan.mechanism.name


def _said(vms: VmFactory, plan: Plan, new: Qemu, moved: Move[Qemu], output: Output) -> str:
    """Return what the new QEMU said, if the old one started it.

    Where nobody can read that, one that has not got far is asked once more.
    """
    if not moved.failure or not plan.mechanism.inherits or plan.mechanism.from_outside:
        return ""
    if said := output.said():
        return f"it said: {said}"
    if new.connection or moved.outcome is not Outcome.ROLLED_BACK:
        return ""
    return trial.reason(vms, plan.found, plan.successor, new)


def _checked(moved: Moved, check: Sameness, new: Qemu, record: Spare) -> Moved:
    """Return the result with what the new QEMU lacks after all."""
    differences = [*check.restore(new), *check.after(new)]
    moved = moved.model_copy(update={"differences": differences})
    record.keep("moved.json", as_json(moved))
    return moved


def _quit(old: Qemu) -> None:
    """End the old QEMU, which has nothing of the guest any more."""
    assert isinstance(old.process, process.Foreign)
    with suppress(LabError):
        old.monitor.execute("quit")
    if not _wait_ended(old):
        note(f"the old QEMU, process {old.pid}, does not end, and is killed")
        old.process.kill()
        _wait_ended(old)


def _wait_ended(qemu: Qemu) -> bool:
    """Return whether it ended in time."""
    try:
        for _ in Deadline.after(_QUIT_S, "QEMU ends").poll(0.01):
            if qemu.dead:
                break
    except DeadlineError:
        return False
    return True


def _verify(moved: Moved) -> None:
    """Raise CannotTellError unless management reaches the new QEMU where the old one was."""
    there = look.look(moved.monitor)
    if (there.pid, there.binary.version) != (moved.new_pid, moved.new_version):
        raise CannotTellError(
            f"process {moved.pid} has been upgraded, but {moved.monitor} is answered by process "
            f"{there.pid}, QEMU {there.binary.version}, and not by {moved.new_pid}",
            hint=f"a record of everything that was done: {moved.run_directory}",
        )
