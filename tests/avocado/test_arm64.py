# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest of another architecture: neither the lab nor the series is about x86 guests only.

The host is an x86-64 one, so the guest is emulated.  Cancelled without a compiler for it.
"""

import avocado
from upgrading import Upgrading

from lab import mechanisms


class Arm64(Upgrading, avocado.Test):
    """arm64 on QEMU's board virt, with two processors.

    :avocado: tags=quick
    """

    guest = "tiny-arm64"
    ram = "512M"
    cpus = 2
    dirty_rate = "10M"

    def test_flip(self) -> None:
        """Private memory changes its owner, and no page of it is wrong."""
        result = self.passes("flip", self.memory_ratio("flip", self.ram), workload="network")
        self.assertEqual(result.machine.rpartition("-")[0], "virt")
        self.assertGreater(self.moved(result, "flipped_bytes"), 0.9 * result.ram_bytes)

    def test_transplant(self) -> None:
        """Its stream says how large a page is, which of ARM's is not known without."""
        result = self.passes("transplant", self.memory_ratio("transplant", self.ram))
        self.assertGreater(self.moved(result, "flipped_bytes"), 0.9 * result.ram_bytes)

    def test_every_mechanism(self) -> None:
        """All of them, there and back.

        :avocado: tags=thorough
        """
        for mechanism in mechanisms.MECHANISMS:
            for old, new in (("old", "new"), ("new", "old")):
                ratio = self.memory_ratio(mechanism.name, self.ram)
                self.passes(mechanism.name, ratio, old=old, new=new)
