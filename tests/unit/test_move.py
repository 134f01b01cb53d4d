# SPDX-License-Identifier: GPL-2.0-or-later
"""The move between two QMP peers of our own: who runs the guest in the end, and why."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from fakes import FakeQemu, fake_qemu

from lab import pipeline
from lab.base.deadline import Deadline, DeadlineError
from lab.base.errors import CannotTellError
from lab.measure.downtime import Window
from lab.mechanisms import (
    Asked,
    CprExec,
    Flip,
    FlipLate,
    IgnoreShared,
    Multifd,
    Precopy,
    Remap,
    StopCopy,
    Transplant,
)
from lab.mechanisms.base import Driven, Look
from lab.mechanisms.move import Move, _go, move
from lab.model import Outcome
from lab.vm.agent import AgentError
from lab.vm.monitor import MonitorError, QmpError, monitor
from lab.vm.qemu import Vm, VmDiedError, VmFactory


class Process:
    """What a Vm asks of its process."""

    pid = 0

    def __init__(self) -> None:
        self.status: int | None = None

    def poll(self) -> int | None:
        return self.status


class Factory:
    """Both monitors are connected already; what else is asked, is asked here."""

    def connect(self, _vm: Vm, alive: Callable[[], None] | None = None) -> None:
        if alive:
            for _ in Deadline.after(0.5, "the old QEMU says something").poll(0.01):
                alive()


class Pair:
    """Two peers that know whether they run the guest and how a migration goes."""

    def __init__(self, sockets: Path, stack: ExitStack) -> None:
        self.running = {"old": True, "new": False}
        self.refuse: dict[str, str] = {}
        self.ends = "completed"
        self.old_status = ""
        #: What a QEMU says that does not run the guest; "paused" unless it is here.
        self.states: dict[str, str] = {}
        self.interfere: Any = None
        self.qemu: dict[str, FakeQemu] = {}
        self.vm: dict[str, Vm] = {}
        for side in ("old", "new"):
            path = sockets / side
            path.mkdir()
            self.qemu[side] = stack.enter_context(fake_qemu(path / "qmp", self.answerer(side)))
            machine = SimpleNamespace(
                sockets=path, qmp=path / "qmp", descriptors=(), argv=lambda: ["/new/qemu", "-S"]
            )
            self.vm[side] = Vm(
                side,
                cast("Any", machine),
                cast("Any", Process()),
                path / "log",
                cast("Any", None),
                cast("Any", None),
            )
            self.vm[side].connection = stack.enter_context(
                monitor(
                    side, path / "qmp", Deadline.after(5, "connect"), lambda: None, lambda _t: None
                )
            )
        self.factory = cast("VmFactory", Factory())

    def answerer(self, side: str) -> Any:
        def answer(command: str, _arguments: dict[str, Any]) -> dict[str, Any] | None:
            if command in self.refuse:
                return {"error": {"class": "GenericError", "desc": self.refuse[command]}}
            if command == "query-status":
                state = "running" if self.running[side] else self.states.get(side, "paused")
                return {"return": {"status": state}}
            if command == "query-migrate":
                if side == "old" and self.old_status:
                    return {"return": {"status": self.old_status}}
                failed = {"status": "failed", "error-desc": "Unknown savevm section"}
                return {"return": failed if self.ends == "failed" else {"status": self.ends}}
            if command in {"migrate", "localhost-migrate"}:
                self.migrate()
            if command == "cont":
                self.running[side] = True
            return {"return": {}}

        return answer

    def migrate(self) -> None:
        if self.ends == "completed":
            self.running.update(old=False, new=True)
        if self.interfere:
            self.running["old"] = False
            return
        for side in ("old", "new"):
            self.qemu[side].event("MIGRATION", status=self.ends)

    def move(self, mechanism: Any = None, interfere: Any = None) -> Move[Vm]:
        old, new = self.vm["old"], self.vm["new"]
        then = interfere or self.interfere
        return move(self.factory, old, new, mechanism or Precopy(), Asked(), then)

    def refused(self, old_state: str) -> None:
        """Let the new QEMU fail to load, and end, and the old one be in that state then."""

        def interfere(_old: Vm, new: Vm) -> None:
            self.states["old"] = old_state
            self.qemu["new"].event("MIGRATION", status="failed")
            new.log.write_text("load of migration failed: Invalid argument\n")
            for _ in Deadline.after(5, "the new QEMU's event").poll(0.01):
                if new.monitor.last("MIGRATION"):
                    break
            ended = threading.Timer(0.2, setattr, (new.process, "status", 1))
            ended.start()

        self.ends = "none"
        self.interfere = interfere


@pytest.fixture
def pair(sockets: Path) -> Iterator[Pair]:
    with ExitStack() as stack:
        yield Pair(sockets, stack)


def test_completed(pair: Pair) -> None:
    done = pair.move()
    assert (done.outcome, done.failure) == (Outcome.UPGRADED, "")
    assert done.window.end_ns > done.window.start_ns > 0
    sent = [name for name, _ in pair.qemu["new"].commands]
    assert sent.index("migrate-set-capabilities") < sent.index("migrate-incoming")


def test_the_processor_time_of_both_is_read(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """For the new QEMU from before the guest resumes there: this is what a long gap is told by."""
    monkeypatch.setattr(Process, "pid", os.getpid())
    done = pair.move(FlipLate())
    old, new = pair.vm["old"].cpu, pair.vm["new"].cpu
    assert [at <= done.window.start_ns for at, _ in old] == [True, False]
    assert len([at for at, _ in new if at < done.window.end_ns]) >= 2
    assert done.window.end_ns <= new[-1][0]
    before = len(new)
    for _ in range(100):
        pair.vm["new"].watch_cpu()
    assert len(new) - before < 50  # not each time


def test_stop_copy_stops_first_and_continues_on_the_new_side(pair: Pair) -> None:
    pair.running["old"] = False
    done = pair.move(StopCopy())
    old = [name for name, _ in pair.qemu["old"].commands]
    assert old.index("stop") < old.index("migrate")
    assert "cont" in [name for name, _ in pair.qemu["new"].commands]
    assert done.outcome is Outcome.UPGRADED


def test_flip_starts_the_new_qemu_through_the_old_one(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Factory, "connect", lambda _self, _vm, _alive=None: None)
    assert pair.move(Flip()).outcome is Outcome.UPGRADED
    asked = dict(pair.qemu["old"].commands)["localhost-migrate"]
    assert asked["exec"] == ["/new/qemu", "-S"]
    assert (asked["mechanism"], asked["early-start"]) == ("flip", True)
    assert "migrate-incoming" not in dict(pair.qemu["new"].commands)


def test_a_qemu_that_has_become_the_new_one_is_not_asked_any_more(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lab.mechanisms.move._COMPLETE_S", 1.0)
    monkeypatch.setattr("lab.mechanisms.move._SETTLE_S", 1.0)
    monkeypatch.setattr(Factory, "connect", lambda _self, _vm, _alive=None: None)
    monkeypatch.setattr(pair.qemu["old"], "event", lambda _name, **_data: None)
    pair.old_status = "active"  # what it said last, before it went
    done = pair.move(CprExec())
    assert (done.outcome, done.failure) == (Outcome.UPGRADED, "")
    asked = dict(pair.qemu["old"].commands)
    assert asked["migrate-set-parameters"]["cpr-exec-command"] == ["/new/qemu", "-S"]
    assert asked["migrate"]["uri"].startswith("file:/")


def test_a_new_qemu_that_never_came_is_not_waited_for(pair: Pair) -> None:
    pair.ends = "failed"
    done = pair.move(FlipLate())
    assert done.outcome is Outcome.ROLLED_BACK
    assert "the old QEMU says that the migration failed" in done.failure


def test_the_old_qemu_is_asked_why_the_new_one_ended(pair: Pair) -> None:
    def cancel(_old: Vm, new: Vm) -> None:
        pair.old_status = "cancelled"
        cast("Any", new.process).status = 1

    pair.ends = "active"
    done = pair.move(interfere=cancel)
    assert done.outcome is Outcome.ROLLED_BACK
    assert done.failure.endswith("the old QEMU says: it was cancelled")


def test_how_the_old_qemu_ended_is_said_although_the_new_one_was_gone_first(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kill(old: Vm, new: Vm) -> None:
        cast("Any", new.process).status = 1
        pair.qemu["old"].close()
        killed = iter([None, None])  # not gone yet when it is first looked at
        monkeypatch.setattr(old.process, "poll", lambda: next(killed, -9))

    monkeypatch.setattr("lab.mechanisms.move._SETTLE_S", 1.0)
    pair.ends = "active"
    done = pair.move(interfere=kill)
    assert done.outcome is Outcome.LOST
    assert "the new QEMU ended by itself" in done.failure
    assert "the old QEMU ended by itself: killed by signal 9" in done.failure


def test_a_refused_command_leaves_the_guest_where_it_is(pair: Pair) -> None:
    pair.refuse["migrate"] = "State blocked by a device"
    done = pair.move()
    assert done.outcome is Outcome.ROLLED_BACK
    assert "State blocked by a device" in done.failure


def test_a_guest_that_cannot_be_held_moves_without_a_hold() -> None:
    """What is refused for another reason stays refused."""

    class Refuses(Flip):
        def __init__(self, why: str) -> None:
            self.why, self.asked = why, list[bool]()

        def go(self, _old: Any, _new: Any, asked: Asked) -> None:
            self.asked.append(asked.hold)
            if asked.hold:
                raise QmpError(self.why)

    one = Refuses("stands still, so there is nothing to hold")
    nobody = cast("Any", None)
    tried = list[int]()

    def try_out() -> None:
        tried.append(len(one.asked))

    found = _go(one, nobody, nobody, Asked(hold=True), try_out)
    assert found == (None, Asked(hold=False))
    assert (one.asked, tried) == ([True, False], [1])
    with pytest.raises(QmpError):
        _go(Refuses("no"), nobody, nobody, Asked(hold=True), try_out)
    assert tried == [1]


@pytest.mark.parametrize(("mechanism", "tried"), [(FlipLate(), 1), (Precopy(), 0)])
def test_what_cannot_be_looked_into_is_tried_out(pair: Pair, mechanism: Any, tried: int) -> None:
    """Before anything has begun."""
    commands = list[int]()

    def try_out() -> None:
        commands.append(len(pair.qemu["old"].commands))
        raise CannotTellError("it is another one")

    old, new = pair.vm["old"], pair.vm["new"]
    before = len(pair.qemu["old"].commands)
    done = move(pair.factory, old, new, mechanism, Asked(), try_out=try_out)
    assert commands == [before] * tried
    if tried:
        assert (done.outcome, done.failure) == (Outcome.ROLLED_BACK, "it is another one")


def test_a_failed_migration_tells_qemus_reason(pair: Pair) -> None:
    pair.ends = "failed"
    done = pair.move()
    assert done.outcome is Outcome.ROLLED_BACK
    assert "Unknown savevm section" in done.failure


def test_the_new_qemu_dies(pair: Pair) -> None:
    pair.ends = "none"

    def kill(_old: Vm, new: Vm) -> None:
        cast("Any", new.process).status = -9

    done = pair.move(interfere=kill)
    assert done.outcome is Outcome.ROLLED_BACK
    assert "the new QEMU ended by itself: killed by signal 9" in done.failure


@pytest.mark.parametrize("old_state", ["paused", "postmigrate"])
def test_a_guest_that_the_new_qemu_refused_goes_on_under_the_old_one(
    pair: Pair, old_state: str
) -> None:
    """Where the old QEMU has given it up, and still has everything."""
    pair.refused(old_state)
    done = pair.move(StopCopy())
    assert done.outcome is Outcome.ROLLED_BACK
    assert "load of migration failed" in done.failure
    assert "told to run the guest again (cont)" in done.failure


def test_what_the_new_qemu_said_last_is_told(pair: Pair) -> None:
    """Also where the old one is the first to say that it failed."""

    def interfere(_old: Vm, new: Vm) -> None:
        pair.qemu["old"].event("MIGRATION", status="failed")
        pair.running["old"] = True
        new.log.write_text("VQ 0 vring.num 1024 exceeds allocated max 128\n")
        threading.Timer(0.2, setattr, (new.process, "status", 1)).start()

    pair.refused("running")
    done = pair.move(Precopy(), interfere)
    assert done.outcome is Outcome.ROLLED_BACK
    assert "the new QEMU said: VQ 0 vring.num 1024 exceeds" in done.failure
    assert "cont" not in [name for name, _ in pair.qemu["old"].commands]


def test_a_guest_whose_memory_is_gone_is_not_set_going(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(StopCopy, "rolls_back", False)
    pair.refused("postmigrate")
    assert pair.move(StopCopy()).outcome is Outcome.LOST
    assert "cont" not in [name for name, _ in pair.qemu["old"].commands]


def test_a_guest_that_the_new_qemu_has_run_is_not_set_going_under_the_old_one(pair: Pair) -> None:
    """Its devices have gone on without the old one: it would run twice."""
    pair.refused("postmigrate")
    refused = pair.interfere

    def interfere(old: Vm, new: Vm) -> None:
        pair.qemu["new"].event("RESUME")
        refused(old, new)

    assert pair.move(StopCopy(), interfere).outcome is Outcome.LOST
    assert "cont" not in [name for name, _ in pair.qemu["old"].commands]


@pytest.mark.parametrize("status", ["completed", "cancelled"])
def test_a_new_qemu_that_refused_nothing_leaves_the_old_one_as_it_is(
    pair: Pair, status: str
) -> None:
    pair.refused("postmigrate")

    def interfere(_old: Vm, new: Vm) -> None:
        pair.states["old"] = "postmigrate"
        pair.qemu["new"].event("MIGRATION", status=status)
        for _ in Deadline.after(5, "the new QEMU's event").poll(0.01):
            if new.monitor.last("MIGRATION"):
                break
        cast("Process", new.process).status = -9

    assert pair.move(StopCopy(), interfere).outcome is Outcome.LOST
    assert "cont" not in [name for name, _ in pair.qemu["old"].commands]


def test_a_paused_guest_stays_paused(pair: Pair) -> None:
    pair.refused("postmigrate")
    old, new = pair.vm["old"], pair.vm["new"]
    move(pair.factory, old, new, Precopy(), Asked(), pair.interfere, state="paused")
    assert "cont" not in [name for name, _ in pair.qemu["old"].commands]


@pytest.mark.parametrize("mechanism", [Precopy(), Multifd(), StopCopy(), IgnoreShared()])
def test_the_old_qemu_waits_for_the_new_one_to_have_loaded(pair: Pair, mechanism: Any) -> None:
    pair.move(mechanism)
    for side in ("old", "new"):
        said = dict(pair.qemu[side].commands)["migrate-set-capabilities"]["capabilities"]
        assert {"capability": "return-path", "state": True} in said


@pytest.mark.parametrize(
    ("old", "new", "outcome"), [(True, True, Outcome.DOUBLED), (False, False, Outcome.LOST)]
)
def test_the_two_worst_ends_are_called_by_their_names(
    pair: Pair, old: bool, new: bool, outcome: Outcome, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lab.mechanisms.move._SETTLE_S", 0.2)
    pair.ends = "failed"
    pair.running.update(old=old, new=new)
    begun = time.monotonic()
    assert pair.move().outcome is outcome
    assert time.monotonic() - begun < 20


def guest(monkeypatch: pytest.MonkeyPatch, workloads: Callable[[], Any]) -> pipeline.Checked:
    """Check a guest that was moved, whose memory is whole and whose workloads do as told."""
    survivor = cast("Vm", SimpleNamespace(heart=SimpleNamespace(beats=[]), control=None))
    stage = SimpleNamespace(
        options=SimpleNamespace(touched_bytes=4096),
        work=SimpleNamespace(check=lambda _survivor, _window: workloads()),
    )
    monkeypatch.setattr(pipeline, "listen", lambda _heart, _vm: None)
    monkeypatch.setattr(pipeline.integrity, "check", lambda _control, _bytes: "whole")
    monkeypatch.setattr(pipeline.integrity, "integrity", lambda found, _old, _new: found)
    moved = Move(survivor, Window(1, 2), Outcome.UPGRADED)
    return pipeline.check_guest(cast("Any", stage), survivor, moved)


@pytest.mark.parametrize("error", [AgentError("silent"), DeadlineError("late"), VmDiedError("x")])
def test_a_guest_that_answers_no_workload_is_lost(
    error: CannotTellError, monkeypatch: pytest.MonkeyPatch
) -> None:
    def silent() -> Any:
        raise error

    checked = guest(monkeypatch, silent)
    assert checked.moved.outcome is Outcome.LOST
    assert checked.moved.failure == error.message
    assert checked.integrity == cast("Any", "whole")  # its pages had been checked before
    assert checked.workloads == ()


def test_a_guest_that_answers_is_where_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    checked = guest(monkeypatch, lambda: ["found"])
    assert (checked.moved.outcome, checked.workloads) == (Outcome.UPGRADED, ["found"])


def test_what_the_lab_lacks_is_no_lost_guest(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> Any:
        raise CannotTellError("no qemu-img")

    with pytest.raises(CannotTellError, match="no qemu-img"):
        guest(monkeypatch, missing)


def test_a_loss_is_a_new_value_and_keeps_the_reason_of_before() -> None:
    moved = Move(cast("Vm", object()), Window(1, 2), Outcome.ROLLED_BACK, "refused")
    lost = moved.lost("silent")
    assert (lost.outcome, lost.failure) == (Outcome.LOST, "refused; silent")
    assert (moved.outcome, moved.failure) == (Outcome.ROLLED_BACK, "refused")


def test_a_fallback_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    told = list[str]()

    def judge(_limits: object, seen: SimpleNamespace) -> Any:
        told.append(seen.failure)
        raise KeyboardInterrupt  # the rest of the result is not looked at

    monkeypatch.setattr(pipeline, "judge", judge)
    monkeypatch.setattr(pipeline, "Observation", SimpleNamespace)
    stage = SimpleNamespace(
        options=SimpleNamespace(limits=None, memory_samples=True), mechanism=Remap()
    )
    for info in ({}, {"localhost": {"mechanism": "flip", "fallback": "KSM"}}):
        moved = Move(cast("Vm", object()), Window(1, 2), Outcome.UPGRADED, old_info=info)
        seen = SimpleNamespace(
            checked=SimpleNamespace(moved=moved, integrity=None, workloads=[]),
            pause=None,
            used=SimpleNamespace(memory=None),
        )
        with pytest.raises(KeyboardInterrupt):
            pipeline.verdict(cast("Any", stage), cast("Any", seen))
    assert told == ["", "the old QEMU took flip instead of what it was asked for: KSM"]


def test_a_qemu_without_a_monitor_is_not_an_error_of_the_labs(tmp_path: Path) -> None:
    vm = Vm("new", *[cast("Any", None)] * 2, tmp_path / "log", *[cast("Any", None)] * 2)
    with pytest.raises(MonitorError, match="the new QEMU has no monitor to ask yet"):
        _ = vm.monitor
    assert vm.events == []


class OneThatDrives(Driven):
    """A move that the lab makes: the guest is in the new QEMU at its end."""

    def __init__(self, pair: Pair) -> None:
        self.pair = pair

    def finish(self, look: Look, resuming: Look) -> None:
        self.pair.running.update(old=False, new=True)

    def undo(self) -> None:
        """Nothing was done."""

    def close(self) -> None:
        """Nothing is held."""

    def info(self) -> dict[str, Any]:
        return {}


def test_a_migration_that_failed_before_is_not_this_move(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A move that the lab makes asks the old QEMU for a migration that has to fail (blockers)."""
    way = Transplant()
    monkeypatch.setattr(way, "prepare", lambda _old, _new: None)
    monkeypatch.setattr(way, "go", lambda _old, _new, _asked: OneThatDrives(pair))
    monkeypatch.setattr(pair.factory, "connect", lambda _vm, alive=lambda: None: alive())
    pair.qemu["old"].event("MIGRATION", status="failed")
    pair.vm["old"].monitor.wait_for(lambda _event: True, Deadline.after(5, "it is told"))
    assert pair.move(way).outcome is Outcome.UPGRADED
