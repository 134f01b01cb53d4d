# SPDX-License-Identifier: GPL-2.0-or-later
"""Processors reserved for the guest, by ``--pin``: measurements with less noise.

tuna(8) moves the lab, what it starts, and the host's interrupts to one half of the processors; the
guest's virtual processors get the other half.  Threads end with the run.  Where the interrupts were
is written down before they are moved, and they are put back when the run ends or, should it be
killed, by the next run.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from lab.base.files import write_whole
from lab.base.layout import Layout, locked
from lab.base.process import run
from lab.base.progress import note
from lab.model import Pinning

#: The system's own: PyPI's viewer of profiles has the same name, and may come first on PATH.
_TUNA_PATH = "/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin"
_IRQS = Path("/proc/irq")
_WAITING = "waiting for another run that has processors to itself"


@dataclass(frozen=True)
class Pins:
    """Which of the host's processors are the guest's; none when nothing is pinned."""

    guest: tuple[int, ...] = ()
    others: tuple[int, ...] = ()

    def keep(self, threads: Sequence[int]) -> None:
        """Let threads, those of virtual processors, run on the guest's processors and only there.

        Done without tuna, whose start would be in the middle of what is measured.
        """
        for thread in threads if self.guest else ():
            with suppress(ProcessLookupError):
                os.sched_setaffinity(thread, self.guest)

    def record(self) -> Pinning | None:
        """Return it for the result."""
        if not self.guest:
            return None
        return Pinning(guest_cpus=list(self.guest), other_cpus=list(self.others))


NOT_PINNED = Pins()


@contextmanager
def pinned(layout: Layout, *, wanted: bool) -> Iterator[Pins]:
    """Have processors for the guest for as long as the block lasts, or say why there are none."""
    mark = layout.cache / "pinned.json"
    cpus = sorted(os.sched_getaffinity(0))
    lacking = _lacking(cpus)
    if wanted and lacking:
        note(f"nothing is pinned: {lacking}")
    if lacking or not (wanted or mark.exists()):
        yield NOT_PINNED
        return
    with locked(mark, _WAITING):
        _put_back(mark)
        if not wanted:
            yield NOT_PINNED
            return
        half = (len(cpus) + 1) // 2
        pins = Pins(guest=tuple(cpus[half:]), others=tuple(cpus[:half]))
        _write_down(mark)
        try:
            _move("irqs", _movable(), pins.others)
            _move("threads", _own_threads(), pins.others)
            yield pins
        finally:
            _put_back(mark)
            for thread in _own_threads():
                with suppress(ProcessLookupError):
                    os.sched_setaffinity(thread, cpus)


def _lacking(cpus: list[int]) -> str:
    """Return why nothing can be pinned, or an empty string."""
    if shutil.which("tuna", path=_TUNA_PATH) is None:
        return "tuna is not here (apt-get install tuna)"
    if len(cpus) < 2:
        return "there is only one processor"
    if os.geteuid() != 0:
        return "only root may move the host's interrupts"
    return ""


def _own_threads() -> list[int]:
    return [int(task.name) for task in Path("/proc/self/task").iterdir()]


def _movable() -> list[int]:
    """Return the interrupts that say where they go."""
    return sorted(int(file.parent.name) for file in _IRQS.glob("[0-9]*/smp_affinity_list"))


def _write_down(mark: Path) -> None:
    """Keep where every interrupt goes (Documentation/core-api/irq/irq-affinity.rst)."""
    now = {
        irq: (_IRQS / str(irq) / "smp_affinity_list").read_text(encoding="ascii").strip()
        for irq in _movable()
    }
    write_whole(mark, json.dumps(now))


def _put_back(mark: Path) -> None:
    """Let every interrupt go where `mark` says, if there is one, and remove it."""
    try:
        before = json.loads(mark.read_text(encoding="ascii"))
    except FileNotFoundError:
        return
    for irq, cpus in before.items():
        with suppress(OSError):  # gone by now, or one that the kernel never moves
            (_IRQS / irq / "smp_affinity_list").write_text(cpus, encoding="ascii")
    mark.unlink()


def _move(what: str, numbers: Sequence[int], cpus: Sequence[int]) -> None:
    """Call tuna: 0.15 has an option for what later ones have a command for."""
    if not numbers:
        return
    tuna = shutil.which("tuna", path=_TUNA_PATH) or "tuna"
    where = ["--cpus", ",".join(map(str, cpus)), f"--{what}", ",".join(map(str, numbers))]
    is_option = "--move" in run([tuna, "--help"], check=False).stdout
    run([tuna, *where, "--move"] if is_option else [tuna, "move", *where])
