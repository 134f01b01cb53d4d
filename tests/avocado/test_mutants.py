# SPDX-License-Identifier: GPL-2.0-or-later
"""A new QEMU that does one thing wrong, on purpose: each check has to find what it is there for.

The QEMU is built with the series in tests/mutants on top; PAGEFLIP_MUTANT says what is wrong.
Parameters (avocado -p): as in test_upgrade.py.
"""

import os
from unittest import mock

import avocado
from upgrading import SECOND_QEMU, Upgrading

from lab.base.layout import CHECKOUT
from lab.model import Outcome, Result
from lab.workloads import scripted

_RATIO = 1 + 2 * SECOND_QEMU
_TRIES = 4


class Mutants(Upgrading, avocado.Test):
    """Of two mechanisms: flip receives what changed, gift receives everything.

    :avocado: tags=fault,thorough
    """

    ram = "512M"

    def test_none(self) -> None:
        """The same QEMU that is not asked to do anything wrong passes."""
        for mechanism in ("flip", "gift"):
            result = self.mutant("", mechanism)
            self.assertEqual(result.reasons, [])

    def test_dropped_page(self) -> None:
        """A page that was sent stays what it was before."""
        for mechanism in ("flip", "gift"):
            self.caught("drop", mechanism)

    def test_flipped_bit(self) -> None:
        """One bit of one page."""
        for mechanism in ("flip", "gift"):
            self.caught("flip", mechanism)

    def test_page_twice(self) -> None:
        """Pages come once more when the guest has changed them: those it has are gone."""
        # While a new QEMU is slow to start, what the guest rewrites is in memory twice.
        self.caught("twice", "flip", 3.0, guest="micro", dirty_rate="200M")

    def test_late_resume(self) -> None:
        """Three seconds, seen by both clocks that go on: the guest's own stands still with it."""
        for mechanism in ("flip", "gift"):
            result = self.mutant("delay", mechanism, limit_pause_ms=2500)
            self.assertEqual(len(result.reasons), 2, result.reasons)
            for reason, clock in zip(result.reasons, ("QMP", "outside"), strict=True):
                self.assertIn(f"by the {clock} clock; the limit is 2500 ms", reason)

    def test_leak(self) -> None:
        """Memory that nobody needs, as much as the guest's own."""
        with self.assertRaisesRegex(AssertionError, "bytes were changed"):
            self.mutant("leak", "flip")
        for mechanism in ("flip-late", "gift"):
            result = self.mutant("leak", mechanism)
            self.assertEqual(len(result.reasons), 1, result.reasons)
            self.assertIn("memory peaked at", result.reasons[0])

    def test_disk_state(self) -> None:
        """A disk that has forgotten what it was told: the guest waits for it for ever."""
        with mock.patch.object(scripted, "_CHECK_S", 45.0):
            result = self.mutant(
                "disk", "flip", guest="debian", ram="1G", touch="25%", workload="disk"
            )
        self.assertEqual(result.outcome, Outcome.LOST)
        self.assertIn("workload disk is checked", " ".join(result.reasons))

    def mutant(self, what: str, mechanism: str, ratio: float = _RATIO, **more: object) -> Result:
        """Upgrade to the QEMU that does this wrong."""
        new = f"new+{CHECKOUT / 'tests' / 'mutants'}"
        with mock.patch.dict(os.environ, {"PAGEFLIP_MUTANT": what}):
            return self.upgrade(mechanism, ratio, new=new, **more)

    def caught(self, what: str, mechanism: str, ratio: float = _RATIO, **more: object) -> None:
        """Upgrade to it, and assert that memory is said to be bad, and nothing else.

        The page may be of the checker's own table: then it is that.  One that the guest rewrites
        before it is looked at is not bad any more, so that one upgrade may find nothing; and one
        of the guest's kernel or of its agent ends it, which is said as well, but is not this.
        """
        for _ in range(_TRIES):
            result = self.mutant(what, mechanism, ratio, **more)
            if result.reasons and result.outcome is not Outcome.LOST:
                break
        self.assertEqual(result.outcome, Outcome.UPGRADED)
        self.assertNotEqual(result.reasons, [])
        for reason in result.reasons:
            self.assertRegex(reason, "^(bad pages|damaged pieces of the checker's own table): ")
