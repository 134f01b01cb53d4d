# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest of another architecture: neither the lab nor the series is about x86 guests only.

The host is an x86-64 one, so the guest is emulated.  Cancelled without a compiler for it.
"""

import avocado
from upgrading import Upgrading


class Arm64(Upgrading, avocado.Test):
    """arm64 on QEMU's board virt, by every mechanism; the first test may have to build the pair.

    :avocado: tags=thorough
    """

    timeout = 3600
    guest = "tiny-arm64"
    ram = "512M"
    cpus = 2
    dirty_rate = "10M"

    def there_and_back(self, mechanism: str, *ways: tuple[str, str], **more: object) -> None:
        """Upgrade, and go back to the release before, each a guest of its own."""
        for old, new in ways or (("old", "new"), ("new", "old")):
            ratio = self.memory_ratio(mechanism, self.ram)
            result = self.passes(mechanism, ratio, old=old, new=new, **more)
            self.assertEqual(result.machine.rpartition("-")[0], "virt")

    def test_flip(self) -> None:
        """With its traffic, through a card on a tap."""
        self.there_and_back("flip", workload="network")

    def test_flip_late(self) -> None:
        """The new QEMU starts when the guest stands still."""
        self.there_and_back("flip-late")

    def test_remap(self) -> None:
        """Two programs for an emulated processor in one address space."""
        self.there_and_back("remap")

    def test_gift(self) -> None:
        """Pages through a pipe."""
        self.there_and_back("gift")

    def test_copy(self) -> None:
        """What gift does where pages cannot be given."""
        self.there_and_back("copy")

    def test_handover(self) -> None:
        """Shared memory by descriptor."""
        self.there_and_back("handover")

    def test_transplant(self) -> None:
        """Its stream says how large a page is, which of ARM's is not known without."""
        self.there_and_back("transplant")

    def test_postcopy(self) -> None:
        """Upstream's, as the four that follow."""
        self.there_and_back("postcopy")

    def test_precopy(self) -> None:
        """While the guest runs."""
        self.there_and_back("precopy")

    def test_multifd(self) -> None:
        """By several channels."""
        self.there_and_back("multifd")

    def test_stop_copy(self) -> None:
        """While it stands still."""
        self.there_and_back("stop-copy")

    def test_cpr_transfer(self) -> None:
        """Shared memory, by upstream's means."""
        self.there_and_back("cpr-transfer")

    def test_cpr_exec(self) -> None:
        """Which only the new release has."""
        self.there_and_back("cpr-exec", ("new", "new"))

    def test_ignore_shared(self) -> None:
        """RAM in a file."""
        self.there_and_back("ignore-shared")
