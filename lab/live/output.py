# SPDX-License-Identifier: GPL-2.0-or-later
"""What a QEMU says on its standard error, where others can read it: a file, or a manager's log."""

from __future__ import annotations

import stat
from contextlib import suppress
from pathlib import Path

from lab.base.deadline import Deadline, DeadlineError
from lab.vm import tracelog

#: How much is read of what was said (bytes), and how long a log daemon may take to write it (s).
_MOST = 65536
_LOGGED_S = 1.0


class Output:
    """What is said from now on by a process, and by a child of its that has the same descriptor."""

    def __init__(self, pid: int, log: Path | None = None) -> None:
        self._path = log
        own = Path(f"/proc/{pid}/fd/2")
        with suppress(OSError):
            if stat.S_ISREG(own.stat().st_mode):
                self._path = own
        self._start = self._size()

    def _size(self) -> int:
        with suppress(OSError):
            return self._path.stat().st_size if self._path else 0
        return 0

    def said(self) -> str:
        """Return the last lines of it, once there are any; "" where nobody can read it."""
        if not self._path:
            return ""
        with suppress(DeadlineError):
            for _ in Deadline.after(_LOGGED_S, "QEMU says something").poll():
                if self._size() > self._start:
                    break
        with suppress(OSError), self._path.open("rb") as file:
            file.seek(self._start)
            return "; ".join(tracelog.words(file.read(_MOST).decode(errors="replace"))[-3:])
        return ""
