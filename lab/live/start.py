# SPDX-License-Identifier: GPL-2.0-or-later
"""The new QEMU, started by the lab as the old one's user and in its directory."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from lab.base import process


@dataclass(frozen=True)
class CommandLine:
    """A successor's command line (lab.vm.cmdline.Invocation)."""

    words: tuple[str, ...]
    sockets: Path
    qmp: Path
    descriptors: tuple[int, ...] = ()
    incoming: tuple[str, ...] = ()

    def argv(self) -> list[str]:
        """Return its command line."""
        return [*self.words, *(word for one in self.incoming for word in ("-incoming", one))]


def owner(pid: int) -> tuple[int, int]:
    """Return the user and the group of a process."""
    status = Path(f"/proc/{pid}").stat()
    return status.st_uid, status.st_gid


def umask(pid: int) -> int:
    """Return what its new files are without."""
    return int(process.status(pid, "Umask"), base=8)


def as_user(pid: int, *options: str) -> list[str]:
    """Return what goes before a command for it to run as the user of process `pid`.

    `options` are more of setpriv's, for where another user's is run.
    """
    user, group = owner(pid)
    if user == os.geteuid():
        return []
    groups = process.status(pid, "Groups").split()
    more = ["--groups", ",".join(groups)] if groups else ["--clear-groups"]
    return ["setpriv", *options, "--reuid", str(user), "--regid", str(group), *more, "--"]
