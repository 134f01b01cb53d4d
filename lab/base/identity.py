# SPDX-License-Identifier: GPL-2.0-or-later
"""A process by its number and when it started: the number alone comes back for another one."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lab.base import process
from lab.base.errors import UsageError
from lab.model import Model

#: Where starttime is in what `process.stat` returns: field 22 of proc_pid_stat(5).
_START = 19


class Who(Model):
    """One process of this host, since its last boot."""

    pid: int
    #: When it started, in clock ticks after the boot.
    start: int

    @classmethod
    def of(cls, pid: int) -> Who:
        """Return who has the number now; raise UsageError when nobody has."""
        told = process.stat(pid)
        if not told:
            raise UsageError(f"there is no process {pid}")
        return cls(pid=pid, start=int(told[_START]))

    @property
    def there(self) -> bool:
        """Whether it has not ended; one that nobody has waited for yet has."""
        told = process.stat(self.pid)
        return bool(told) and int(told[_START]) == self.start and told[0] not in {"Z", "X"}

    @contextmanager
    def held(self) -> Iterator[int]:
        """Have a descriptor of it (pidfd_open(2)), -1 once it has ended, while the block lasts."""
        descriptor = -1
        try:
            with suppress(ProcessLookupError):
                descriptor = os.pidfd_open(self.pid)
            yield descriptor if self.there else -1
        finally:
            if descriptor >= 0:
                os.close(descriptor)

    def send(self, what: signal.Signals) -> None:
        """Send it a signal, and not to somebody who has its number by now."""
        with self.held() as descriptor, suppress(ProcessLookupError):
            if descriptor >= 0:
                signal.pidfd_send_signal(descriptor, what)


def marked(argument: str, variable: str) -> list[Who]:
    """Return the processes that wait for a guest, as QEMU does, and were told so by us.

    They have ``-incoming`` and a word with `argument` in it on their command line, or were started
    with `variable` (``NAME=VALUE``) in their environment.  Those that this user may not look into
    are left out (proc_pid_environ(5)).
    """
    found = []
    for directory in Path("/proc").glob("[0-9]*"):
        pid = int(directory.name)
        words, variables = _strings(directory / "cmdline"), _strings(directory / "environ")
        told = b"-incoming" in words and any(argument.encode() in word for word in words)
        if told or variable.encode() in variables:
            with suppress(UsageError):
                found.append(Who.of(pid))
    return [one for one in found if one.there]


def _strings(path: Path) -> list[bytes]:
    with suppress(OSError):
        return path.read_bytes().split(b"\0")
    return []
