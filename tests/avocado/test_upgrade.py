# SPDX-License-Identifier: GPL-2.0-or-later
"""A running guest changes QEMUs, by every mechanism, and nothing is lost.

Parameters (avocado -p): ram (1G), touch (75%), dirty_rate (50M), accel (auto), old, new.
"""

import dataclasses
import os
import signal
from pathlib import Path

import avocado

from lab import options, pipeline
from lab.deadline import Deadline
from lab.errors import PreconditionError
from lab.layout import Layout
from lab.model import Limits, Outcome, Result, VerdictKind
from lab.upgrade import Interfere
from lab.vm import Vm

#: What the second QEMU itself needs, as a share of a guest of 1 GiB, and the noise of a busy host.
SECOND_QEMU = 0.15


class Upgrade(avocado.Test):
    """One test for each mechanism; what all of them must keep is checked by `upgrade`."""

    timeout = 600

    def upgrade(
        self, mechanism: str, memory_ratio: float, interfere: Interfere | None = None
    ) -> Result:
        """Upgrade the guest and return the result; cancel when this host cannot do it."""
        ram = options.size(self.params.get("ram", default="1G"))
        wanted = options.UpgradeOptions(
            ram_bytes=ram,
            touched_bytes=options.share(self.params.get("touch", default="75%"), ram),
            dirty_rate=options.size(self.params.get("dirty_rate", default="50M")),
            mechanism=mechanism,
            accel=self.params.get("accel", default="auto"),
            old=self.params.get("old", default="10.0"),
            new=self.params.get("new", default="10.2"),
            limits=Limits(memory_ratio=memory_ratio),
            reproduce=f"./pageflip upgrade --ram {ram} --mechanism {mechanism} "
            f"--limit-memory-ratio {memory_ratio}",
        )
        layout = dataclasses.replace(Layout.default(), out=Path(self.outputdir))
        try:
            result = pipeline.upgrade_once(layout, wanted, interfere)
        except PreconditionError as error:
            self.cancel(f"{error.message} {error.hint}")
        self.log.info("again: %s", wanted.reproduce)
        for line in pipeline.as_json(result).splitlines():
            self.log.info(line)
        return result

    def passes(self, mechanism: str, memory_ratio: float) -> Result:
        """Upgrade, and assert integrity, the pause and the memory."""
        result = self.upgrade(mechanism, memory_ratio)
        self.assertEqual(result.reasons, [])
        self.assertEqual(result.verdict, VerdictKind.PASS)
        self.assertEqual(result.outcome, Outcome.UPGRADED)
        self.assertEqual(result.integrity.bad_pages, 0)
        self.assertEqual(result.integrity.pages_total * 4096, result.touched_bytes)
        self.assertGreaterEqual(result.integrity.pages_checked_after, result.integrity.pages_total)
        self.assertGreater(result.integrity.pages_dirtied, 0)
        return result

    def moved(self, result: Result, counter: str) -> int:
        """Return a counter's sum over all blocks (bytes)."""
        return sum(getattr(block, counter) for block in result.blocks)

    def test_gift(self) -> None:
        """The pipe: memory does not double, and the counters say gifted."""
        result = self.passes("gift", 1 + SECOND_QEMU)
        self.assertGreaterEqual(self.moved(result, "gifted_bytes"), 0.9 * result.touched_bytes)

    def test_copy(self) -> None:
        """The socket: memory does not double, and the counters say copied."""
        result = self.passes("copy", 1 + SECOND_QEMU)
        self.assertGreaterEqual(self.moved(result, "copied_bytes"), 0.9 * result.touched_bytes)
        self.assertEqual(self.moved(result, "gifted_bytes"), 0)

    def test_cpr_transfer(self) -> None:
        """Upstream's own way, for shared memory."""
        self.passes("cpr-transfer", 1 + SECOND_QEMU)

    def test_postcopy(self) -> None:
        """Postcopy with release-ram; huge pages freed in part stay charged for a while."""
        self.passes("postcopy", 1.8)

    def test_precopy(self) -> None:
        """Ordinary live migration loses nothing either, but doubles memory."""
        self.assertGreater(self.passes("precopy", 2.3).memory.ratio, 1.7)

    def test_stop_copy(self) -> None:
        """Ordinary migration of a stopped guest."""
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
        """The new QEMU dies at once: the guest goes on under the old one, whole."""

        def kill(_old: Vm, new: Vm) -> None:
            os.kill(new.pid, signal.SIGKILL)

        result = self.upgrade("gift", 1 + SECOND_QEMU, kill)
        self.assertEqual(result.outcome, Outcome.ROLLED_BACK, result.reasons)
        self.assertEqual(result.verdict, VerdictKind.FAIL)
        self.assertEqual(result.integrity.bad_pages, 0)
        self.assertGreaterEqual(result.integrity.pages_checked_after, result.integrity.pages_total)
