# SPDX-License-Identifier: GPL-2.0-or-later
"""Guests of Proxmox VE, by the files that its qemu-server keeps of each.

``/run/qemu-server/ID.pid`` and ``ID.qmp``; the lock of a guest's configuration,
``/run/lock/qemu-server/lock-ID.conf`` (flock(2)); ``/etc/pve/qemu-server/ID.conf``; and qmeventd,
to which every QEMU connects, and which takes the end of a connection for the end of a guest.
"""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

from lab.base.deadline import Deadline, DeadlineError
from lab.base.errors import CannotTellError, PreconditionError, UsageError
from lab.base.identity import Who
from lab.base.number import whole
from lab.base.progress import note
from lab.live import look
from lab.live.journal import now
from lab.live.truth.ask import Talks
from lab.managers.base import Manager, NewQemu, ends, listeners
from lab.managers.daemon import Daemon
from lab.managers.journal import Errand, Guest, check_finished

_RUN = Path("/run/qemu-server")
_LOCKS = Path("/run/lock/qemu-server")
_CONFIGURATIONS = Path("/etc/pve/qemu-server")
_EVENTS = Path("/run/qmeventd.sock")
#: QEMU connects to qmeventd again after 5 s.
_VERIFY_S = 30.0


class Proxmox(Manager):
    """The guests of this node."""

    title = "Proxmox VE"
    name = "proxmox"

    def find(self, names: Sequence[str]) -> list[Guest]:
        """Return running guests, by their numbers."""
        check_finished(self.name)
        found: list[Guest] = []
        for name in names:
            if whole(name) is None:
                raise UsageError(f"--domain {name}: Proxmox VE's guests have numbers", "as 100")
            if any(one.name == name for one in found):
                raise UsageError(f"--domain {name}: was named already")
            found.append(_guest(name))
        return found

    def through(self, guest: Guest) -> AbstractContextManager[Talks]:
        """Ask the guest's monitor: Proxmox VE connects there for each command, and not longer."""
        return look.connected(guest.pid, guest.monitor)

    @contextmanager
    def quiesced(self, guests: Sequence[Guest]) -> Iterator[None]:
        """Hold the guests' locks, and let qmeventd not see the old QEMUs end."""
        errand = Errand(
            began=now(),
            lab=Who.of(os.getpid()),
            connection=self.name,
            daemon=_event_daemon(),
            guests=tuple(guests),
        )
        with _locked(guests):
            errand.write()
            try:
                with _without(errand.daemon):
                    yield
            finally:
                if all(map(self.settled, guests)):
                    errand.finish()

    @contextmanager
    def resumed(self, errand: Errand) -> Iterator[None]:
        """Do the same once more, where a lab was killed."""
        there = _event_daemon() if listeners(_EVENTS) else None
        with _locked(errand.guests), _without(there or errand.daemon, stop=bool(there)):
            yield

    def settled(self, guest: Guest) -> bool:
        """Whether the pid file has a process that is there; a new QEMU writes its own."""
        pid = _pid(guest.name)
        return pid is None or not ends(pid)

    def adopt(self, guest: Guest, new: NewQemu) -> None:
        """Write the pid file, which the new QEMU should have written."""
        (_RUN / f"{guest.name}.pid").write_text(f"{new.pid}\n", encoding="ascii")

    def verify(self, guest: Guest, pid: int) -> None:
        """See that pid file, monitor, scope and event daemon are as they were."""
        wrong: list[str] = []
        try:
            for _ in Deadline.after(_VERIFY_S, "the guest is as it was").poll(0.2):
                wrong = list(_differences(guest, pid))
                if not wrong:
                    note(f"guest {guest.name}: Proxmox VE has process {pid} as the same guest")
                    return
        except DeadlineError as error:
            raise CannotTellError(
                f"guest {guest.name} runs in process {pid}, but not as it did: {'; '.join(wrong)}"
            ) from error


def _pid(name: str) -> int | None:
    try:
        return whole((_RUN / f"{name}.pid").read_text(encoding="ascii").strip())
    except OSError:
        return None


def _guest(name: str) -> Guest:
    pid = _pid(name)
    if pid is None or ends(pid):
        raise UsageError(f"guest {name} does not run on this node", f"qm status {name}")
    return Guest(
        name=name,
        identity=_scope(pid),
        pid=pid,
        monitor=_RUN / f"{name}.qmp",
        emulator=Path(look.command_line(pid)[0]),
    )


def _scope(pid: int) -> str:
    """Return systemd's scope of a guest, ``/qemu.slice/ID.scope`` (cgroups(7)); "" without."""
    told = Path(f"/proc/{pid}/cgroup").read_text(encoding="utf-8")
    found = re.search(r"^(?:\d+:name=systemd|0:):(\S*\.scope)$", told, re.MULTILINE)
    return found.group(1) if found else ""


def _event_daemon() -> Daemon:
    """Return qmeventd; raise PreconditionError when it is not there."""
    found = listeners(_EVENTS)
    if not found:
        raise PreconditionError(
            f"nobody listens at {_EVENTS}", hint="systemctl start qmeventd, and try again"
        )
    return Daemon.of(found[0], by_itself=False).model_copy(update={"background": ""})


@contextmanager
def _without(events: Daemon, *, stop: bool = True) -> Iterator[None]:
    try:
        if stop:
            events.stop()
        yield
    finally:
        events.start()


@contextmanager
def _locked(guests: Sequence[Guest]) -> Iterator[None]:
    """Hold the locks of guests' configurations; raise PreconditionError for one that is busy."""
    with ExitStack() as stack:
        _LOCKS.mkdir(parents=True, exist_ok=True)
        for guest in guests:
            held = stack.enter_context((_LOCKS / f"lock-{guest.name}.conf").open("a"))
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise PreconditionError(
                    f"Proxmox VE is at work at guest {guest.name}", hint="wait until that is done"
                ) from error
            if reason := _lock_of(guest.name):
                raise PreconditionError(
                    f"guest {guest.name} is locked ({reason})", hint=f"qm unlock {guest.name}"
                )
        yield


def _lock_of(name: str) -> str:
    """Return why a guest's configuration is locked, such as ``backup``; "" when it is not."""
    try:
        text = (_CONFIGURATIONS / f"{name}.conf").read_text(encoding="utf-8")
    except OSError:
        return ""
    found = re.search(r"^lock: *(\S+)", text.partition("\n[")[0], re.MULTILINE)
    return found.group(1) if found else ""


def _differences(guest: Guest, pid: int) -> Iterator[str]:
    """Yield what is not as it should be."""
    if _pid(guest.name) != pid:
        yield f"its pid file has {_pid(guest.name)}"
    if _scope(pid) != guest.identity:
        yield f"its scope is {_scope(pid) or 'none'}, and not {guest.identity or 'none'}"
    if listeners(guest.monitor) != [pid]:
        yield f"at {guest.monitor} there are {listeners(guest.monitor)}"
        return
    with look.connected(pid, guest.monitor) as qmp:
        for end in qmp.execute("query-chardev"):
            if str(_EVENTS.name) in end["filename"] and "disconnected" in end["filename"]:
                yield "it has not connected to qmeventd"
