# SPDX-License-Identifier: GPL-2.0-or-later
"""The new QEMU starts in the old one's address space: what that must not harm.

Parameters (avocado -p): as in test_upgrade.py; rounds (8): how many new QEMUs end at random
instants; seed: of these.
"""

import errno
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import avocado
import inject
from rearrange import guest_ram
from upgrading import SECOND_QEMU, Upgrading

from lab.base.deadline import Deadline
from lab.mechanisms import Asked, Flip
from lab.model import Outcome, Result
from lab.vm.qemu import Qemu, Vm

#: A new QEMU is up and has the guest after this long on a quiet machine (s), more or less.
_LONGEST_S = 0.25
#: More than loading the device state of such a guest touches (bytes).
_TOUCHED = 4 << 20
#: What the kernel is made to map apart, and every how many bytes (no multiple of a huge page).
_PAGE, _PIECES, _APART = 4096, 16, (5 << 20) + 3 * 4096
_SIGNALS = (signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT)


class Remap(Upgrading, avocado.Test):
    """Upgrades in one address space.

    :avocado: tags=medium
    """

    timeout = 7200
    ram = "512M"

    def test_upgrade(self) -> None:
        """All memory stays where it is, but for what loading the devices touched."""
        result = self.passes("remap", 1 + 2 * SECOND_QEMU)
        self.assertEqual(self.moved(result, "copied_bytes"), 0)
        used = sum(block.used_bytes for block in result.blocks)
        faulted = self.moved(result, "faulted_bytes")
        self.assertEqual(self.moved(result, "remapped_bytes"), used - faulted)
        self.assertTrue(0 < faulted < _TOUCHED, faulted)

    def test_memory_in_pieces(self) -> None:
        """The kernel has guest memory as mappings that begin at any page: all of it moves."""
        for mechanism in ("remap", "flip"):
            with _beforehand(_split) as done:
                result = self.passes(mechanism, 2.3)
            self.assertEqual(done, [0] * _PIECES)
            if mechanism == "remap":
                self.assertEqual(self.moved(result, "copied_bytes"), 0)

    def test_memory_that_cannot_move(self) -> None:
        """The kernel refuses to move a page after the commit: it is copied, and counted so."""
        with _beforehand(_seal) as done:
            result = self.upgrade("remap", 2.3)
        if done == [-errno.ENOSYS]:
            self.cancel("this kernel has no mseal(2), which came with Linux 6.10")
        self.assertEqual(done, [0])
        self.whole(result)
        self.assertEqual(result.outcome, Outcome.UPGRADED)
        self.assertEqual(self.moved(result, "copied_bytes"), _PAGE)

    def test_new_ends_at_any_time(self) -> None:
        """A new QEMU crashes or is killed: the guest is whole, in whichever QEMU has it.

        :avocado: tags=fault
        """
        seed = int(self.params.get("seed", default=time.time_ns()))
        self.log.info("again: -p seed=%d", seed)
        chance = random.Random(seed)
        seen, olds = [], list[Vm]()
        for number in range(int(self.params.get("rounds", default=8))):
            delay_s, how = chance.uniform(0, _LONGEST_S), chance.choice(_SIGNALS)

            def end(old: Vm, new: Vm, delay_s: float = delay_s, how: int = how) -> None:
                for _ in Deadline.after(30, "the new QEMU is there").poll(0.0005):
                    if new.pid:
                        break
                time.sleep(delay_s)
                olds.append(old)
                if "committed" not in _phases(old):
                    os.kill(new.pid, how)

            result = self.upgrade("remap", 2.3, end)
            self.log.info("%d: %s after %.0f ms: %s", number, how, delay_s * 1e3, result.outcome)
            seen.append(result.outcome)
            if result.outcome is Outcome.LOST:  # killed between that look and the new QEMU's turn
                self.assertIn("committed", _phases(olds[-1]), result.reasons)
            else:
                self.whole(result)
        self.assertIn(Outcome.ROLLED_BACK, seen)

    def whole(self, result: Result) -> None:
        """Assert that one QEMU runs the guest, with all of its memory."""
        self.assertIn(result.outcome, {Outcome.ROLLED_BACK, Outcome.UPGRADED}, result.reasons)
        self.assertEqual(result.integrity.bad_pages, 0)
        self.assertEqual(result.integrity.pages_total * 4096, result.touched_bytes)
        self.assertGreaterEqual(result.integrity.pages_checked_after, result.integrity.pages_total)


def _phases(old: Vm) -> set[str]:
    """Return what the old QEMU has announced so far."""
    return {e.data["phase"] for e in old.events if e.name == "LOCALHOST_MIGRATION"}


@contextmanager
def _beforehand(what: Callable[[int], list[int]]) -> Iterator[list[int]]:
    """Do something to the old QEMU just before the upgrade; what it returned is in the list."""
    arguments, done = Flip.arguments, list[int]()

    def after_it(self: Flip, old: Qemu, new: Qemu, asked: Asked) -> dict[str, Any]:
        done.extend(what(old.pid))
        return arguments(self, old, new, asked)

    with mock.patch.object(Flip, "arguments", after_it):
        yield done


def _split(pid: int) -> list[int]:
    """Have guest memory in mappings of their own that begin and end at any page."""
    start, _ = guest_ram(pid)
    with inject.stopped(pid) as thread:
        return [
            thread.call(inject.MADVISE, start + (n + 1) * _APART, (n + 1) * _PAGE, inject.RANDOM)
            for n in range(_PIECES)
        ]


def _seal(pid: int) -> list[int]:
    """Forbid to move one page of guest memory."""
    start, _ = guest_ram(pid)
    with inject.stopped(pid) as thread:
        return [thread.call(inject.MSEAL, start + _APART, _PAGE)]
