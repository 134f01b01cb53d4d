# SPDX-License-Identifier: GPL-2.0-or-later
"""A TCP connection into the guest stays open while it changes QEMUs, and not a byte is lost.

Parameters (avocado -p): as in test_upgrade.py.
"""

import asyncio
import ctypes
import os
import time
from unittest import mock

import avocado
from upgrading import SECOND_QEMU, Upgrading

from lab import mechanisms
from lab.base.deadline import Deadline
from lab.mechanisms import Asked, FlipLate, Precopy
from lab.model import Findings, Outcome, Result, VerdictKind
from lab.vm.qemu import Vm
from lab.workloads.traffic import Traffic

#: What the second QEMU itself needs, as a share of this smaller guest.
_RATIO = 1 + 2 * SECOND_QEMU
#: The tap's queue and the buffers of both sockets have room for ten thousand packets or more; a
#: datagram comes each millisecond, and a segment of the stream (ms).
_QUEUED_MS = 4000
#: Then nothing of the stream is underway any more; then more datagrams have come than a guest's
#: queue has room for, which is 256 (s).
_QUIET_S, _FILLED_S = 0.5, 1.0
#: linux/ptrace.h and linux/wait.h
_PTRACE_DETACH, _PTRACE_SEIZE, _PTRACE_INTERRUPT = 17, 0x4206, 0x4207
_WALL = 0x40000000
_GO = Precopy.go
#: A smaller guest, and QEMUs that know nothing of it.
_IDLE = {"workload": "network", "ram": "256M", "touch": "25%", "dirty_rate": "1M"}
_STOCK = {"old": "stock:old", "new": "stock:new", "ram": "256M", "touch": "25%"}


class _Full(FlipLate):
    """Has the guest stopped when its queue of packets is full, and a datagram more waits in QEMU.

    The guest's processor is kept from running with ptrace(2), and let go when it has to stop.  The
    stream pauses: it would send again what was lost.
    """

    name = "full-flip-late"

    def go(self, old: Vm, new: Vm, asked: Asked) -> None:
        processor = old.monitor.execute("query-cpus-fast")[0]["thread-id"]
        with mock.patch.object(Traffic, "_send_stream", lambda _traffic: None):
            time.sleep(_QUIET_S)
            while not self.go_full(old, new, asked, processor):
                pass

    def go_full(self, old: Vm, new: Vm, asked: Asked, processor: int) -> bool:
        """Begin the move while that thread of the old QEMU does not run; tell whether that was.

        A thread that has the big lock has to go on first: QEMU would do nothing at all.
        """
        client, loop = old.monitor._client, old.monitor._loop
        _ptrace(_PTRACE_SEIZE, processor)
        _ptrace(_PTRACE_INTERRUPT, processor)
        os.waitpid(processor, _WALL)
        answer = asyncio.run_coroutine_threadsafe(client.execute("query-status"), loop)
        try:
            time.sleep(_FILLED_S)
            if not answer.done():
                return False
            super().go(old, new, asked)
            for _ in Deadline.after(30, "the guest is to stop").poll(0.001):
                if not old.monitor.execute("query-status")["running"]:
                    break
        finally:
            _ptrace(_PTRACE_DETACH, processor)
            answer.result(30)
        return True


def _ptrace(request: int, thread: int) -> None:
    """Call ptrace(2) without its last two arguments; raise OSError."""
    arguments = (ctypes.c_long(request), ctypes.c_long(thread), None, None)
    if ctypes.CDLL(None, use_errno=True).ptrace(*arguments):
        raise OSError(ctypes.get_errno(), f"ptrace: {os.strerror(ctypes.get_errno())}")


class Network(Upgrading, avocado.Test):
    """The verdict says what the workload found; here is what it cannot know.

    :avocado: tags=quick
    """

    ram = "512M"

    def test_flip(self) -> None:
        """One tap for both QEMUs: what comes while the guest stands still waits there.

        Nothing between the lab's two ends may lose a datagram then: the tap's queue and the guest's
        buffer are long enough, and no QEMU takes a packet that it cannot deliver any more.
        """
        for mechanism in ("flip", "flip-late"):
            found = self.found(self.passes(mechanism, _RATIO, workload="network"))
            gap_ms = found.figures["gap_ms"] or 0
            if gap_ms < _QUEUED_MS:
                # What an ordinary user's socket has no room for here is not the upgrade's doing.
                lost = (found.figures["lost"] or 0) - (found.figures["lost_lab"] or 0)
                self.assertEqual(lost, 0, f"{mechanism}: {found.figures}")

    def test_full(self) -> None:
        """A packet for which the guest had no room when it was stopped is the guest's all the same.

        It waits in the old QEMU then, which hands it on, or keeps it if it keeps the guest.
        """
        with mock.patch.object(mechanisms, "MECHANISMS", (*mechanisms.MECHANISMS, _Full())):
            self.nothing_lost(self.passes(_Full.name, 2.3, **_IDLE))
            result = self.new_killed(_Full.name, 2.3, **_IDLE)
        self.assertEqual(result.outcome, Outcome.ROLLED_BACK, result.reasons)
        self.nothing_lost(result)

    def nothing_lost(self, result: Result) -> None:
        """Assert that not a single datagram was lost, in no queue."""
        self.assertEqual(self.found(result).figures["lost"], 0)

    def test_transplant(self) -> None:
        """The same with two QEMUs that know nothing of it.

        A QEMU of the distribution's takes one packet more when its guest stands still already,
        and that one is lost with it; and one that waits for room in the guest's queue when it is
        stopped, as on a busy host, QEMU throws away (net_vm_change_state_handler()).
        """
        found = self.found(
            self.passes("transplant", 1 + 4 * SECOND_QEMU, workload="network", **_STOCK)
        )
        if (found.figures["gap_ms"] or 0) < _QUEUED_MS:
            lost = (found.figures["lost"] or 0) - (found.figures["lost_lab"] or 0)
            self.assertLessEqual(lost, 2, found.figures)

    def test_two_taps(self) -> None:
        """Who starts the new QEMU gives it a tap of its own, on the same bridge."""
        self.found(self.passes("gift", _RATIO, workload="network"))
        # Huge pages that postcopy freed in part may stay charged, all of them (docs/failures.md).
        self.found(self.passes("postcopy", 2.3, workload="network"))

    def test_precopy(self) -> None:
        """What everybody does today, for comparison."""
        self.found(self.passes("precopy", 2.3, workload="network"))

    def test_new_qemu_killed(self) -> None:
        """The connection stays where the guest stays."""
        for mechanism, pair in (("flip", {}), ("transplant", _STOCK)):
            result = self.new_killed(mechanism, 2.3, workload="network", **pair)
            self.assertEqual(result.outcome, Outcome.ROLLED_BACK)
            self.assertEqual(self.found(result).problems, [])

    def test_damage(self) -> None:
        """Whatever happens to the stream is found, and is the upgrade's fault."""
        for mode, words in (
            ("flip", "came back changed at byte"),
            ("drop", "came back changed at byte"),
            ("double", "came back"),  # changed, or more than was sent
            ("close", "the TCP connection"),  # closed, or reset with bytes unread
        ):

            def damage_and_go(
                mechanism: Precopy, old: Vm, new: Vm, asked: Asked, mode: str = mode
            ) -> None:
                # Asked any later, a guest on a busy host may be the new QEMU's already, and its
                # answer comes from there.
                deadline = Deadline.after(30, "the guest damages its answers")
                old.control.call("echo_damage", deadline, mode=mode)
                _GO(mechanism, old, new, asked)

            with mock.patch.object(Precopy, "go", damage_and_go):
                result = self.upgrade("precopy", 2.3, workload="network")
            self.assertEqual(result.verdict, VerdictKind.FAIL, mode)
            self.assertIn(words, " ".join(result.reasons))

    def found(self, result: Result) -> Findings:
        """Return the network's findings, which have to speak of a stream that went on."""
        self.assertEqual([found.name for found in result.workloads], ["network"])
        found = result.workloads[0]
        self.assertGreater(found.figures["tcp_bytes"], 100_000)
        self.assertGreater(found.figures["datagrams"], 1000)
        return found
