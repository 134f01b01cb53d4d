# SPDX-License-Identifier: GPL-2.0-or-later
"""QEMU's domains under libvirt, by virsh, its status XML and its daemon."""

from __future__ import annotations

import functools
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from lab.base import process
from lab.base.deadline import Deadline, DeadlineError
from lab.base.errors import CannotTellError, PreconditionError, UsageError
from lab.base.files import write_whole
from lab.base.identity import Who
from lab.base.progress import note
from lab.live import look
from lab.live.journal import now
from lab.managers import daemon
from lab.managers.base import Manager, NewQemu, ends
from lab.managers.daemon import Daemon
from lab.managers.journal import Before, Errand, Guest, check_finished
from lab.managers.status import DomainStatus, with_emulator
from lab.managers.threads import Places, Threads
from lab.vm.monitor import MonitorError, QmpError

_VIRSH_S, _BACK_S = 30.0, 60.0
#: libvirt may still be busy with what it found when it started (s).
_VERIFY_S = 30.0


class Libvirt(Manager):
    """The domains of one connection."""

    title = "libvirt"

    def __init__(self, uri: str = "") -> None:
        self.uri = uri or os.environ.get("LIBVIRT_DEFAULT_URI", "")
        if not self.uri:
            self.uri = "qemu:///system" if os.geteuid() == 0 else "qemu:///session"
        self._session = _is_session(self.uri)
        self._state = _runtime() / "qemu/run" if self._session else Path("/run/libvirt/qemu")
        self._lock = self._state / "driver.pid"
        self._before: dict[str, Before] = {}

    def _virsh(self, *words: str, check: bool = True) -> str:
        """Run a command of virsh's and return what it printed; raise CommandError."""
        done = process.run(
            ["virsh", "--quiet", "--connect", self.uri, *words],
            env={"LC_ALL": "C"},
            check=check,
            deadline=Deadline.after(_VIRSH_S, f"virsh {words[0]}"),
            hint="Debian's package libvirt-clients has virsh; does libvirt's daemon run?",
        )
        return done.stdout.strip() if done.returncode == 0 else ""

    def _status_file(self, name: str) -> Path:
        return self._state / f"{name}.xml"

    def _status(self, name: str) -> DomainStatus:
        """Return a domain's status XML; raise PreconditionError."""
        try:
            return DomainStatus(self._status_file(name).read_bytes(), name)
        except OSError as error:
            raise PreconditionError(
                f"libvirt's status of {name} cannot be read: {error}",
                hint="be root for qemu:///system, and the domain's own user for qemu:///session",
            ) from error

    def find(self, names: Sequence[str]) -> list[Guest]:
        """Return running domains, each by its name, UUID or number."""
        check_finished(self.uri)
        self._virsh("version")
        found: list[Guest] = []
        for name in names:
            uuid = self._virsh("domuuid", name, check=False)
            if not uuid:
                raise UsageError(
                    f"{self.uri} has no domain {name}", f"virsh --connect {self.uri} list --all"
                )
            said = self._virsh("domname", uuid)
            if self._virsh("domstate", uuid) != "running":
                state = self._virsh("domstate", uuid)
                raise PreconditionError(f"domain {said} is {state}; let it run first")
            if any(said == one.name for one in found):
                raise UsageError(f"--domain {name}: {said} was named already")
            found.append(self._guest(said))
        return found

    def _guest(self, name: str) -> Guest:
        status = self._status(name)
        return Guest(
            name=name,
            identity=f"{status.uuid} as number {status.number}",
            pid=status.pid,
            monitor=status.monitor,
            emulator=status.emulator,
            own=(self._state / f"{name}.pid",),  # it is locked for the process (virPidFile)
            log=self._log(name),
        )

    def _log(self, name: str) -> Path:
        if not self._session:
            return Path("/var/log/libvirt/qemu", f"{name}.log")
        cache = os.environ.get("XDG_CACHE_HOME", "")
        return (Path(cache) if cache else Path.home() / ".cache") / f"libvirt/qemu/log/{name}.log"

    @contextmanager
    def through(self, guest: Guest) -> Iterator[Through]:
        """Ask by libvirt's own monitor; libvirt notes that somebody did (custom-monitor)."""
        yield Through(self, guest)

    def ask(self, guest: Guest, text: str) -> str:
        """Send a domain's QEMU one line of QMP, and return its answer."""
        return self._virsh("qemu-monitor-command", guest.name, text)

    @contextmanager
    def quiesced(self, guests: Sequence[Guest]) -> Iterator[None]:
        """Stop libvirt's daemon for QEMU, and let nobody start it."""
        pid = daemon.serving(self._lock)
        if not pid:
            raise PreconditionError(
                f"no daemon of libvirt's holds {self._lock}",
                hint=f"virsh --connect {self.uri} list",
            )
        errand = Errand(
            began=now(),
            lab=Who.of(os.getpid()),
            connection=self.uri,
            daemon=Daemon.of(pid, by_itself=self._session),
            guests=tuple(guests),
        )
        self._check_idle(guests)
        check_finished(self.uri)
        errand.write()
        try:
            with self._away(errand.daemon, stop=True):
                self._check_idle(guests)
                self._before = {one.name: self._remember(one) for one in guests}
                errand.model_copy(update={"before": self._before}).write()
                yield
        finally:
            if all(map(self.settled, guests)) and daemon.serving(self._lock):
                errand.finish()

    @contextmanager
    def resumed(self, errand: Errand) -> Iterator[None]:
        """Keep libvirt's daemon away once more, where a lab was killed that did."""
        pid = daemon.serving(self._lock)
        found = Daemon.of(pid, by_itself=self._session) if pid else errand.daemon
        self._before = dict(errand.before)
        with self._away(found, stop=bool(pid)):
            yield

    @contextmanager
    def _away(self, found: Daemon, *, stop: bool) -> Iterator[None]:
        try:
            if stop:
                found.stop()
            with daemon.locked_out(self._lock):
                yield
        finally:
            self._back(found)

    def _check_idle(self, guests: Sequence[Guest]) -> None:
        """Raise PreconditionError for a domain that libvirt is busy with, or that has changed."""
        for guest in guests:
            if reasons := list(self._status(guest.name).busy()):
                raise PreconditionError(
                    f"domain {guest.name} cannot be upgraded: {'; '.join(reasons)}",
                    hint=f"wait for it, or abort it: virsh domjobabort {guest.name}",
                )
            if self._guest(guest.name) != guest:
                raise PreconditionError(f"domain {guest.name} was started anew meanwhile")

    def _remember(self, guest: Guest) -> Before:
        """Ask a domain's QEMU for its threads; raise PreconditionError when it has block jobs."""
        with look.connected(guest.pid, guest.monitor) as qmp:
            if jobs := [one["id"] for one in qmp.execute("query-jobs")]:
                raise PreconditionError(
                    f"domain {guest.name} cannot be upgraded: a block job is going on: {jobs}"
                )
            threads = Threads.of(guest.pid, qmp)
        index = {thread: number for number, thread in threads.processors.items()}
        known = self._status(guest.name).processors
        return Before(
            threads=threads,
            places=Places.of(threads),
            processors={number: index[thread] for number, thread in known.items()},
        )

    def settled(self, guest: Guest) -> bool:
        """Whether the status XML has a process that is there; it has gone with the domain."""
        return not self._status_file(guest.name).exists() or not ends(self._status(guest.name).pid)

    def _back(self, found: Daemon) -> None:
        """Start the daemon again, and wait for its answer."""
        said = found.start()
        try:
            for _ in Deadline.after(_BACK_S, f"{self.uri} answers again").poll(0.1):
                if self._virsh("version", check=False):
                    return
        except DeadlineError as error:
            raise CannotTellError(
                f"{error.message}; its daemon said: {said or 'nothing'}",
                hint="the guests run on; start libvirt's daemon, and see its log",
            ) from error

    def adopt(self, guest: Guest, new: NewQemu) -> None:
        """Place the new process's threads, and write it into the pid file and the status XML.

        The XML comes last: whoever was killed in the middle is known by it (`settled`).
        """
        before = self._before.get(guest.name)
        if before is None:
            raise CannotTellError(
                f"domain {guest.name} runs in process {new.pid}, and it was not written down which "
                "of its threads were which",
                hint=f"virsh --connect {self.uri} destroy {guest.name}, and kill that process",
            )
        before.places.put(new.threads)
        status = self._status(guest.name)
        processors = {
            number: new.threads.processors[index] for number, index in before.processors.items()
        }
        status.adopt(new.pid, new.program, processors, new.terminals)
        _rewrite(self._state / f"{guest.name}.pid", f"{new.pid}\n")
        _rewrite(self._status_file(guest.name), status.text())

    def verify(self, guest: Guest, pid: int) -> None:
        """See that libvirt has the domain as it was, under the new process."""
        wrong: list[str] = []
        try:
            for _ in Deadline.after(_VERIFY_S, "libvirt has the domain").poll(0.2):
                wrong = self._differences(guest, pid)
                if not wrong:
                    note(f"domain {guest.name}: libvirt manages process {pid} as the same domain")
                    return
        except DeadlineError as error:
            raise CannotTellError(
                f"domain {guest.name} runs in process {pid}, but libvirt does not manage it as it "
                f"did: {'; '.join(wrong)}"
            ) from error

    def definer(self, guest: Guest) -> Callable[[Path], None]:
        """Return what writes another emulator into a domain's persistent definition."""
        if guest.name not in self._virsh("list", "--all", "--name", "--persistent").splitlines():
            raise PreconditionError(
                f"domain {guest.name} is transient: nothing of it is left when it ends",
                hint="leave out --config",
            )
        return functools.partial(self._define, guest)

    def _define(self, guest: Guest, program: Path) -> None:
        xml = self._virsh("dumpxml", "--inactive", "--security-info", guest.name)
        with tempfile.NamedTemporaryFile("w", encoding="utf-8", suffix=".xml") as file:
            file.write(with_emulator(xml, program))
            file.flush()
            self._virsh("define", file.name)
        note(f"domain {guest.name}: libvirt will start it by {program}")

    def _differences(self, guest: Guest, pid: int) -> list[str]:
        """Return what libvirt says of a domain that is not as it should be."""
        now = self._guest(guest.name)
        state = self._virsh("domstate", guest.name, check=False)
        control = self._virsh("domcontrol", guest.name, check=False)
        # It asks QEMU, as nothing that libvirt keeps by itself would.
        stats = self._virsh("domstats", "--balloon", guest.name, check=False)
        return [
            f"{what} is {seen}, and not {wanted}"
            for what, seen, wanted in (
                ("its state", state, "running"),
                ("its process", now.pid, pid),
                ("the domain", now.identity, guest.identity),
                ("its control interface", control, "ok"),
                ("what it answers", "balloon.current" in stats, True),
            )
            if seen != wanted
        ]


class Through:
    """A QEMU's monitor by way of libvirt, with what `lab.live.look` needs of one."""

    def __init__(self, manager: Libvirt, guest: Guest) -> None:
        self._manager = manager
        self._guest = guest

    def execute(
        self,
        command: str,
        arguments: Mapping[str, Any] | None = None,
        deadline: Deadline | None = None,
    ) -> Any:
        """Run a command and return its answer; raise QmpError or MonitorError."""
        del deadline  # virsh has its own
        asked = {"execute": command, **({"arguments": dict(arguments)} if arguments else {})}
        try:
            answer = json.loads(self._manager.ask(self._guest, json.dumps(asked)))
        except (process.CommandError, ValueError) as error:
            raise MonitorError(f"{self._guest.name}: {command}: {error}") from error
        if "error" in answer:
            raise QmpError(f"{self._guest.name}: {command}: {answer['error']['desc']}")
        return answer["return"]


def _is_session(uri: str) -> bool:
    parts = urlsplit(uri)
    if parts.scheme != "qemu" or parts.netloc or parts.path not in {"/system", "/session"}:
        raise UsageError(
            f"--connect {uri}: not QEMU's domains on this host",
            hint="qemu:///system, or qemu:///session for a user's own",
        )
    return parts.path == "/session"


def _runtime() -> Path:
    """Return where a user's own libvirt keeps its state (virGetUserRuntimeDirectory())."""
    where = os.environ.get("XDG_RUNTIME_DIR", "")
    return (Path(where) if where else Path.home() / ".cache") / "libvirt"


def _rewrite(path: Path, text: str) -> None:
    """Replace a file whole; it stays its owner's, with its mode."""
    was = path.stat()
    write_whole(path, text)
    path.chmod(was.st_mode & 0o7777)
    os.chown(path, was.st_uid, was.st_gid)
