# SPDX-License-Identifier: GPL-2.0-or-later
"""libvirt's daemon for QEMU: who it is, kept away for a while, and back again."""

from __future__ import annotations

import fcntl
import os
import re
import signal
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lab.base import process
from lab.base.deadline import Deadline, DeadlineError
from lab.base.errors import PreconditionError
from lab.model import Model

_STOP_S, _START_S = 60.0, 60.0
#: systemd's units of libvirt's monolithic daemon and its modular one, and of Proxmox VE's.
_UNITS = frozenset({"libvirtd.service", "virtqemud.service", "qmeventd.service"})
#: Of these, the ones that start no guests.
_WITHOUT_GUESTS = frozenset({"qmeventd.service"})
_SYSTEMD = Path("/run/systemd/system")
#: struct flock (fcntl(2)): type, whence, start, length, process.
_FLOCK = "hhqqi0q"
#: The KillMode= with which the end of a service is not the end of its guests.
_SPARES_GUESTS = "process"


class Daemon(Model):
    """The process that manages QEMU's domains, and what it takes to start it again."""

    pid: int
    argv: tuple[str, ...]
    environment: tuple[str, ...]
    #: systemd's service and the sockets that start it, those that are active; empty without.
    units: tuple[str, ...] = ()
    #: With which option it goes into the background; "" where it does so by itself.
    background: str = "--daemon"
    #: Whether whoever connects starts it (a user's own).
    by_itself: bool = False

    @classmethod
    def of(cls, pid: int, *, by_itself: bool) -> Daemon:
        """Return what a running one is; raise PreconditionError when it may not be looked at."""
        try:
            argv = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")[:-1]
            environment = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")[:-1]
        except OSError as error:
            raise PreconditionError(
                f"libvirt's daemon, process {pid}, cannot be looked at: {error.strerror}",
                hint="be root, or with --connect qemu:///session the domain's own user",
            ) from error
        return cls(
            pid=pid,
            argv=tuple(argv),
            environment=tuple(environment),
            units=() if by_itself else tuple(_units(pid)),
            by_itself=by_itself,
        )

    def stop(self) -> None:
        """End it, so that nothing starts it anew; the guests run on.  Raises PreconditionError."""
        if self.units:
            process.run(["systemctl", "stop", *self.units])
        else:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGTERM)
        gone = process.Foreign(self.pid)
        try:
            for _ in Deadline.after(_STOP_S, "libvirt's daemon ends").poll():
                if gone.poll() is not None:
                    return
        except DeadlineError as error:
            raise PreconditionError(
                f"libvirt's daemon, process {self.pid}, does not end: {error.message}",
                hint="nothing has been changed",
            ) from error

    def start(self) -> str:
        """Start it as it was, and return what it printed.

        Somebody else may start it just as well, and that is no error: whoever needs it asks it.
        """
        if self.by_itself:
            return ""
        given = not self.background or {"-d", "--daemon"} & {*self.argv}
        daemonize = [] if given else [self.background]
        by_hand = ["env", "-i", "--chdir=/", *self.environment, *self.argv, *daemonize]
        done = process.run(
            ["systemctl", "start", *self.units] if self.units else by_hand,
            check=False,
            deadline=Deadline.after(_START_S, "libvirt's daemon starts"),
        )
        return done.stdout.strip()


def _units(pid: int) -> Iterator[str]:
    """Yield the daemon's unit and the active ones that start it; raise PreconditionError."""
    unit = unit_of(Path(f"/proc/{pid}/cgroup").read_text(encoding="utf-8"))
    if not unit or not _SYSTEMD.is_dir():
        return
    show = ["systemctl", "show", "--value", "--property"]
    mode = process.run([*show, "KillMode", unit]).stdout.strip()
    if mode != _SPARES_GUESTS and unit not in _WITHOUT_GUESTS:
        raise PreconditionError(
            f"systemd would end the guests with {unit}: KillMode={mode}",
            hint=f"systemctl edit {unit}: [Service] KillMode={_SPARES_GUESTS}",
        )
    yield unit
    for socket in process.run([*show, "TriggeredBy", unit]).stdout.split():
        if process.run(["systemctl", "is-active", socket], check=False).returncode == 0:
            yield socket


def unit_of(groups: str) -> str:
    """Return the service that a process of these cgroups (cgroups(7)) is, if it is a daemon's."""
    found = re.search(r"/system\.slice/([^/\n]+\.service)$", groups, re.MULTILINE)
    return found.group(1) if found and found.group(1) in _UNITS else ""


def serving(file: Path) -> int:
    """Return the process that holds the driver's pid file, 0 for none (virPidFileAcquirePath())."""
    try:
        with file.open("rb") as held:
            asked = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 1, 0)
            told = struct.unpack(_FLOCK, fcntl.fcntl(held, fcntl.F_GETLK, asked))
    except FileNotFoundError:
        return 0
    return 0 if told[0] == fcntl.F_UNLCK else int(told[4])


@contextmanager
def locked_out(file: Path) -> Iterator[None]:
    """Keep every daemon from starting for as long as the block lasts.

    By the lock on the driver's pid file, which goes with this process however that ends.  Raises
    PreconditionError when a daemon has it.
    """
    with file.open("a+b") as held:
        try:
            fcntl.lockf(held, fcntl.LOCK_EX | fcntl.LOCK_NB, 1)
        except OSError as error:
            raise PreconditionError(
                f"somebody has started libvirt's daemon again: {file} is locked",
                hint="stop who starts it, and try again; nothing has been changed",
            ) from error
        held.truncate(0)
        held.write(f"{os.getpid()}\n".encode())
        held.flush()
        try:
            yield
        finally:
            file.unlink(missing_ok=True)
