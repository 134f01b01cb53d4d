# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest on private huge pages of the kernel's pool, which has not one page more than the guest.

Parameters (avocado -p): as in test_upgrade.py, ram (512M).
"""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager

import avocado
from upgrading import SECOND_QEMU, Upgrading

from lab import options
from lab.host import facts
from lab.model import Outcome


class Hugetlb(Upgrading, avocado.Test):
    """The pool was filled for one guest: whoever takes another page from it breaks something.

    :avocado: tags=quick
    """

    ram = "512M"

    def test_flip(self) -> None:
        """The pages change owner, and the pool is as it was when both QEMUs have ended."""
        with self.pool() as pages:
            result = self.passes("flip", 1 + SECOND_QEMU, pages="hugetlb")
            self.assertEqual(facts.free_huge_pages(), pages)
        self.assertGreater(self.moved(result, "flipped_bytes"), 0.9 * result.ram_bytes)
        self.assertEqual(result.memory.old_huge_bytes, result.ram_bytes)
        self.assertEqual(result.memory.new_huge_bytes, result.ram_bytes)

    def test_new_qemu_killed(self) -> None:
        """The guest keeps its pages under the old QEMU, and gives none of them up."""
        with self.pool() as pages:
            result = self.new_killed("flip", 1 + SECOND_QEMU, pages="hugetlb")
            self.assertEqual(facts.free_huge_pages(), pages)
        self.assertEqual(result.outcome, Outcome.ROLLED_BACK)
        self.assertEqual(result.integrity.bad_pages, 0)

    @contextmanager
    def pool(self) -> Iterator[int]:
        """Let exactly the guest's RAM be free in the pool for the block: that many pages.

        One test at a time: there is one pool.
        """
        wanted = options.size(self.params.get("ram", default=self.ram)) // facts.HUGE_PAGE
        try:
            knob = (facts.POOL / "nr_hugepages").open("r+", encoding="ascii", buffering=1)
        except OSError as error:
            self.cancel(f"the pool of huge pages cannot be set: {error}; run as root")
        with knob:
            fcntl.flock(knob, fcntl.LOCK_EX)
            before = int(knob.read())
            try:
                knob.write(f"{before - facts.free_huge_pages() + wanted}\n")
                if facts.free_huge_pages() != wanted:
                    self.cancel(f"the kernel has no {wanted} huge pages to give")
                yield wanted
            finally:
                knob.write(f"{before}\n")
