# SPDX-License-Identifier: GPL-2.0-or-later
"""Whatever goes wrong: one QEMU runs the guest, or it is said that none does; never two.

Parameters (avocado -p): as in test_upgrade.py.
"""

import asyncio
import os
import resource
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any
from unittest import mock

import avocado
from upgrading import SECOND_QEMU, Upgrading, held, hung, kill_new, stop_new

from lab import mechanisms
from lab.base import process
from lab.base.deadline import Deadline
from lab.host import cgroup
from lab.model import Outcome, Result, VerdictKind
from lab.vm.monitor import Monitor, QmpError
from lab.vm.qemu import Vm

#: What the second QEMU itself needs weighs more in so small a guest.
_RATIO = 1 + 4 * SECOND_QEMU
_EXECUTE = Monitor.execute

#: Its number, see capabilities(7).
_CAP_SYS_RESOURCE = 24


def _and_cancel(
    monitor: Monitor,
    command: str,
    arguments: Mapping[str, Any] | None = None,
    deadline: Deadline | None = None,
) -> Any:
    """Execute a command, and if it begins a move cancel it with the very next one.

    QEMU gets both at once.  Were the second one sent when the first one is answered, a guest on a
    busy host might be the new QEMU's before, and nobody could cancel any more.
    """
    if command not in {"localhost-migrate", "migrate"}:
        return _EXECUTE(monitor, command, arguments, deadline)
    both = [
        asyncio.run_coroutine_threadsafe(monitor._client.execute(*words), monitor._loop)
        for words in ((command, arguments), ("migrate_cancel",))
    ]
    first, _ = [answer.result(30) for answer in both]
    return first


def _slow_new(_old: Vm, new: Vm) -> None:
    """Let the new QEMU have a processor only now and then for two seconds."""
    for _ in range(40):
        with suppress(ProcessLookupError):
            if new.pid:
                os.kill(new.pid, signal.SIGSTOP)
                time.sleep(0.04)
                os.kill(new.pid, signal.SIGCONT)
        time.sleep(0.01)


#: What an old QEMU that can be killed asks to be left, with its page tables, and some (bytes).
_ASKED = 160 << 20


def _squeezing(room_bytes: int) -> Callable[[Vm], None]:
    """Return what leaves a QEMU's memory group that much."""

    def squeeze(old: Vm) -> None:
        group = _group_of(old)
        group.limit(group.current() + room_bytes)

    return squeeze


def _group_of(qemu: Vm) -> cgroup.MemoryGroup:
    """Return the memory group that the lab made for both QEMUs."""
    groups = Path(f"/proc/{qemu.pid}/cgroup").read_text(encoding="ascii").split()
    name = next(line.rpartition("/")[2] for line in groups if "pageflip-" in line)
    return cgroup.MemoryGroup(cgroup.groups_directory() / name, cgroup.cgroup_version())


class Faults(Upgrading, avocado.Test):
    """Faults of processes, of what they have to share, and of who asks for the upgrade.

    :avocado: tags=fault,medium
    """

    ram = "256M"
    touch = "50%"

    def test_new_stopped(self) -> None:
        """A new QEMU that does nothing at all is given up after the command's time (30 s)."""
        with hung():
            self.rolled_back("flip", None, "within 30000 ms", dirty_rate="0")

    def test_held_while_the_guest_writes(self) -> None:
        """It is given up when the guest has changed more than is good for the host's memory."""
        with held():
            self.rolled_back("flip", None, "max-changed", dirty_rate="100M", ram="512M")

    def test_new_bad_in_a_small_group(self) -> None:
        """Both QEMUs may use a tenth more than the old one did: a new one costs no guest.

        As much more as flip asks for, if the old one cannot keep itself from being killed.
        -p rounds=N: how many of them hang, crash or are slow, in turn.
        """

        def limit(old: Vm) -> None:
            group = _group_of(old)
            used = group.current()
            spared = process.capable(_CAP_SYS_RESOURCE)
            group.limit(used + (used // 10 if spared else max(used // 10, _ASKED)))

        for number in range(int(self.params.get("rounds", default=3))):
            bad = (stop_new, kill_new, _slow_new)[number % 3]
            waits = nullcontext() if bad is _slow_new else held()
            with waits, self.just_before(mechanisms.Flip, limit) as mechanism:
                result = self.upgrade(mechanism, 2.3, bad, dirty_rate="100M", ram="512M")
            self.assertIn(result.outcome, {Outcome.ROLLED_BACK, Outcome.UPGRADED}, number)
            self.assertTrue(bad is _slow_new or result.outcome is Outcome.ROLLED_BACK, number)
            self.assertNotIn("running out of it", " ".join(result.reasons))  # it did begin
            self.whole(result)

    def test_new_killed_at_any_time(self) -> None:
        """Before the commit the old QEMU has the guest, after it nobody: never both.

        :avocado: tags=thorough
        """
        seen = []
        for delay_ms in (0, 10, 40, 120):

            def kill(_old: Vm, new: Vm, delay_ms: int = delay_ms) -> None:
                time.sleep(delay_ms / 1000)
                kill_new(_old, new)

            seen.append(self.one_or_none("flip", kill).outcome)
        self.assertIn(Outcome.ROLLED_BACK, seen)

    def test_old_killed_after_the_commit(self) -> None:
        """The guest is the new QEMU's, and needs nobody else."""

        def kill(old: Vm, new: Vm) -> None:
            for _ in Deadline.after(60, "the guest resumes").poll(0.001):
                if any(event.name == "RESUME" for event in new.events):
                    os.kill(old.pid, signal.SIGKILL)
                    return

        for mechanism in ("flip", "gift"):
            result = self.upgrade(mechanism, _RATIO, kill)
            self.assertEqual(result.outcome, Outcome.UPGRADED, result.reasons)
            self.whole(result)

    def test_old_killed_before_the_commit(self) -> None:
        """There was one QEMU with the guest, and there is none any more.

        But for a new one that had everything by then, on a host so busy: it goes on.

        :avocado: tags=thorough
        """
        for mechanism in ("flip", "precopy"):
            result = self.upgrade(mechanism, 2.3, lambda old, _: os.kill(old.pid, signal.SIGKILL))
            if mechanism == "flip" and result.outcome is Outcome.UPGRADED:
                self.whole(result)
                continue
            self.assertEqual(result.outcome, Outcome.LOST)
            self.assertIn("killed by signal 9", " ".join(result.reasons))

    def test_cancelled(self) -> None:
        """Whoever asked for it may change their mind."""
        for mechanism in ("flip", "flip-late", "gift", "precopy"):
            words = "" if mechanism == "precopy" else "cancelled"  # QEMU says what broke
            with mock.patch.object(Monitor, "execute", _and_cancel):
                self.rolled_back(mechanism, lambda _old, _new: None, words)

    def test_second_at_once(self) -> None:
        """Another upgrade of the same guest is refused, and the first one goes on."""

        def again(old: Vm, new: Vm) -> None:
            with self.assertRaises(QmpError):
                mechanisms.Flip().go(old, new, mechanisms.Asked())

        for mechanism in ("flip", "gift"):
            result = self.upgrade(mechanism, _RATIO, again)
            self.assertEqual(result.reasons, [])

    def test_slow(self) -> None:
        """A new QEMU that gets a processor only now and then takes longer, and nothing else."""
        for mechanism in ("gift", "copy"):
            result = self.upgrade(mechanism, _RATIO, _slow_new)
            self.assertEqual(result.reasons, [])
            self.assertGreater(result.total_ms, 100)

    def test_no_address_space(self) -> None:
        """The new QEMU is refused memory: the old one's limits are its own (ENOMEM)."""

        def starve(old: Vm) -> None:
            used = Path(f"/proc/{old.pid}/statm").read_text(encoding="ascii").split()[0]
            limit = int(used) * resource.getpagesize() + (160 << 20)
            resource.prlimit(old.pid, resource.RLIMIT_AS, (limit, limit))

        with self.just_before(mechanisms.Flip, starve) as mechanism:
            self.rolled_back(mechanism, None, "")

    def test_no_memory(self) -> None:
        """Their memory group has room for a fork, and none for a new QEMU."""
        self.squeezed(16 << 20)

    def test_no_memory_to_fork(self) -> None:
        """There is no room for the fork either."""
        self.squeezed(1 << 20)

    def squeezed(self, room_bytes: int) -> None:
        """Leave the memory group that much, and assert that it costs the upgrade only.

        The kernel kills the new QEMU, or the fork fails.  An old QEMU that cannot keep itself from
        being killed does not begin.
        """
        words = "" if process.capable(_CAP_SYS_RESOURCE) else "running out of it could end both"
        with self.just_before(mechanisms.Flip, _squeezing(room_bytes)) as mechanism:
            self.rolled_back(mechanism, None, words, dirty_rate="1M")

    def rolled_back(
        self,
        mechanism: str,
        interfere: Callable[[Vm, Vm], object] | None,
        words: str,
        **more: object,
    ) -> None:
        """Upgrade, and assert that the guest goes on under the old QEMU as if nothing had been."""
        result = self.upgrade(mechanism, 2.3, interfere, **more)
        self.assertEqual(result.outcome, Outcome.ROLLED_BACK, result.reasons)
        self.assertEqual(result.verdict, VerdictKind.FAIL)
        self.assertIn(words, " ".join(result.reasons))
        self.whole(result)

    def one_or_none(
        self, mechanism: str, interfere: Callable[[Vm, Vm], object] | None, **more: str
    ) -> Result:
        """Upgrade, and assert that not both run the guest, and that it is whole if one does."""
        result = self.upgrade(mechanism, 2.3, interfere, **more)
        self.assertNotEqual(result.outcome, Outcome.DOUBLED)
        if result.outcome is Outcome.LOST:
            self.assertIn("ended by itself", " ".join(result.reasons))
        else:
            self.whole(result)
        return result

    def whole(self, result: Result) -> None:
        """Assert that the guest, wherever it is, lacks nothing."""
        self.assertEqual(result.integrity.bad_pages, 0)
        self.assertGreaterEqual(result.integrity.pages_checked_after, result.integrity.pages_total)
        self.assertEqual(result.integrity.heartbeats_doubled, 0)

    @contextmanager
    def just_before(
        self, base: type[mechanisms.Mechanism], action: Callable[[Vm], None]
    ) -> Iterator[str]:
        """Do something to the old QEMU when everything is ready; yields the mechanism's name."""

        class Changed(base):
            name = f"changed-{base.name}"

            def go(self, old: Vm, new: Vm, asked: mechanisms.Asked) -> None:
                action(old)
                super().go(old, new, asked)

        known = (*mechanisms.MECHANISMS, Changed())
        with mock.patch.object(mechanisms, "MECHANISMS", known):
            yield Changed.name
