# SPDX-License-Identifier: GPL-2.0-or-later
"""A running QEMU that the lab did not start: what it is and what it has.  Only looked at."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab.base import process
from lab.base.deadline import Deadline, DeadlineError
from lab.base.errors import PreconditionError, UsageError
from lab.base.number import whole
from lab.host import facts
from lab.live import plugged, truth, words
from lab.live.changes import changes
from lab.live.truth import Truth
from lab.live.truth.ask import Asker, Talks
from lab.live.truth.told import told as told_of
from lab.live.words import options, values
from lab.source.releases import X86_64
from lab.vm import binary
from lab.vm.binary import Binary
from lab.vm.monitor import Monitor, MonitorError, QmpError, monitor

_CONNECT_S = 15.0
_ANSWER_S = 10.0
#: A program for the guests of one architecture.
_EMULATOR = re.compile(r"qemu-system-(x86_64|aarch64)\b")
#: Runs a QMP command with its arguments.
Ask = Callable[..., Any]


@dataclass(frozen=True)
class Backend:
    """A part of guest RAM, from query-memdev."""

    name: str
    size_bytes: int
    share: bool


@dataclass(frozen=True)
class Running:
    """What was found out of one."""

    pid: int
    #: Its command line, with what was plugged in and without what was taken out since.
    argv: tuple[str, ...]
    monitor: Path
    binary: Binary
    state: str
    machine: str
    accel: str
    ram: tuple[Backend, ...]
    blockers: tuple[str, ...]
    #: Whether the machine shares its other RAM blocks too (aux-ram-share).
    aux_share: bool
    #: What runs and is not as `argv` says it.
    changes: tuple[str, ...] = ()
    #: What `argv` says otherwise than what was typed.
    remarks: tuple[str, ...] = ()
    cwd: Path = Path("/")
    #: Everything that it is and has.
    truth: Truth | None = None
    #: Its RAM blocks, as the human monitor lists them (``info ramblock``); "" where it does not.
    ram_blocks: str = ""

    @property
    def ram_bytes(self) -> int:
        """All of guest RAM."""
        return sum(backend.size_bytes for backend in self.ram)


def find(what: str) -> tuple[int, Path]:
    """Return the process and the monitor's socket of `what`: a process id or that socket.

    Raises UsageError for what is neither, PreconditionError for a QEMU without such a socket.
    """
    asked = whole(what)
    if asked is not None:
        pid = _process_of(asked)
        return pid, monitor_of(pid, configured(pid, command_line(pid)))
    path = Path(what)
    hint = "name a running QEMU by its process id or by its QMP socket"
    try:
        if not path.is_socket():
            raise UsageError(f"{what}: is neither a process id nor a socket", hint)
    except OSError as error:
        raise UsageError(f"{what}: {error.strerror}", hint) from error
    return _listener(path), path


def emulated(*programs: str | Path) -> str:
    """Return the architecture of a QEMU's guest, by the program's name or else a further one.

    The usual one where none says it (qemu-kvm).
    """
    names = (_EMULATOR.match(Path(one).name) for one in programs)
    return next((found[1] for found in names if found), X86_64)


def emulated_by(pid: int) -> str:
    """Return the architecture of the guest of a process."""
    return emulated(_program(pid), command_line(pid)[0])


def _process_of(thread: int) -> int:
    """Return the process that a thread belongs to (proc_pid_status(5)): most often the same."""
    with suppress(OSError):
        return int(process.status(thread, "Tgid"))
    return thread


def command_line(pid: int) -> tuple[str, ...]:
    """Return a process's command line (proc_pid_cmdline(5)); raise UsageError without one."""
    try:
        text = Path(f"/proc/{pid}/cmdline").read_bytes()
    except FileNotFoundError as error:
        raise UsageError(f"there is no process {pid}") from error
    except PermissionError as error:
        raise PreconditionError(f"process {pid} is another user's", "run as its user") from error
    argv = tuple(map(os.fsdecode, text.split(b"\0")[:-1]))
    names = {Path(name).name for name in (*argv[:1], _program(pid))}
    if not any("qemu" in name or name == "kvm" for name in names):
        said = argv[0] if argv else "a process of the kernel"
        raise UsageError(f"process {pid} is no QEMU: {said}")
    return argv


def _program(pid: int) -> str:
    """Return the program that a process runs, or "" where one may not look."""
    with suppress(OSError):
        return str(Path(f"/proc/{pid}/exe").readlink())
    return ""


def configured(pid: int, argv: Sequence[str]) -> tuple[str, ...]:
    """Return a command line with what its configuration files (-readconfig) say, by their names.

    One that cannot be read, or not be understood, stays as it is.
    """
    found = list(argv[:1])
    for name, value in words.pairs(argv):
        more = [f"-{name}", *([] if value is None else [value])]
        if name == "readconfig" and value is not None:
            with suppress(OSError, ValueError):
                path = Path(f"/proc/{pid}/cwd").resolve() / value
                more = words.configured(path.read_text(encoding="utf-8"))
        found += more
    return tuple(found)


def monitor_of(pid: int, argv: Sequence[str]) -> Path:
    """Return the socket of its QMP monitor, as its command line says it."""
    chardevs = {one.get("id", ""): one for one in map(values, options(argv, "chardev"))}
    paths = [
        values(text.removeprefix("unix:"))[""]
        for text in options(argv, "qmp", "qmp-pretty")
        if text.startswith("unix:")
    ]
    paths += [
        _listens(pid, chardevs.get(text.removeprefix("chardev:"), {}))
        for text in options(argv, "qmp", "qmp-pretty")
        if text.startswith("chardev:")
    ]
    paths += [
        _listens(pid, chardevs.get(one.get("chardev", one.get("", "")), {}))
        for one in map(values, options(argv, "mon"))
        if one.get("mode") == "control"
    ]
    for path in filter(None, paths):
        # It may be relative to where QEMU was started.
        return Path(path) if path.startswith("/") else Path(f"/proc/{pid}/cwd").resolve() / path
    raise PreconditionError(
        f"process {pid} has no QMP monitor on a unix socket",
        hint="only a QEMU that can be talked to can be moved; start it with "
        "-qmp unix:/run/m,server=on,wait=off the next time",
    )


def _listens(pid: int, chardev: Mapping[str, str]) -> str:
    """Return where a character device listens; management may have passed the socket itself."""
    if "fd" not in chardev:
        return chardev.get("path", "")
    with suppress(OSError):
        inode = Path(f"/proc/{pid}/fd/{chardev['fd']}").readlink().name
        for path, number in facts.listening_sockets(pid).items():
            if inode == f"socket:[{number}]":
                return str(path)
    return ""


def _listener(path: Path) -> int:
    """Return the process that listens on a socket, without connecting to it."""
    wanted = f"socket:[{facts.listening_sockets().get(path.absolute())}]"
    for descriptor in Path("/proc").glob("[0-9]*/fd/*"):
        with suppress(OSError):
            if str(descriptor.readlink()) == wanted:
                return int(descriptor.parts[2])
    raise UsageError(
        f"{path}: no process that this user may look at listens there",
        hint="run as the user of that QEMU, or name the socket as its command line does",
    )


@contextmanager
def connected(pid: int, path: Path) -> Iterator[Monitor]:
    """Talk to a QEMU's monitor for as long as the block lasts; raise PreconditionError."""

    def alive() -> None:
        if not Path(f"/proc/{pid}").exists():
            raise UsageError(f"process {pid} has ended")

    deadline = Deadline.after(_CONNECT_S, f"the monitor at {path}")
    try:
        with monitor("running", path, deadline, alive, lambda _text: None) as qmp:
            yield qmp
    except DeadlineError as error:
        raise PreconditionError(
            f"{path}: QEMU does not answer within {_CONNECT_S:g} s",
            hint="it talks to one client at a time: end the other, or give it a second monitor",
        ) from error
    except MonitorError as error:
        raise PreconditionError(f"{path}: {error.message}") from error


#: What `connected` is: how to talk to the monitor of a process, by the path of its socket.
Connect = Callable[[int, Path], AbstractContextManager[Talks]]


def look(what: str, connect: Connect = connected) -> Running:
    """Ask a running QEMU what it is, without changing it.

    Raises UsageError and PreconditionError when there is nobody to ask.
    """
    pid, path = find(what)
    argv = configured(pid, command_line(pid))
    with connect(pid, path) as qmp:

        def ask(command: str, **arguments: str) -> Any:
            return qmp.execute(command, arguments, Deadline.after(_ANSWER_S, command))

        def told(path: str, name: str) -> Any:
            """Return a property, or None where this QEMU has none of that name."""
            try:
                return ask("qom-get", path=path, property=name)
            except QmpError:
                return None

        place = Path(f"/proc/{pid}/cwd").resolve()
        own = [str(place / path) for path in options(argv, "pidfile")]
        # A manager's own way is too slow for thousands of questions.
        found = truth.take(pid, qmp, own, whole=isinstance(qmp, Monitor))
        now = plugged.current(argv, found, told_of(Asker(qmp), found))
        return Running(
            pid=pid,
            argv=tuple(now.argv),
            monitor=path,
            binary=_binary(pid, ask),
            state=str(ask("query-status")["status"]),
            machine=str(told("/machine", "type") or "").removesuffix("-machine"),
            accel="kvm" if ask("query-kvm")["enabled"] else "tcg",
            ram=tuple(_ram(argv, ask)),
            blockers=tuple(ask("query-migrate").get("blocked-reasons", ())),
            aux_share=bool(told("/machine", "aux-ram-share")),
            changes=tuple(changes(now.argv, found, now.why)),
            remarks=tuple(now.remarks),
            cwd=Path(found.cwd),
            truth=found,
            ram_blocks=_ram_blocks(ask),
        )


def _binary(pid: int, ask: Ask) -> Binary:
    """Return what it runs, as it says itself: its file may have been replaced."""
    version = ask("query-version")["qemu"]
    return binary.told_by_itself(
        Path(f"/proc/{pid}/exe").readlink(),
        f"{version['major']}.{version['minor']}.{version['micro']}",
        ask("query-qmp-schema"),
        frozenset(command["name"] for command in ask("query-commands")),
    )


def _ram(argv: Sequence[str], ask: Ask) -> Iterator[Backend]:
    """Yield the guest's RAM; what it shares with others through a device is none of its own."""
    windows = {
        values(text).get("memdev")
        for text in options(argv, "device")
        if words.driver(text).startswith("ivshmem")
    }
    for one in ask("query-memdev"):
        if one.get("id") not in windows:
            yield Backend(one.get("id", "ram"), int(one["size"]), bool(one["share"]))


def _ram_blocks(ask: Ask) -> str:
    try:
        return str(ask("human-monitor-command", **{"command-line": "info ramblock"}))
    except QmpError:
        return ""
