# SPDX-License-Identifier: GPL-2.0-or-later
"""The move itself: wait for the new QEMU, start the move, see where the guest ended up."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from lab.base.deadline import Deadline, DeadlineError
from lab.base.errors import CannotTellError
from lab.measure.downtime import Window
from lab.mechanisms import Asked, Mechanism
from lab.mechanisms.base import Driven, Look
from lab.model import Outcome
from lab.vm.monitor import MonitorError, QmpError
from lab.vm.qemu import Qemu, VmDiedError, VmFactory

_COMPLETE_S = 300.0
#: Postcopy does not fail, it waits for somebody who mends the connection; nobody does here.
_FINAL = {"completed", "failed", "cancelled", "postcopy-paused"}
_RUNNING = "running"
#: In what an old QEMU says that can start the new one only when the guest stands still.
_NOT_HELD = "nothing to hold"
#: Its status while it is held: the new QEMU is there, and the guest runs (MigrationStatus).
_HELD = "pre-switchover"
#: Its state when the guest stands still and all of it is there (RunState).
_STANDING = {"paused", "postmigrate"}
#: How long a side may take to notice that the other one is gone (s).
_SETTLE_S = 60.0
#: And how long it takes to be gone when its monitor is (s).
_GONE_S = 2.0


Q = TypeVar("Q", bound=Qemu)


@dataclass(frozen=True)
class Move(Generic[Q]):
    """What became of a move."""

    new: Q
    window: Window
    outcome: Outcome
    #: Why it did not succeed; empty when it did.
    failure: str = ""
    #: How long the new QEMU took to answer, where it is started first (ms).
    new_start_ms: float | None = None
    #: The old QEMU's answer to query-migrate (`Mechanism.told`).
    old_info: Mapping[str, Any] = field(default_factory=dict)

    @property
    def fallback(self) -> str:
        """Why the old QEMU took flip instead of what it was asked for; empty if it did not."""
        why = self.old_info.get("localhost", {}).get("fallback")
        return f"the old QEMU took flip instead of what it was asked for: {why}" if why else ""

    @property
    def survivor_is_new(self) -> bool:
        """Whether the guest now runs under the new QEMU."""
        return self.outcome is Outcome.UPGRADED

    def survivor(self, old: Q) -> Q | None:
        """Return the one QEMU that the guest can be asked in; None when there is not just one."""
        if self.outcome in {Outcome.LOST, Outcome.DOUBLED}:
            return None
        return self.new if self.survivor_is_new else old

    def resumed(self, old: Q) -> Q:
        """Return the QEMU whose RESUME ends the pause: after a rehearsal, the old one."""
        return old if self.outcome is Outcome.REHEARSED else self.new

    def lost(self, why: str) -> Move[Q]:
        """Return the same of a guest that no longer answers, although its QEMU runs it."""
        failure = "; ".join(filter(None, (self.failure, why)))
        return dataclasses.replace(self, outcome=Outcome.LOST, failure=failure)

    def record(self) -> dict[str, Any]:
        """Return it for the run directory: what the QEMUs say, before the guest is asked."""
        return {
            "failure": self.failure,
            "outcome_by_qemu": self.outcome,
            "query_migrate": self.old_info,
        }


#: What a test does to the two QEMUs (old, new) as soon as the move has begun.
Interfere = Callable[[Q, Q], None]


def move(
    factory: VmFactory,
    old: Q,
    new: Q,
    mechanism: Mechanism,
    asked: Asked,
    interfere: Interfere[Q] | None = None,
    look: Look = lambda _new: None,
    resuming: Look = lambda _new: None,
    try_out: Callable[[], None] = lambda: None,
    state: str = _RUNNING,
) -> Move[Q]:
    """Move the guest of `old` to `new`, which has just been started.

    `look` sees the new QEMU before anything has begun, or with ``asked.hold`` when the old one has
    started it, and the guest stays where it is when that raises; `resuming` sees it before it is
    told to run the guest, where it has to be.  `try_out` is called before a move that nobody can
    look into, and nothing is begun when it raises.  `state` is the guest's RunState (QAPI): a
    paused one arrives paused.  A failed move is no exception, but is told.
    """
    start_ns = time.monotonic_ns()
    new_start_ms, failure, begun = None, "", False
    driven: Driven | None = None
    try:
        new_start_ms = _looked_at(factory, new, mechanism, asked, look, try_out)
        begun = True
        mechanism.prepare(old, new)
        old.read_cpu()
        start_ns = time.monotonic_ns()
        driven, asked = _go(mechanism, old, new, asked, try_out)
        if interfere:
            interfere(old, new)
        if driven:
            _drive(factory, driven, old, new, look, resuming)
        else:
            _wait(factory, old, new, mechanism, look if asked.hold else None)
            _resume(new, mechanism, state, resuming)
    except CannotTellError as error:
        failure = _given_up(factory, old, new, driven, error) if begun else error.message
        failure += _besides(old, new, mechanism, state, failure)
    finally:
        if driven:
            driven.close()
    window = Window(start_ns, time.monotonic_ns())
    for qemu in (old, new):
        qemu.read_cpu()
    where = _settle(old, new, state, bool(failure))
    info = driven.info() if driven else mechanism.told(*map(_migrate_info, (old, new)))
    return Move(new, window, *_told(old, new, where, failure, info), new_start_ms, info)


def _looked_at(
    factory: VmFactory,
    new: Qemu,
    mechanism: Mechanism,
    asked: Asked,
    look: Look,
    try_out: Callable[[], None],
) -> float | None:
    """Look at the new QEMU if it is there already; return how long it took to answer (ms) then."""
    if not mechanism.monitor_first:
        if not (asked.hold or mechanism.from_outside):
            try_out()
        return None
    start_ns = time.monotonic_ns()
    factory.connect(new)
    took_ms = (time.monotonic_ns() - start_ns) / 1e6
    look(new)
    return took_ms


def _told(
    old: Qemu, new: Qemu, outcome: Outcome, failure: str, info: Mapping[str, Any]
) -> tuple[Outcome, str]:
    """Return where the guest is, and what went wrong."""
    if outcome is Outcome.LOST and not failure and not new.dead:
        return outcome, _stuck(old, new)
    if outcome is Outcome.ROLLED_BACK and info.get("localhost", {}).get("rehearsed"):
        return Outcome.REHEARSED, ""
    return outcome, failure


def _go(
    mechanism: Mechanism, old: Qemu, new: Qemu, asked: Asked, try_out: Callable[[], None]
) -> tuple[Driven | None, Asked]:
    """Start the move, without a hold where that cannot be; return what was asked for then, too.

    Which guests can be held only the old QEMU knows: their host's kernel and processor decide.
    """
    try:
        return mechanism.go(old, new, asked), asked
    except QmpError as error:
        if not asked.hold or _NOT_HELD not in error.message:
            raise
        asked = dataclasses.replace(asked, hold=False)
        try_out()
        return mechanism.go(old, new, asked), asked


def _wait(
    factory: VmFactory, old: Qemu, new: Qemu, mechanism: Mechanism, look: Look | None
) -> None:
    """Wait until the move is complete; it is held until then for `look`, if there is one."""
    if not mechanism.monitor_first:
        factory.connect(new, lambda: _alive(old, new))
        if look:
            _look_while_held(old, new, look)
    # A QEMU that has become another one says nothing any more.
    _wait_completed(*([new] if mechanism.in_place else [old, new]))


def _resume(new: Qemu, mechanism: Mechanism, state: str, resuming: Look) -> None:
    """Tell the new QEMU to run the guest, if it does not by itself or was held back (`calloff`)."""
    if state == _RUNNING and (not mechanism.resumes or new.state() in _STANDING):
        resuming(new)
        new.monitor.execute("cont")


def _drive(
    factory: VmFactory, driven: Driven, old: Qemu, new: Qemu, look: Look, resuming: Look
) -> None:
    """Bring a move that the lab makes to its end; what QEMU says of migrations is none of it."""

    def alive() -> None:
        old.alive()
        new.alive()
        new.watch_cpu()

    factory.connect(new, alive)
    driven.finish(look, resuming)


def _look_while_held(old: Qemu, new: Qemu, look: Look) -> None:
    """Let `look` see the new QEMU and go on; cancel the move when it raises."""
    deadline = Deadline.after(_COMPLETE_S, "the new QEMU is ready")
    for _ in deadline.poll(0.002):
        _alive(old, new)
        event = old.monitor.last("MIGRATION")
        if event and event.data["status"] == _HELD:
            break
    try:
        look(new)
    except CannotTellError:
        old.monitor.execute("migrate_cancel")
        raise
    old.monitor.execute("migrate-continue", {"state": _HELD})


def _stuck(old: Qemu, new: Qemu) -> str:
    """Return what is known of a guest that has arrived, and is not run."""
    said = "; ".join(filter(None, (new.said(), old.said())))
    return f"the new QEMU has the guest, which is {new.state()} there; its output: {said}"


def _reach(factory: VmFactory, new: Qemu) -> None:
    """Connect to the new QEMU: it may have the guest although nobody can tell any more."""
    if new.pid and not new.connection:
        with suppress(MonitorError, VmDiedError, DeadlineError):
            factory.connect(new)


def _alive(old: Qemu, new: Qemu) -> None:
    """Raise when there is no new QEMU any more, or when the old one has given it up."""
    event = old.monitor.last("MIGRATION")
    if event and event.data["status"] in {"failed", "cancelled"}:
        raise QmpError(f"the old QEMU says that the migration {event.data['status']}")
    old.alive()
    new.alive()
    new.watch_cpu()


def _wait_completed(*vms: Qemu) -> None:
    """Wait until all sides say so; raise QmpError with QEMU's reason when one has failed."""
    deadline = Deadline.after(_COMPLETE_S, "the upgrade is complete on both sides")
    for vm in vms:
        status = ""
        for _ in deadline.poll(0.002):
            event = vm.monitor.last("MIGRATION")
            status = event.data["status"] if event else _migrate_info(vm).get("status", "")
            if status in _FINAL:
                break
            for one in vms:
                one.alive()
            vms[-1].watch_cpu()  # the new one
        if status != "completed":
            raise QmpError(f"the {vm.name} QEMU says that the migration {status}")


def _given_up(
    factory: VmFactory, old: Qemu, new: Qemu, driven: Driven | None, error: CannotTellError
) -> str:
    """Let a move that has begun go back, as far as it can, and return why."""
    failure = _undone(old, driven, error)
    _reach(factory, new)
    return failure


def _undone(old: Qemu, driven: Driven | None, error: CannotTellError) -> str:
    """Let a move that the lab makes go back, and return the reason with what is known besides."""
    if not driven:
        return _why(old, error)
    try:
        besides = driven.undo()
    except CannotTellError as another:
        besides = another.message
    return "; ".join(dict.fromkeys(filter(None, (error.message, besides))))


def _besides(old: Qemu, new: Qemu, mechanism: Mechanism, state: str, failure: str) -> str:
    """Return what is worth knowing besides a failure, once all was done for the guest.

    A move that the lab makes itself has seen to that.
    """
    if mechanism.from_outside:
        return ""
    words = _last_words(old, new, failure), _set_going(old, new, mechanism, state)
    return "".join(f"; {text}" for text in words if text)


def _last_words(old: Qemu, new: Qemu, failure: str) -> str:
    """Return what a new QEMU that has ended said of it, where `failure` does not have that yet."""
    if _says_failed(new) or _says_failed(old):
        list(_end_of(new))  # it says why first, and ends then
    said = new.said() if new.dead else ""
    return f"the new QEMU said: {said}" if said and said not in failure else ""


def _says_failed(qemu: Qemu) -> bool:
    """Whether a QEMU has said that its migration has failed: a new one, that it did not load it."""
    event = qemu.connection.last("MIGRATION") if qemu.connection else None
    return event is not None and event.data["status"] == "failed"


def _set_going(old: Qemu, new: Qemu, mechanism: Mechanism, state: str) -> str:
    """Let the old QEMU run a guest again that nobody runs, and tell; "" where that may not be.

    It still has everything, if the new one has refused the state: a new QEMU that says that its
    migration has failed never ran the guest, and when it is gone it never will.
    """
    if (
        state != _RUNNING
        or not mechanism.rolls_back
        or not (new.dead and _says_failed(new))
        or any(one.name == "RESUME" for one in new.events)
        or old.state() not in _STANDING
    ):
        return ""
    try:
        old.monitor.execute("cont")
    except (MonitorError, QmpError, DeadlineError) as error:
        return f"the old QEMU did not set the guest going again: {error.message}"
    return "the old QEMU, which still had everything, was told to run the guest again (cont)"


def _why(old: Qemu, error: CannotTellError) -> str:
    """Return the reason together with the old QEMU's, once that has noticed the failure."""
    deadline = Deadline.after(_SETTLE_S, "the old QEMU notices that the upgrade failed")
    text = ""
    try:
        for _ in deadline.poll(0.05):
            info = old.monitor.execute("query-migrate")
            cancelled = info.get("status") == "cancelled"
            text = info.get("error-desc", "it was cancelled" if cancelled else "")
            if info.get("status", "none") in {*_FINAL, "none"}:
                break
    except (MonitorError, QmpError, DeadlineError):
        return "; ".join(dict.fromkeys((error.message, *_end_of(old))))
    return f"{error.message}; the old QEMU says: {text}" if text else error.message


def _end_of(qemu: Qemu) -> Iterator[str]:
    """Yield how a QEMU ended; one that is killed lets go of its sockets before it is gone."""
    deadline = Deadline.after(_GONE_S, "QEMU is gone")
    while not deadline.expired:
        try:
            qemu.alive()
        except VmDiedError as error:
            yield error.message
            return
        time.sleep(0.01)


def _migrate_info(vm: Qemu) -> Mapping[str, Any]:
    try:
        info: Mapping[str, Any] = vm.monitor.execute("query-migrate")
    except (MonitorError, QmpError, DeadlineError):
        return {}
    return info


def _settle(old: Qemu, new: Qemu, state: str, failed: bool) -> Outcome:
    """Find out which QEMU has the guest in its state, giving a rollback a moment to finish."""
    deadline = Deadline.after(_SETTLE_S if failed else 5.0, "exactly one QEMU runs the guest")
    while True:
        states = old.state(), new.state()
        where = {
            (True, False): Outcome.ROLLED_BACK,
            (False, True): Outcome.UPGRADED,
            (True, True): Outcome.DOUBLED,
            (False, False): Outcome.LOST,
        }[states[0] == state, states[1] == state]
        gone = (old.dead or states[0] == "postmigrate") and new.dead
        if where is not Outcome.LOST or deadline.expired or gone:
            return where
        time.sleep(0.01)
