# SPDX-License-Identifier: GPL-2.0-or-later
"""Whatever becomes of the guest's pages while the new QEMU starts: every one arrives.

Parameters (avocado -p): as in test_upgrade.py; rounds=N is how many upgrades a test makes.
"""

from collections import Counter

import avocado
import rearrange
from upgrading import SECOND_QEMU, Upgrading

from lab.vm.qemu import Vm

_RATIO = 1 + 3 * SECOND_QEMU


class Sound(Upgrading, avocado.Test):
    """With ``--verify`` the old QEMU compares every page with the new one's before the commit.

    :avocado: tags=medium
    """

    ram = "512M"
    dirty_rate = "100M"
    timeout = 1800

    def test_hostile(self) -> None:
        """The kernel rearranges the guest's huge pages, and the guest rewrites them."""
        done: Counter[int] = Counter()
        for number in range(int(self.params.get("rounds", default=2))):
            at_work: list[rearrange.Kernel] = []

            def begin(
                old: Vm, _new: Vm, at_work: list[rearrange.Kernel] = at_work, number: int = number
            ) -> None:
                at_work.append(rearrange.Kernel(old.pid, number, seconds=0.5))
                at_work[0].start()

            result = self.upgrade("flip", _RATIO, begin, verify=True)
            at_work[0].join()
            self.assertEqual(result.reasons, [])
            self.assertEqual(result.integrity.bad_pages, 0)
            self.assertGreater(self.moved(result, "copied_bytes"), 0)
            done += at_work[0].done
        self.assertGreater(done[rearrange.COLD], 0)
        self.assertGreater(done[rearrange.COLLAPSE], 0)

    def test_late(self) -> None:
        """A late start shares every page as it is."""
        self.assertEqual(self.upgrade("flip-late", _RATIO, verify=True).reasons, [])

    def test_devices(self) -> None:
        """No device of this guest writes to its memory after its state was saved.

        One that did would crash the old QEMU, which write-protects the memory then.
        """
        for mechanism in ("gift", "handover"):
            result = self.upgrade(mechanism, _RATIO, verify=True, workload="network")
            self.assertEqual(result.reasons, [])
