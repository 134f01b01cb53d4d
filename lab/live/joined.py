# SPDX-License-Identifier: GPL-2.0-or-later
"""QEMUs in one address space (``remap``): why one would not start another, and when it is alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from lab.base import process
from lab.base.deadline import Deadline, DeadlineError
from lab.base.progress import note
from lab.host import facts

#: Before it, the core dump of one process ends all that share its memory.
_LINUX = (5, 16)
_KSM = Path("/sys/kernel/mm/ksm/run")
#: How many mappings an address space may have (Documentation/admin-guide/sysctl/vm.rst).
_MAX_MAPPINGS = Path("/proc/sys/vm/max_map_count")
#: And how many the old QEMU wants beside twice its own (MM_MAPPINGS_SPARE in localhost-mm.c).
_SPARE_MAPPINGS = 1024
#: How long the new QEMU may take to put away what the old one left (s).
_ALONE_S = 30.0


def reasons(pid: int) -> Iterator[str]:
    """Yield what the old QEMU would say in ``fallback``, as far as it can be seen from outside."""
    if facts.linux() < _LINUX:
        yield f"two QEMUs in one address space take Linux {_LINUX[0]}.{_LINUX[1]}; take flip"
    if filtered(process.status(pid, "Seccomp")):
        yield "the QEMU's system calls are filtered (-sandbox); take flip"
    if _KSM.exists() and _KSM.read_text(encoding="ascii").strip() == "1":
        yield "the host merges pages (KSM); take flip"
    try:
        mappings = Path(f"/proc/{pid}/maps").read_bytes().count(b"\n")
    except OSError as error:
        yield f"its mappings cannot be counted ({error.strerror}); take flip"
        return
    yield from crowded(mappings, int(_MAX_MAPPINGS.read_text(encoding="ascii")))


def filtered(mode: str) -> bool:
    """Return whether the mode that is told (proc_pid_status(5)), if any, is one with filters."""
    return mode != "0"


def crowded(mappings: int, most: int) -> Iterator[str]:
    """Yield why a QEMU with so many mappings has no room for those of another one."""
    needed = 2 * mappings + _SPARE_MAPPINGS
    if needed > most:
        yield (
            f"two QEMUs may need {needed} mappings, and vm.max_map_count is {most}; raise it, or "
            "take flip"
        )


def wait_alone(pid: int, mark: str) -> None:
    """Wait until a QEMU has put away what the old one, which has ended, left in its address space.

    The last thing that it does about it is to have its own command line in /proc, with `mark` in
    it.  Where it cannot, /proc names the old one's for good, and that is noted.
    """
    with suppress(DeadlineError, FileNotFoundError):
        for _ in Deadline.after(_ALONE_S, "the new QEMU is alone").poll(0.01):
            if mark.encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
                return
    note(f"/proc/{pid}/cmdline is still the old QEMU's: what that left may be there, too")
