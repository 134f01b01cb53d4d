# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest of another architecture: neither the lab nor the series is about x86 guests only.

The host is an x86-64 one, so the guest is emulated.  Cancelled without a compiler for it.
"""

import avocado
from upgrading import Upgrading

from lab.model import Outcome


class Arm64(Upgrading, avocado.Test):
    """arm64 on QEMU's board virt, by every mechanism; the first test may have to build the pair.

    :avocado: tags=thorough
    """

    timeout = 3600
    guest = "tiny-arm64"
    ram = "512M"
    cpus = 2
    dirty_rate = "10M"

    def within(self, mechanism: str, *releases: str, **more: object) -> None:
        """Upgrade within each release.

        From one to the other QEMU itself moves no arm64 guest that it emulates: docs/pairs.md.
        """
        for name in releases or ("old", "new"):
            ratio = self.memory_ratio(mechanism, self.ram)
            result = self.passes(mechanism, ratio, old=name, new=name, **more)
            self.assertEqual(result.machine.rpartition("-")[0], "virt")

    def test_pair(self) -> None:
        """A device state that does not load is known when the guest can still go back."""
        for mechanism in ("flip", "transplant", "precopy"):
            result = self.upgrade(mechanism, self.memory_ratio(mechanism, self.ram))
            self.assertIn(result.outcome, {Outcome.UPGRADED, Outcome.ROLLED_BACK}, result.reasons)
            self.assertEqual(result.integrity.bad_pages, 0)
            self.assertGreaterEqual(
                result.integrity.pages_checked_after, result.integrity.pages_total
            )

    def test_flip(self) -> None:
        """With its traffic, through a card on a tap."""
        self.within("flip", workload="network")

    def test_flip_late(self) -> None:
        """The new QEMU starts when the guest stands still."""
        self.within("flip-late")

    def test_remap(self) -> None:
        """Two programs for an emulated processor in one address space."""
        self.within("remap")

    def test_gift(self) -> None:
        """Pages through a pipe."""
        self.within("gift")

    def test_copy(self) -> None:
        """What gift does where pages cannot be given."""
        self.within("copy")

    def test_handover(self) -> None:
        """Shared memory by descriptor."""
        self.within("handover")

    def test_transplant(self) -> None:
        """Its stream says how large a page is, which of ARM's is not known without."""
        self.within("transplant")

    def test_postcopy(self) -> None:
        """Upstream's, as the four that follow."""
        self.within("postcopy")

    def test_precopy(self) -> None:
        """While the guest runs."""
        self.within("precopy")

    def test_multifd(self) -> None:
        """By several channels."""
        self.within("multifd")

    def test_stop_copy(self) -> None:
        """While it stands still."""
        self.within("stop-copy")

    def test_cpr_transfer(self) -> None:
        """Shared memory, by upstream's means."""
        self.within("cpr-transfer")

    def test_cpr_exec(self) -> None:
        """Which only the new release has."""
        self.within("cpr-exec", "new")

    def test_ignore_shared(self) -> None:
        """RAM in a file."""
        self.within("ignore-shared")
