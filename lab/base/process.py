# SPDX-License-Identifier: GPL-2.0-or-later
"""The only place that starts processes.

Every child is in a process group of its own, which is ended when the lab leaves the block that
started it, whatever the reason; and the kernel kills the child should the lab itself be killed
(prctl(PR_SET_PDEATHSIG), by way of setpriv(1), which needs no code between fork and exec).
"""

from __future__ import annotations

import os
import select
import shlex
import shutil
import signal
import subprocess
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

from lab.base.deadline import Deadline, DeadlineError
from lab.base.errors import CannotTellError

#: What ties git to one repository, as ``git rev-parse --local-env-vars`` lists it.
GIT_LOCAL = frozenset(
    {
        "GIT_ALTERNATE_OBJECT_DIRECTORIES",
        "GIT_COMMON_DIR",
        "GIT_CONFIG",
        "GIT_CONFIG_COUNT",
        "GIT_CONFIG_PARAMETERS",
        "GIT_DIR",
        "GIT_GRAFT_FILE",
        "GIT_IMPLICIT_WORK_TREE",
        "GIT_INDEX_FILE",
        "GIT_INTERNAL_SUPER_PREFIX",
        "GIT_NO_REPLACE_OBJECTS",
        "GIT_OBJECT_DIRECTORY",
        "GIT_PREFIX",
        "GIT_REPLACE_REF_BASE",
        "GIT_SHALLOW_FILE",
        "GIT_WORK_TREE",
    }
)
Argv = Sequence[str | os.PathLike[str]]
_TAIL_LINES = 30
_GRACE_S = 5.0
#: What a process of others has ended with: its exit status is not known.
ENDED = 255


class CommandError(CannotTellError):
    """A command could not be started, or ended with an error."""

    def __init__(self, argv: Argv, status: str, output: str, log: Path | None, hint: str) -> None:
        self.output = output
        tail = "\n".join("    " + line for line in output.rstrip().splitlines()[-_TAIL_LINES:])
        where = f"\n    (in full: {log})" if log else ""
        super().__init__(f"{command_line(argv)}: {status}\n{tail}{where}".rstrip(), hint)


def command_line(argv: Argv) -> str:
    """Return `argv` as one could type it into a shell."""
    return shlex.join(os.fspath(word) for word in argv)


def _under_us(argv: Argv) -> list[str]:
    words = [os.fspath(word) for word in argv]
    found = shutil.which(words[0])
    if found is None:
        raise CommandError(
            argv,
            f"{words[0]}: no such program",
            "",
            None,
            "install it, or run ./pageflip doctor to see what is missing",
        )
    setpriv = shutil.which("setpriv")
    guard = [setpriv, "--pdeathsig", "KILL", "--"] if setpriv else []
    return [*guard, found, *words[1:]]


def end(process: subprocess.Popen[str] | subprocess.Popen[bytes]) -> None:
    """End a child and its whole group: TERM, then KILL after a moment."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGTERM)
    # A stopped process acts on nothing but KILL until it is continued.
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGCONT)
    try:
        process.wait(_GRACE_S)
    except subprocess.TimeoutExpired:
        pass
    finally:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return our environment with `more`, and without what points git at another repository.

    git sets these for its hooks and for ``git rebase --exec``, and they beat ``git -C``: run from
    there, the lab's own git would write to the repository of whoever called it.
    """
    mine = {name: value for name, value in os.environ.items() if name not in GIT_LOCAL}
    return {**mine, **(more or {})}


def _started(words: Sequence[str], log: Path | None, **how: Any) -> subprocess.Popen[bytes]:
    """Start a child that nobody talks to, in a group of its own, its output going to `log`."""
    with _opened(log) as out:
        return subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            **how,
        )


@contextmanager
def spawned(
    argv: Argv,
    *,
    log: Path | None = None,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    pass_fds: Sequence[int] = (),
) -> Iterator[subprocess.Popen[bytes]]:
    """Start a long-lived child, its output going to `log`; end it when the block is left."""
    process = _started(_under_us(argv), log, cwd=cwd, env=environment(env), pass_fds=pass_fds)
    try:
        yield process
    finally:
        end(process)


def interactive(argv: Argv) -> int:
    """Run a command that has the lab's own terminal, and return its exit status.

    It stays in the lab's process group, which is the terminal's.
    """
    with subprocess.Popen(_under_us(argv), env=environment()) as process:
        try:
            return process.wait()
        finally:
            process.kill()


@dataclass
class Lent:
    """A child that may be let go."""

    process: subprocess.Popen[bytes]
    kept: bool = False

    def keep(self) -> None:
        """Let it outlive the lab."""
        self.kept = True


@contextmanager
def lent(
    argv: Argv, *, log: Path, cwd: Path, umask: int, env: Mapping[str, str] | None = None
) -> Iterator[Lent]:
    """Start a child for somebody else; end it when the block is left, unless it is kept.

    What the user asked for has to go on when the lab is gone: it is the one child that the kernel
    does not kill with the lab.
    """
    words = [os.fspath(word) for word in argv]
    try:
        process = _started(words, log, cwd=cwd, env=environment(env), umask=umask)
    except OSError as error:
        raise CommandError(argv, error.strerror or str(error), "", log, "") from error
    lent = Lent(process)
    try:
        yield lent
    finally:
        if not lent.kept:
            end(process)


class Process(Protocol):
    """A process, ours or not."""

    @property
    def pid(self) -> int:
        """The process id; 0 while there is none."""

    def poll(self) -> int | None:
        """Return None until it has ended, and then how."""


def stat(pid: int) -> list[str]:
    """Return the fields of /proc/PID/stat, from the state on (proc_pid_stat(5), field 3).

    Empty once it is gone; of a zombie there is still everything.
    """
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except OSError:
        return []
    return text.rpartition(")")[2].split()  # a name may hold anything


class Foreign:
    """A process that is not our child, with the interface of a Popen.

    It is held by a descriptor (pidfd_open(2)): a later process with the same number is not it.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._descriptor: int | None = None
        with suppress(ProcessLookupError):
            self._descriptor = os.pidfd_open(pid)
            weakref.finalize(self, os.close, self._descriptor)

    def poll(self) -> int | None:
        """Return None until it has ended; only its parent knows how it did."""
        if self._descriptor is None:
            return ENDED
        poller = select.poll()
        poller.register(self._descriptor, select.POLLIN)
        return ENDED if poller.poll(0) else None

    def kill(self) -> None:
        """End it, if it has not ended."""
        if self._descriptor is not None:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._descriptor, signal.SIGKILL)


def status(pid: int, name: str) -> str:
    """Return a field of a process's or a thread's status (proc_pid_status(5)); raise OSError.

    Empty when this kernel has no such field.
    """
    told = Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace")
    return told.partition(f"\n{name}:")[2].partition("\n")[0].strip()


def capable(*numbers: int) -> bool:
    """Whether this process has capabilities in effect, by their numbers (capabilities(7))."""
    effective = int(status(os.getpid(), "CapEff"), 16)
    return all(effective >> number & 1 for number in numbers)


def children(pid: int) -> Iterator[int]:
    """Yield the processes that a process has started (proc_pid_children(5))."""
    with suppress(OSError):
        for tasks in Path(f"/proc/{pid}/task").glob("*/children"):
            yield from map(int, tasks.read_text(encoding="ascii").split())


def run(
    argv: Argv,
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    deadline: Deadline | None = None,
    log: Path | None = None,
    check: bool = True,
    stdin: str | None = None,
    on_line: Callable[[str], None] | None = None,
    hint: str = "",
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end and return what it printed (stdout and stderr together).

    ``on_line`` sees every line as it comes.  ``log`` keeps them all, the command first, so that the
    record exists whatever happens.  Raises CommandError when it cannot be started or, with
    ``check``, exits non-zero; DeadlineError when it takes too long.
    """
    with _opened(log) as sink:
        print(f"+ {command_line(argv)}", file=sink, flush=True)
        try:
            process = subprocess.Popen(
                _under_us(argv),
                stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                cwd=cwd,
                env=environment(env),
                start_new_session=True,
            )
        except OSError as error:
            raise CommandError(argv, error.strerror or str(error), "", log, hint) from error
        try:
            with _killed_at(process, deadline):
                output = _talk(process, stdin, sink, on_line)
                status = process.wait()
        finally:
            end(process)
    if deadline and deadline.expired and status < 0:
        raise DeadlineError(f"{command_line(argv)}: not done after {deadline.seconds:g} s")
    if check and status != 0:
        said = f"exit status {status}" if status > 0 else f"killed by signal {-status}"
        raise CommandError(argv, said, output, log, hint)
    return subprocess.CompletedProcess(list(argv), status, output, "")


def _opened(log: Path | None) -> IO[str]:
    path = log or Path(os.devnull)
    return path.open("a", encoding="utf-8", errors="replace")


def _talk(
    process: subprocess.Popen[str],
    stdin: str | None,
    sink: IO[str],
    on_line: Callable[[str], None] | None,
) -> str:
    """Give the child its input and return all it says."""
    assert process.stdout is not None
    lines: list[str] = []
    if process.stdin is not None:
        with suppress(BrokenPipeError):
            process.stdin.write(stdin or "")
            process.stdin.close()
    with process.stdout as stdout:
        for line in stdout:
            lines.append(line)
            sink.write(line)
            if on_line:
                on_line(line.rstrip("\n"))
    return "".join(lines)


@contextmanager
def _killed_at(process: subprocess.Popen[str], deadline: Deadline | None) -> Iterator[None]:
    if deadline is None:
        yield
        return
    timer = threading.Timer(deadline.left, end, [process])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
