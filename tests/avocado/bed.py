# SPDX-License-Identifier: GPL-2.0-or-later
"""A bed: a machine within the machine, for services that must not touch the real one.

The machine's own files under an overlay in memory, with Debian packages that are installed there
only, and namespaces: mounts, processes, network with a bridge, host name, IPC, cgroups, /dev with
one devpts.  All of it goes with its first process, however the test ends.  Needs root.
"""

from __future__ import annotations

import ctypes
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from lab.base import process
from lab.base.deadline import Deadline, DeadlineError
from lab.base.errors import CannotTellError, PreconditionError
from lab.base.files import key_of
from lab.base.layout import CHECKOUT, Layout, held, locked
from lab.base.progress import step
from lab.workloads.netns import HOST, PREFIX

BRIDGE = "br0"
_INIT = Path(__file__).with_name("bedinit.py")
_START_S, _INSTALL_S, _END_S = 60.0, 600.0, 20.0
_NAMESPACES = ("--mount", "--pid", "--net", "--uts", "--ipc", "--cgroup")
_GROUP = "bed-pageflip-"
_STATUS = Path("/var/lib/dpkg/status")
#: sched.h
_CLONE_NEWNET = 0x40000000
#: Joins the bed's cgroups, where every process belongs that the bed did not start itself.
_JOIN = (
    "for procs in /sys/fs/cgroup/init/cgroup.procs /sys/fs/cgroup/*/cgroup.procs; do "
    'echo 0 > "$procs"; done 2>/dev/null; exec "$@"'
)


class Bed:
    """A running one; `root` is its root directory as the machine sees it."""

    def __init__(self, init: int, log: Path) -> None:
        self._init = init
        self._log = log

    @property
    def root(self) -> Path:
        """Where the machine sees the bed's files."""
        return Path(f"/proc/{self._init}/root")

    def path(self, inside: str | Path) -> Path:
        """Return where the machine sees a file of the bed's."""
        return self.root / str(inside).lstrip("/")

    def argv(self, argv: process.Argv, user: str = "") -> list[str | os.PathLike[str]]:
        """Return the command line that runs `argv` in the bed, as root or another user."""
        become: list[str] = []
        if user:
            ids = ["--reuid", user, "--regid", user, "--init-groups", "--reset-env"]
            become = ["setpriv", *ids]
        return [
            *("nsenter", "--target", str(self._init), "--mount", "--pid", "--net", "--uts"),
            *(
                "--ipc",
                "--cgroup",
                "--",
                "env",
                "--chdir=/",
                "sh",
                "-c",
                _JOIN,
                "sh",
                *become,
                *argv,
            ),
        ]

    def run(
        self,
        *argv: str | os.PathLike[str],
        check: bool = True,
        user: str = "",
        seconds: float = 120.0,
        stdin: str | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in the bed to its end, and return what it printed."""
        return process.run(
            self.argv(argv, user),
            check=check,
            stdin=stdin,
            log=self._log,
            deadline=Deadline.after(seconds, process.command_line(argv)),
        )

    def socket(self, kind: socket.SocketKind) -> socket.socket:
        """Return an IPv4 socket in the bed's network."""
        made: list[socket.socket] = []

        def make() -> None:
            # A thread has a network namespace of its own, if it wants (setns(2)).
            libc = ctypes.CDLL(None, use_errno=True)
            with Path(f"/proc/{self._init}/ns/net").open("rb") as network:
                if libc.setns(network.fileno(), _CLONE_NEWNET):
                    raise OSError(ctypes.get_errno(), "setns")
            made.append(socket.socket(socket.AF_INET, kind))

        thread = threading.Thread(target=make)
        thread.start()
        thread.join()
        return made[0]

    def kill(self, pid: int, number: int) -> None:
        """Send a signal to a process that the bed knows by `pid`; to none when it is gone."""
        space = Path(f"/proc/{self._init}/ns/pid").readlink()
        for directory in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                status = (directory / "status").read_text(encoding="utf-8")
                numbers = status.partition("\nNSpid:")[2].partition("\n")[0].split()
                inside = (directory / "ns/pid").readlink() == space
                if inside and numbers[-1] == str(pid):
                    os.kill(int(directory.name), number)

    def processes(self, name: str) -> dict[int, list[str]]:
        """Return the bed's processes of that name: command lines by the bed's process ids."""
        found = {}
        for directory in self.path("proc").glob("[0-9]*"):
            with suppress(OSError):
                words = (directory / "cmdline").read_bytes().decode().split("\0")[:-1]
                state = (directory / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()
                if words and Path(words[0]).name == name and state[0] != "Z":
                    found[int(directory.name)] = words
        return found


@contextmanager
def bed(
    layout: Layout, directory: Path, packages: Sequence[str], keep: Sequence[Path] = ()
) -> Iterator[Bed]:
    """Have a bed with Debian packages in it for as long as the block lasts.

    `keep` are directories that are the machine's own in there too.  Raises PreconditionError when
    this machine cannot make one, or has not got the packages.
    """
    if os.geteuid() != 0:
        raise PreconditionError("a machine within the machine takes root", "run as root")
    layer = _layer(layout, packages)
    kept = [CHECKOUT, Path(sys.prefix), Path(sys.base_prefix), layout.cache, directory, *keep]
    with ExitStack() as stack:
        where = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pageflip-bed-")))
        stack.enter_context(held(where))
        groups = stack.enter_context(_groups())
        told, tell = os.pipe()
        stack.callback(os.close, told)
        with os.fdopen(tell, "wb"):
            argv = [
                *("sh", "-c", _enter(groups), "unshare", *_NAMESPACES, "--fork", "--kill-child"),
                *("--", sys.executable, "-P", str(_INIT), "run", str(tell), str(where)),
                *(str(layer), f"{HOST}/{PREFIX}", *map(str, dict.fromkeys(kept))),
            ]
            child = stack.enter_context(
                process.spawned(
                    argv,
                    log=directory / "bed-init.log",
                    env={"PYTHONPATH": str(CHECKOUT)},
                    pass_fds=[tell],
                )
            )
        _wait_ready(told, directory / "bed-init.log")
        made = Bed(next(iter(process.children(child.pid))), directory / "bed.log")
        yield made


def _enter(groups: Sequence[Path]) -> str:
    """Return a script that joins the groups and becomes its arguments."""
    joined = "".join(f"echo $$ > {group}/cgroup.procs; " for group in groups)
    return f'{joined}exec unshare "$@"'


def _wait_ready(told: int, log: Path) -> None:
    """Wait until the bed says that it is ready; raise PreconditionError with what it says else."""
    os.set_blocking(told, False)
    said = b""
    try:
        for _ in Deadline.after(_START_S, "the bed is made").poll(0.01):
            with suppress(BlockingIOError):
                said = os.read(told, 4096)
                break
    except DeadlineError as error:
        raise CannotTellError(error.message, hint=f"its output: {log}") from error
    if said != b"ready":
        printed = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        raise PreconditionError(
            f"no machine within the machine can be made here: {printed[-1:] or said}",
            hint=f"its output: {log}",
        )


@contextmanager
def _groups() -> Iterator[list[Path]]:
    """Have a cgroup of our own in each hierarchy that this machine has (cgroups(7))."""
    # Not with the lab's own prefix: it ends who is in a group of that which nobody holds.
    name = f"{_GROUP}{os.getpid()}-{secrets.token_hex(4)}"
    made: list[Path] = []
    try:
        for line in Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines():
            where, kind = line.split()[1:3]
            if kind in {"cgroup", "cgroup2"}:
                for other in Path(where).glob(f"{_GROUP}*"):
                    # Those of a bed that is in use may be empty as well, between two QEMUs.
                    maker = other.name.removeprefix(_GROUP).partition("-")[0]
                    if not Path("/proc", maker).exists():
                        _remove_empty(other)
                group = Path(where, name)
                group.mkdir()
                made.append(group)
                for setting in ("cpuset.cpus", "cpuset.mems"):
                    with suppress(OSError):  # version 1 inherits nothing by itself
                        text = Path(where, setting).read_text(encoding="ascii")
                        (group / setting).write_text(text, encoding="ascii")
                with suppress(OSError):
                    (group / "cgroup.clone_children").write_text("1", encoding="ascii")
        yield made
    finally:
        for group in made:
            _remove(group)


def _remove(group: Path) -> None:
    """Remove a group with all below it, once its last processes are gone."""
    with suppress(DeadlineError):
        for _ in Deadline.after(_END_S, "the bed's processes end").poll():
            _remove_empty(group)
            if not group.exists():
                return


def _remove_empty(group: Path) -> None:
    """Remove of a group, and of those below it, what has no processes."""
    below = [one for one in group.rglob("*") if one.is_dir()]
    for one in (*sorted(below, key=lambda one: -len(one.parts)), group):
        with suppress(OSError):
            one.rmdir()


def _layer(layout: Layout, packages: Sequence[str]) -> Path:
    """Return what the packages add to this machine, as an archive of an overlay's upper layer.

    Made once, by installing them in an overlay that nobody else sees.
    """
    if not packages:
        return Path("-")
    if not _STATUS.is_file() or not shutil.which("apt-get"):
        raise PreconditionError(
            f"this machine has no apt, which would bring {', '.join(packages)} into the test"
        )
    key = key_of(_STATUS.read_text(encoding="utf-8"), _INIT.read_text(encoding="utf-8"), *packages)
    layer = layout.cache / "beds" / f"{key[:16]}.tar"
    with locked(layer, "waiting for another run that is installing packages for tests"):
        if layer.exists():
            return layer
        if os.environ.get("PAGEFLIP_NO_APT"):
            raise PreconditionError(
                f"the packages {', '.join(packages)} are not in the cache",
                "unset PAGEFLIP_NO_APT",
            )
        for old in layer.parent.glob("*.tar"):
            old.unlink()
        half, log = layer.with_suffix(".half"), layer.with_suffix(".log")
        with (
            step(f"installing {', '.join(packages)} where only tests see them"),
            tempfile.TemporaryDirectory(prefix="pageflip-bed-") as where,
            held(Path(where)),
        ):
            argv = [
                *("unshare", "--mount", "--pid", "--uts", "--ipc", "--fork", "--kill-child", "--"),
                *(sys.executable, "-P", str(_INIT), "install", where, str(half), *packages),
            ]
            try:
                process.run(
                    argv,
                    log=log,
                    env={"PYTHONPATH": str(CHECKOUT)},
                    deadline=Deadline.after(_INSTALL_S, "the packages are installed"),
                )
            except process.CommandError as error:
                raise PreconditionError(
                    f"the packages {', '.join(packages)} cannot be had: "
                    f"{error.output.strip().splitlines()[-1:]}",
                    hint=f"in full: {log}",
                ) from error
        half.rename(layer)
    return layer
