# SPDX-License-Identifier: GPL-2.0-or-later
"""A running guest changes QEMUs, by every mechanism, and nothing is lost.

Parameters (avocado -p): ram (1G), touch (75%), dirty_rate (50M), accel (auto), old, new,
limit_pause_ms (120000: a guest that is stuck).
"""

import avocado
from upgrading import SECOND_QEMU, Upgrading

from lab import options
from lab.base.deadline import Deadline
from lab.model import Limits, Outcome, VerdictKind
from lab.vm.qemu import Vm


class Upgrade(Upgrading, avocado.Test):
    """One test for each mechanism; what all of them must keep is checked by `passes`.

    :avocado: tags=quick
    """

    def test_flip(self) -> None:
        """Private memory stays where it is; what the guest changed meanwhile is copied."""
        result = self.passes("flip", 1 + SECOND_QEMU)
        self.assertGreater(self.moved(result, "flipped_bytes"), 0.9 * result.ram_bytes)
        self.assertGreater(self.moved(result, "copied_bytes"), 0)
        self.assertEqual(self.moved(result, "gifted_bytes"), 0)

    def test_flip_late(self) -> None:
        """When the guest stands still before the fork nothing at all is copied."""
        result = self.passes("flip-late", 1 + SECOND_QEMU)
        self.assertGreaterEqual(self.moved(result, "flipped_bytes"), result.ram_bytes)
        self.assertEqual(self.moved(result, "copied_bytes"), 0)
        self.assertEqual(result.memory.new_huge_bytes, result.memory.old_huge_bytes)

    def test_confined(self) -> None:
        """With the guest's RAM and 256 MiB for both QEMUs, what doubles memory is killed."""
        for mechanism in ("flip", "gift"):
            result = self.upgrade(mechanism, 1 + SECOND_QEMU, memory_margin="256M")
            self.assertEqual(result.reasons, [])
            self.assertEqual(result.integrity.bad_pages, 0)
        result = self.upgrade("precopy", 2.3, memory_margin="256M")
        self.assertEqual(result.verdict, VerdictKind.FAIL)
        self.assertNotEqual(result.outcome, Outcome.UPGRADED)
        self.assertIn("killed by signal 9", " ".join(result.reasons))

    def test_flip_new_qemu_killed(self) -> None:
        """The new QEMU dies while it starts: the old one had everything all along.

        :avocado: tags=fault
        """
        for mechanism in ("flip", "flip-late"):
            result = self.new_killed(mechanism, 1 + SECOND_QEMU)
            self.assertEqual(result.outcome, Outcome.ROLLED_BACK, result.reasons)
            self.assertIn("killed by signal 9", " ".join(result.reasons))
            self.assertEqual(result.integrity.bad_pages, 0)
            self.assertGreaterEqual(
                result.integrity.pages_checked_after, result.integrity.pages_total
            )

    def test_small_pages(self) -> None:
        """Without transparent huge pages: what flip does by the unit, it does by the page."""
        for mechanism, ratio in (("flip", 1 + 3 * SECOND_QEMU), ("gift", 1 + SECOND_QEMU)):
            result = self.passes(mechanism, ratio, pages="4k")
            self.assertEqual(result.memory.old_huge_bytes, 0)
            self.assertEqual(result.memory.new_huge_bytes, 0)

    def test_gift(self) -> None:
        """The pipe: memory does not double, and the counters say gifted."""
        result = self.passes("gift", 1 + SECOND_QEMU)
        self.assertGreaterEqual(self.moved(result, "gifted_bytes"), 0.9 * result.touched_bytes)

    def test_copy(self) -> None:
        """The socket: memory does not double, and the counters say copied."""
        result = self.passes("copy", 1 + SECOND_QEMU)
        self.assertGreaterEqual(self.moved(result, "copied_bytes"), 0.9 * result.touched_bytes)
        self.assertEqual(self.moved(result, "gifted_bytes"), 0)

    def test_handover(self) -> None:
        """Shared memory stays where it is; only what is private goes through the pipe."""
        result = self.passes("handover", 1 + SECOND_QEMU)
        ram = options.size(self.params.get("ram", default="1G"))
        self.assertEqual(self.moved(result, "handed_over_bytes"), ram)
        self.assertLess(self.moved(result, "gifted_bytes"), 64 << 20)

    def test_cpr_transfer(self) -> None:
        """Upstream's own way, for shared memory.

        :avocado: tags=baseline
        """
        self.passes("cpr-transfer", 1 + SECOND_QEMU)

    def test_cpr_exec(self) -> None:
        """The old QEMU becomes the new one, in its own place: memory does not grow at all.

        :avocado: tags=baseline
        """
        result = self.passes("cpr-exec", 1 + SECOND_QEMU, old="new", new="new")
        self.assertLess(result.memory.pss_ratio, 1 + SECOND_QEMU)

    def test_postcopy(self) -> None:
        """Postcopy with release-ram; huge pages freed in part stay charged for a while.

        :avocado: tags=baseline
        """
        self.passes("postcopy", 2.3)

    def test_precopy(self) -> None:
        """Ordinary live migration loses nothing either, but doubles memory.

        :avocado: tags=baseline
        """
        self.assertGreater(self.passes("precopy", 2.3).memory.ratio, 1.7)

    def test_multifd(self) -> None:
        """The same over several connections.

        :avocado: tags=baseline
        """
        self.assertGreater(self.passes("multifd", 2.3).memory.ratio, 1.7)

    def test_ignore_shared(self) -> None:
        """Upstream's way for guests that were started on a file.

        :avocado: tags=baseline
        """
        self.passes("ignore-shared", 1 + SECOND_QEMU)

    def test_stop_copy(self) -> None:
        """Ordinary migration of a stopped guest.

        :avocado: tags=baseline
        """
        self.assertGreater(self.passes("stop-copy", 2.3).memory.ratio, 1.7)

    def test_doubling_is_caught(self) -> None:
        """The memory check must go red on precopy, and nothing else may."""
        result = self.upgrade("precopy", Limits().memory_ratio)
        self.assertEqual(result.verdict, VerdictKind.FAIL)
        self.assertEqual(len(result.reasons), 1, result.reasons)
        self.assertIn("memory peaked at", result.reasons[0])

    def test_corruption_is_caught(self) -> None:
        """Pages damaged on purpose, each in another way, must be found and counted."""

        def damage(old: Vm, _new: Vm) -> None:
            for page, mode in enumerate(("flip", "zero", "stale")):
                old.control.call(
                    "corrupt", Deadline.after(30, "corrupt a page"), page=1000 + page, mode=mode
                )

        result = self.upgrade("precopy", 2.3, damage)  # slow enough to be caught in the act
        self.assertEqual(result.verdict, VerdictKind.FAIL)
        self.assertEqual(result.integrity.bad_pages, 3)
        self.assertEqual(len(result.reasons), 1, result.reasons)
        self.assertIn("bad pages: 3", result.reasons[0])

    def test_new_qemu_killed(self) -> None:
        """The new QEMU dies at once: the guest goes on under the old one, whole.

        :avocado: tags=fault
        """
        result = self.new_killed("gift", 1 + SECOND_QEMU)
        self.assertEqual(result.outcome, Outcome.ROLLED_BACK, result.reasons)
        self.assertEqual(result.verdict, VerdictKind.FAIL)
        self.assertEqual(result.integrity.bad_pages, 0)
        self.assertGreaterEqual(result.integrity.pages_checked_after, result.integrity.pages_total)
