# SPDX-License-Identifier: GPL-2.0-or-later
"""Processes that are another program before long: a child that somebody else starts, or itself."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from lab.base import process
from lab.base.kcmp import same_memory


def _code(pid: int) -> list[list[str]]:
    """Return the executable mappings of a process, field by field (proc_pid_maps(5))."""
    with suppress(OSError):
        text = Path(f"/proc/{pid}/maps").read_text(encoding="utf-8", errors="replace")
        fields = [line.split(maxsplit=5) for line in text.splitlines()]
        return [one for one in fields if "x" in one[1]]
    return []


def _is_another(child: int, parent: int) -> bool:
    """Whether a child runs another program than its parent, whatever /proc calls it.

    The parent's own program is not where the parent has it any more, or it has its memory in common
    with the parent, as no fork(2) has.  Where that cannot be seen (another user's process) every
    child is taken for one.
    """
    if same_memory(child, parent):
        return True
    program = ""
    with suppress(OSError):
        program = str(Path(f"/proc/{parent}/exe").readlink())
    own = [one for one in _code(parent) if one[5:] == [program]]
    if not own:
        return True
    has = _code(child)
    return bool(has) and not any(one in has for one in own)


class ChildOf:
    """The child that a process of ours starts by itself, with the interface of a Popen.

    It is in its parent's process group, and is ended with it.  `besides` are other children of it,
    and so are those that run the parent's own program: QEMU tries in one what it may do, and forks
    the one that becomes another program later.
    """

    def __init__(self, parent: int, besides: Collection[int] = ()) -> None:
        self._parent = parent
        self._besides = besides
        self._found: process.Foreign | None = None

    @property
    def pid(self) -> int:
        """Its process id; 0 until there is one."""
        if not self._found:
            found = [
                child
                for child in process.children(self._parent)
                if child not in self._besides and _is_another(child, self._parent)
            ]
            if not found and not self._parent_lives:
                found = [self._left_behind()]
            if any(found):
                self._found = process.Foreign(found[-1])
        return self._found.pid if self._found else 0

    @property
    def _parent_lives(self) -> bool:
        return Path(f"/proc/{self._parent}").exists()

    def _left_behind(self) -> int:
        """Return the process that is still in the parent's group, or 0 (proc_pid_stat(5))."""
        for directory in Path("/proc").glob("[0-9]*"):
            if process.stat(int(directory.name))[2:3] == [str(self._parent)]:
                return int(directory.name)
        return 0

    def poll(self) -> int | None:
        """Return None until it has ended, or can come no more; only its parent knows how it did."""
        if self.pid and self._found:
            return self._found.poll()
        return None if self._parent_lives else process.ENDED


class Become:
    """What a process of ours is once it has executed another program, in its own place.

    Its command line has `mark` in it then.
    """

    def __init__(self, program: process.Process, mark: str) -> None:
        self._process = program
        self._mark = mark.encode()

    @property
    def pid(self) -> int:
        """Its process id; 0 as long as it is what it was (proc_pid_cmdline(5))."""
        with suppress(OSError):
            if self._mark in Path(f"/proc/{self._process.pid}/cmdline").read_bytes():
                return self._process.pid
        return 0

    def poll(self) -> int | None:
        """Return None until the process has ended, whichever program it runs."""
        return self._process.poll()
