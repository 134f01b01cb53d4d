# SPDX-License-Identifier: GPL-2.0-or-later
"""``pageflip recover``: bring to its end what a lab that was killed has left half done.

Both QEMUs are asked who runs the guest; the journal says which they are, what was put aside for
them and how.  Everything here may be killed as well, and done again.
"""

from __future__ import annotations

import shutil
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from pydantic import Field

from lab.base.deadline import Deadline, DeadlineError
from lab.base.errors import CannotTellError, UsageError
from lab.base.identity import Who, marked
from lab.live import aside, journal
from lab.live.check import Settings
from lab.live.decision import Action, Has, decide, new_has, old_has
from lab.live.journal import Entry, Journal, LiveStep, Owner, Resource
from lab.live.vnc import Screen
from lab.mechanisms import DeviceLoad, calloff
from lab.model import Model
from lab.vm.monitor import Monitor, MonitorError, QmpError, monitor

#: How long a migration that cannot be cancelled may take (s).
_PATIENCE_S = 120.0
#: And how long a QEMU may be silent: it starts, ends, or has another client (s).
_SILENCE_S = 20.0
_ANSWER_S = 5.0
_LOOK_S = 0.05
_END_S = 30.0


class Restored(Protocol):
    """A resource of a journal, in the hands of who knows how to bring it back."""

    def pass_on(self) -> None:
        """Let the new QEMU have it; the old one is about to end."""

    def settle(self, owner: Owner) -> None:
        """Put it in its place: only that QEMU is left."""

    def restore(self, monitor: Monitor, /) -> list[str]:
        """Do what takes the monitor of who has the guest; return what could not be done."""


#: Makes that of a journal's resource.
Kind = Callable[[Resource], Restored]
#: Who knows about the resources of each kind.
KINDS: Mapping[str, Kind] = {
    one.kind: one.read for one in (aside.Shared, aside.Common, Settings, Screen)
}


class Recovered(Model):
    """What became of one upgrade."""

    pid: int = Field(description="the old QEMU")
    new_pid: int = Field(description="0 where there is none")
    runs: str = Field(description="old, new, nobody, both, or unknown")
    found: str = Field(description="what both QEMUs said")
    did: list[str]
    monitor: str
    answers: bool = Field(description="whether who has the guest is reached there")

    @property
    def survivor(self) -> int:
        """The process that has the guest; 0 when there is not exactly one."""
        return {"old": self.pid, "new": self.new_pid}.get(self.runs, 0)


@dataclass
class _Half:
    """One of the two QEMUs, or nobody."""

    owner: Owner
    who: list[Who]
    #: The names by which it is reached now.
    names: Callable[[], list[Path]]
    has: Has = Has.GONE
    said: str = ""

    @property
    def pid(self) -> int:
        return self.who[0].pid if self.who else 0

    @contextmanager
    def connected(self) -> Iterator[Monitor]:
        """Talk to its monitor; raise CannotTellError when that cannot be done."""

        def alive() -> None:
            if not any(one.there for one in self.who):
                raise MonitorError("it has ended")

        with ExitStack() as stack:
            # Where both listen on one socket, the second connection is the other one's.
            for name in (name for name in self.names() for _ in range(2)):
                deadline = Deadline.after(_ANSWER_S, f"the monitor at {name}")
                qmp = stack.enter_context(
                    monitor(self.owner, name, deadline, alive, lambda _text: None)
                )
                if _is(qmp, self.who):
                    yield qmp
                    return
        raise MonitorError(f"the {self.owner} QEMU has no monitor that can be connected to")

    def look(self) -> None:
        """Ask it what it has."""
        if not self.who:
            return
        try:
            with self.connected() as qmp:
                wait = Deadline.after(_ANSWER_S, "an answer")
                status = str(qmp.execute("query-status", deadline=wait)["status"])
                migration = str(qmp.execute("query-migrate", deadline=wait).get("status", "none"))
        except (MonitorError, QmpError, DeadlineError):
            self.has = Has.SILENT if any(one.there for one in self.who) else Has.GONE
            return
        self.said = f"{status}, migration {migration}"
        self.has = (old_has if self.owner is Owner.OLD else new_has)(status, migration)

    def end(self) -> None:
        """Kill it, and wait until it is gone; raise DeadlineError."""
        for one in self.who:
            one.send(signal.SIGKILL)
        _gone(self.who)

    def quit(self) -> None:
        """Let it end by itself, or else kill it; raise DeadlineError.

        By a signal: it reaches the process that is meant, whoever has the name of its monitor now.
        """
        for one in self.who:
            one.send(signal.SIGTERM)
        try:
            _gone(self.who)
        except DeadlineError:
            self.end()

    def __str__(self) -> str:
        which = f"process {self.pid} " if self.pid else ""
        return f"the {self.owner} QEMU {which}{self.has}" + f" ({self.said})" * bool(self.said)


def _gone(whos: list[Who]) -> None:
    for _ in Deadline.after(_END_S, "QEMU ends").poll(0.01):
        if not any(one.there for one in whos):
            return


def _is(qmp: Monitor, whos: Sequence[Who]) -> bool:
    """Return whether one of the processes answers: the threads of its processors are its own.

    The name of a socket, and who listened there first (SO_PEERCRED), say nothing about that when
    management has passed the socket to both.
    """
    processors = qmp.execute("query-cpus-fast", deadline=Deadline.after(_ANSWER_S, "an answer"))
    threads = [processor["thread-id"] for processor in processors]
    return any(
        Path(f"/proc/{one.pid}/task/{thread}").exists() for one in whos for thread in threads
    )


@dataclass
class _Recovery:
    """One journal, on its way to the end."""

    book: Journal
    kinds: Mapping[str, Kind]
    did: list[str] = field(default_factory=list)

    @property
    def entry(self) -> Entry:
        return self.book.entry

    def resources(self) -> list[Restored]:
        unknown = {one.kind for one in self.entry.resources} - self.kinds.keys()
        if unknown:
            raise CannotTellError(
                f"the journal of process {self.entry.old.pid} has resources that this version does "
                f"not know: {', '.join(sorted(unknown))}",
                hint="use the version of pageflip that began the upgrade",
            )
        return [self.kinds[one.kind](one) for one in self.entry.resources]

    def halves(self) -> tuple[_Half, _Half]:
        """Find both QEMUs, and ask them; the old one twice, so that nothing happens in between."""
        path = Path(self.entry.monitor)
        files = [one for one in self.resources() if isinstance(one, aside.Shared | aside.Common)]
        ours = next((one for one in files if one.path == path), None)
        mark = self.entry.mark
        known = [one for one in (self.entry.new,) if one and one.there]
        found = [one for one in marked(mark, f"{journal.MARK}={mark}") if one != self.entry.old]

        def names(owner: Owner) -> Callable[[], list[Path]]:
            return lambda: ours.names(owner) if ours else [path]

        old = _Half(Owner.OLD, [one for one in (self.entry.old,) if one.there], names(Owner.OLD))
        new = _Half(Owner.NEW, list(dict.fromkeys([*known, *found])), names(Owner.NEW))
        if self.entry.mechanism == DeviceLoad.name:  # it has devices, and no guest
            new.end()
            new.who = []
        old.look()
        new.look()
        before = old.has
        old.look()
        if old.has is not before and old.has is not Has.GONE:
            return self.halves()
        return old, new

    def finish(self) -> Recovered:
        """Do what is to be done."""
        begun = time.monotonic()
        while True:
            old, new = self.halves()
            patience = _SILENCE_S if Has.SILENT in {old.has, new.has} else _PATIENCE_S
            action = decide(
                old.has,
                new.has,
                ran=self.entry.ran,
                back=self.entry.back,
                late=time.monotonic() - begun > patience,
            )
            if action is Action.WAIT:
                time.sleep(_LOOK_S)
            elif action in {Action.CANCEL, Action.RUN_OLD, Action.RUN_NEW}:
                self._step(action, old, new)
            else:
                return self._end(action, old, new)

    def _did(self, what: str) -> None:
        if what not in self.did:
            self.did.append(what)

    def _step(self, action: Action, old: _Half, new: _Half) -> None:
        """Do what brings the end nearer; what does not succeed is seen at the next look."""
        if action is Action.RUN_OLD:
            new.end()
        half = new if action is Action.RUN_NEW else old
        if action is Action.CANCEL and self.entry.ran and new.has is Has.WAITS:
            with suppress(MonitorError, QmpError, DeadlineError), new.connected() as qmp:
                if not calloff.held_back(qmp):
                    return
        if action is Action.RUN_NEW:
            self.book.write(LiveStep.RESUMING)
        with suppress(MonitorError, QmpError, DeadlineError), half.connected() as qmp:
            qmp.execute("migrate_cancel" if action is Action.CANCEL else "cont")
            self._did(action)
        time.sleep(_LOOK_S)

    def _end(self, action: Action, old: _Half, new: _Half) -> Recovered:
        found, pid = f"{old}; {new}", new.pid
        if action in {Action.BOTH, Action.UNKNOWN}:
            runs = "both" if action is Action.BOTH else "unknown"
            return self._result(runs, found, pid)
        if action is Action.MOVED:
            self.book.write(LiveStep.SETTLING, runs=Owner.NEW, new=new.who[0])
            for one in self.resources():
                one.pass_on()
            if old.who:
                old.quit()
                self._did(action)
        else:
            self.book.write(LiveStep.SETTLING, runs=Owner.OLD)
            if new.who:
                new.end()
                self._did(Action.STAY)
        left = Owner.OLD if old.who and action is not Action.MOVED else Owner.NEW
        for one in self.resources():
            one.settle(left)
        if action is not Action.NOBODY:
            self._restore(new if left is Owner.NEW else old)
        with suppress(OSError):
            shutil.rmtree(self.entry.mark)
        self.book.finish()
        if action is Action.NOBODY:
            return self._result("nobody", found, 0)
        return self._result(str(left), found, pid if left is Owner.NEW else 0)

    def _restore(self, half: _Half) -> None:
        """Set in who has the guest what the upgrade had set otherwise."""
        try:
            with half.connected() as qmp:
                failed = [text for one in self.resources() for text in one.restore(qmp)]
        except (MonitorError, QmpError, DeadlineError) as error:
            failed = [error.message]
        for text in failed:
            self._did(f"not set again: {text}")

    def _result(self, runs: str, found: str, new_pid: int) -> Recovered:
        result = Recovered(
            pid=self.entry.old.pid,
            new_pid=new_pid,
            runs=runs,
            found=found,
            did=self.did,
            monitor=self.entry.monitor,
            answers=False,
        )
        return result.model_copy(update={"answers": _answers(result)})


def _answers(result: Recovered) -> bool:
    """Return whether who has the guest is reached where management expects it."""
    if not result.survivor:
        return False
    with suppress(CannotTellError, UsageError):
        who = [Who.of(result.survivor)]
        half = _Half(Owner.NEW, who, lambda: [Path(result.monitor)])
        with half.connected():
            return True
    return False


def recover(entry: Entry, kinds: Mapping[str, Kind] = KINDS) -> Recovered:
    """Bring one upgrade to its end; it can be done again as often as one likes.

    `kinds` has who knows about the resources that may be in its journal.
    Raises CannotTellError where that cannot be done, BusyError among them when a lab is at work
    there; the journal stays then.
    """
    with journal.reopened(entry) as book:
        try:
            return _Recovery(book, kinds).finish()
        except OSError as error:
            raise CannotTellError(
                f"the upgrade of process {entry.old.pid} cannot be brought to its end: {error}",
                hint="mend that, or be the user that began it, or root; then run recover again",
            ) from error
