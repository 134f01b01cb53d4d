# SPDX-License-Identifier: GPL-2.0-or-later
"""The guest without Linux changes QEMUs too: under KVM even where KVM cannot run Linux.

Parameters (avocado -p): ram (1G), touch (75%), dirty_rate (50M; test_flip: 20M), accel (auto), old,
new, limit_pause_ms (120000: a guest that is stuck).
"""

import avocado
from upgrading import SECOND_QEMU, Upgrading, held

from lab.base.deadline import Deadline
from lab.model import Outcome, Result, VerdictKind
from lab.vm.qemu import Vm

MODES = ("flip", "zero", "stale", "swap", "table")


class Micro(Upgrading, avocado.Test):
    """Its own checker must see what the agent on Linux sees.

    :avocado: tags=quick
    """

    guest = "micro"

    def test_flip(self) -> None:
        """Private memory stays where it is, under KVM where that runs this guest."""
        # Under KVM it does change that much, and a new QEMU may take seconds to start.
        result = self.passes("flip", 1 + SECOND_QEMU, verify=True, dirty_rate="20M")
        self.assertGreater(self.moved(result, "flipped_bytes"), 0.9 * result.ram_bytes)
        self.assertEqual(result.integrity.heartbeats_lost, 0)

    def test_flip_late(self) -> None:
        """The same of a guest that stands still from before the fork."""
        result = self.passes("flip-late", 1 + SECOND_QEMU, verify=True)
        self.assertEqual(self.moved(result, "copied_bytes"), 0)

    def test_handover(self) -> None:
        """Shared memory, which both QEMUs map."""
        result = self.passes("handover", 1 + SECOND_QEMU, verify=True)
        self.assertGreater(self.moved(result, "handed_over_bytes"), 0.9 * result.ram_bytes)

    def test_new_qemu_killed(self) -> None:
        """Whatever becomes of the new QEMU: the guest goes on where it was."""
        for mechanism in ("flip", "flip-late", "gift"):
            self.rolled_back(self.new_killed(mechanism, 2.3))

    def test_held_while_the_guest_writes(self) -> None:
        """A new QEMU is given up when the guest has changed too much."""
        with held():
            result = self.upgrade("flip", 2.3, dirty_rate="200M")
        self.rolled_back(result)
        self.assertIn("max-changed", " ".join(result.reasons))
        self.assertIsNone(result.pause_ms.before_stop)  # there was no STOP

    def rolled_back(self, result: Result) -> None:
        """Assert that the guest runs under the old QEMU and lacks nothing."""
        self.assertEqual(result.outcome, Outcome.ROLLED_BACK, result.reasons)
        self.assertEqual(result.integrity.bad_pages, 0)
        self.assertGreaterEqual(result.integrity.pages_checked_after, result.integrity.pages_total)

    def test_gift(self) -> None:
        """The pipe: memory does not double, and the counters say gifted."""
        result = self.passes("gift", 1 + SECOND_QEMU)
        self.assertGreaterEqual(self.moved(result, "gifted_bytes"), 0.9 * result.touched_bytes)
        self.assertEqual(result.integrity.heartbeats_lost, 0)

    def test_precopy(self) -> None:
        """Ordinary live migration: the accelerator's own log of dirty pages."""
        self.assertGreater(self.passes("precopy", 2.3).memory.ratio, 1.7)

    def test_stop_copy(self) -> None:
        """Ordinary migration of a stopped guest."""
        self.assertGreater(self.passes("stop-copy", 2.3).memory.ratio, 1.7)

    def test_corruption_is_caught(self) -> None:
        """Every kind of damage, done while the guest moves, is found and counted."""

        def damage(old: Vm, _new: Vm) -> None:
            for number, mode in enumerate(MODES):
                old.control.call(
                    "corrupt", Deadline.after(30, mode), page=2000 + 2000 * number, mode=mode
                )

        result = self.upgrade("precopy", 2.3, damage)
        self.assertEqual(result.verdict, VerdictKind.FAIL)
        # A swap damages two pages; a damaged table entry accuses a page that is well.
        self.assertEqual(result.integrity.bad_pages, len(MODES) + 1)
        self.assertEqual(result.integrity.bad_tables, 1)
