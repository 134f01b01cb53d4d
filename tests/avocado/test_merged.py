# SPDX-License-Identifier: GPL-2.0-or-later
"""Guests whose pages the kernel has merged with another guest's (KSM): each keeps its own.

Merging is a setting of the whole host: the test needs root, and puts back what it found.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import avocado
from bothqemus import BothQemus
from byhand import ByHand, Guest

from lab.base.deadline import Deadline
from lab.base.errors import PreconditionError
from lab.live import planning
from lab.live.move import Mover
from lab.measure import integrity
from lab.model import Outcome

_KSM = Path("/sys/kernel/mm/ksm")
#: So quick that a test can wait for it (Documentation/admin-guide/mm/ksm.rst in Linux).
_QUICK = {"pages_to_scan": "20000", "sleep_millisecs": "1", "run": "1"}
#: Written to ``run``: take all apart again.
_APART = "2"
#: How much of each guest must have been merged (4 KiB pages).
_MERGED = 8192


class Merged(ByHand, BothQemus, avocado.Test):
    """Two guests with the same contents, as hosts that merge have them.

    :avocado: tags=thorough
    """

    timeout = 900
    series = True

    @contextmanager
    def merging(self) -> Iterator[None]:
        """Have the kernel merge equal pages; cancel where it cannot."""
        if os.getuid() or not _KSM.is_dir() or not Path("/proc/self/ksm_merging_pages").exists():
            self.cancel("root is needed, and a kernel that merges pages and says how many")
        before = {name: (_KSM / name).read_text(encoding="ascii") for name in _QUICK}
        try:
            for name, value in _QUICK.items():
                (_KSM / name).write_text(value, encoding="ascii")
            yield
        finally:
            (_KSM / "run").write_text(_APART, encoding="ascii")
            for name, value in before.items():
                (_KSM / name).write_text(value, encoding="ascii")

    def merged(self, pid: int) -> int:
        """Return how many pages of a process are shared by merging (proc(5))."""
        return int(Path(f"/proc/{pid}/ksm_merging_pages").read_text(encoding="ascii"))

    def moved(self, one: Guest, mechanism: str) -> None:
        """Upgrade a guest, and assert that it has every page of its own."""
        (done,) = Mover(self.layout).all([planning.plan(str(one.vm.pid), self.new, mechanism)], 1)
        self.assertEqual((done.outcome, done.failure), (Outcome.UPGRADED, ""))
        report = integrity.check(one.control, self.touched)
        self.assertEqual(report.status["bad_pages"], 0)
        self.assertEqual(report.full_pass["pages_checked"] * 4096, self.touched)

    def test(self) -> None:
        """The first is moved while it shares pages with the second, which is then moved itself."""
        for mechanism in ("flip", "flip-late"):
            with (
                self.by_hand(rate=0) as first,
                self.by_hand(rate=0) as second,
                self.merging(),
            ):
                enough = Deadline.after(120, "the kernel merges the guests' pages")
                for _ in enough.poll(0.1):
                    if min(self.merged(one.vm.pid) for one in (first, second)) >= _MERGED:
                        break
                with self.assertRaisesRegex(PreconditionError, "the host merges pages"):
                    planning.plan(str(first.vm.pid), self.new, "remap")
                self.moved(first, mechanism)
                self.moved(second, mechanism)
