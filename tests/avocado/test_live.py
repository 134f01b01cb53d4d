# SPDX-License-Identifier: GPL-2.0-or-later
"""``pageflip upgrade --pid``: QEMUs that were started by hand, as anybody starts them.

The lab's agent is in the guest all the same, so that what is claimed can be checked: it connects
to sockets by their names, and the new QEMU finds another listener there.
"""

from contextlib import ExitStack

import avocado
from bothqemus import BothQemus
from byhand import ByHand, Guest

from lab import mechanisms
from lab.base import process
from lab.base.deadline import Deadline
from lab.base.errors import PreconditionError
from lab.live import look, planning
from lab.live.move import Mover
from lab.live.moved import Moved
from lab.measure import downtime, integrity
from lab.model import Outcome
from lab.vm.cmdline import Backing

_USUAL = ("-pidfile", "{sockets}/pid", "-monitor", "unix:{sockets}/hmp,server,nowait")
_NEVER = ["-chardev", "socket,id=never,path={sockets}/never"]


class Live(ByHand, BothQemus, avocado.Test):
    """Each guest's memory is filled and rewritten, and checked to the last page afterwards.

    :avocado: tags=medium
    """

    timeout = 600
    series = True

    def upgraded(self, one: Guest, moved: Moved) -> None:
        """Assert that the guest is whole, and that management finds it where it was."""
        self.assertEqual((moved.outcome, moved.failure), (Outcome.UPGRADED, ""))
        one.heart.wait(500, Deadline.after(60, "the guest's heart beats"), lambda: None)
        report = integrity.check(one.control, self.touched)
        self.assertEqual(report.status["bad_pages"], 0, report)
        self.assertEqual(report.full_pass["pages_checked"] * 4096, self.touched)
        beats = downtime.count(one.vm.heart.beats, one.heart.beats, 0)
        self.assertEqual(beats.doubled, 0)
        self.assertTrue(one.vm.dead)
        there = look.look(str(one.qmp))
        self.assertEqual((there.pid, there.binary.version), (moved.new_pid, self.new.version))
        pid = (one.vm.machine.sockets / "pid").read_text(encoding="ascii")
        self.assertEqual(int(pid), moved.new_pid)
        self.nothing_beside(one)

    def nothing_beside(self, one: Guest) -> None:
        """Assert that every file has its name, and there is no other one."""
        names = {path.name for path in one.vm.machine.sockets.iterdir()}
        self.assertEqual(names, {"control", "heartbeat", "hmp", "pid", "qmp"})

    def move(self, *guests: Guest, wanted: str = "auto") -> list[Moved]:
        """Do what the verb does."""
        plans = [planning.plan(str(one.vm.pid), self.new, wanted) for one in guests]
        return Mover(self.layout).all(plans, 1)

    def test_plain(self) -> None:
        """A plain ``-m 2G``, which moves by flip, and could once more."""
        with self.by_hand(ram="2048") as one:
            (moved,) = self.move(one)
            self.assertEqual(moved.mechanism, "flip")
            self.upgraded(one, moved)
            again = planning.plan(str(one.qmp), self.new, "auto")
            self.assertEqual(again.found.pid, moved.new_pid)

    def test_in_one_address_space(self) -> None:
        """By remap: rehearsed apart before, and alone after; it could go on in the same way."""
        with self.by_hand() as one:
            (moved,) = self.move(one, wanted="remap")
            self.assertEqual(moved.mechanism, "remap")
            again = planning.plan(str(one.qmp), self.new, "remap")
            self.assertEqual(again.found.pid, moved.new_pid)
            self.assertEqual(again.found.argv[0], str(self.new.path))
            self.upgraded(one, moved)

    def test_rehearsed(self) -> None:
        """The new QEMU loads the guest, which then goes on where it was, whole.

        What cannot be rehearsed itself is by the devices' state alone.
        """
        for mechanism in ("flip", "flip-late", "remap", "precopy", "postcopy"):
            with self.by_hand() as one:
                wanted = planning.plan(
                    str(one.vm.pid), self.new, mechanism, mechanisms.Asked(rehearse=True)
                )
                (moved,) = Mover(self.layout).all([wanted], 1)
                self.assertEqual((moved.outcome, moved.failure), (Outcome.REHEARSED, ""))
                there = look.look(str(one.qmp))
                self.assertEqual((there.pid, there.state), (one.vm.pid, "running"))
                report = integrity.check(one.vm.control, self.touched)
                self.assertEqual(report.status["bad_pages"], 0, report)
                self.assertEqual(report.full_pass["pages_checked"] * 4096, self.touched)
                self.assertLess(0.0, moved.pause_ms or 0.0)
                self.nothing_beside(one)

    def test_shared(self) -> None:
        """Memory with share=on: the lab starts the new QEMU, and leaves it there."""
        with self.by_hand(backing=Backing.MEMFD) as one:
            (moved,) = self.move(one)
            self.assertEqual(moved.mechanism, "handover")
            with self.assertRaises(PreconditionError):
                planning.plan(str(moved.new_pid), self.new, "flip")
            try:
                self.upgraded(one, moved)
            finally:
                self.end(moved.new_pid)

    def test_refused(self) -> None:
        """A blocker, and a device that the new QEMU lacks: the guest is not touched."""
        window = "memory-backend-memfd,id=window,size=1M,share=on"
        blocked = ["-object", window, "-device", "ivshmem-plain,memdev=window,master=off"]
        with self.by_hand(*blocked) as one, self.assertRaises(PreconditionError) as refused:
            self.move(one)
        self.assertIn("blocked: ", str(refused.exception))

    def test_sandboxed(self) -> None:
        """Who may start no process is not asked to: it is moved in another way."""
        if "libseccomp" not in process.run(["ldd", self.old.path]).stdout:
            self.cancel("the old QEMU has no sandbox")
        with self.by_hand("-sandbox", "on,spawn=deny") as one:
            with self.assertRaisesRegex(PreconditionError, "may start no other QEMU"):
                self.move(one, wanted="flip")
            (moved,) = self.move(one)
            try:
                self.assertNotIn(moved.mechanism, {"flip", "flip-late", "remap"})
                self.upgraded(one, moved)
            finally:
                self.end(moved.new_pid)

    def test_screen(self) -> None:
        """On a TCP port, which two QEMUs cannot both listen on."""
        if "query-vnc" not in self.old.commands & self.new.commands:
            self.cancel("one of the QEMUs has no VNC")
        self.screen_follows("flip")

    def test_the_one_that_does_not_move_is_the_last(self) -> None:
        """Of three the second one's new QEMU cannot start; the third is not begun."""
        with ExitStack() as stack:
            first = stack.enter_context(self.by_hand())
            second = stack.enter_context(self.by_hand("-chardev", "null,id=once"))
            third = stack.enter_context(self.by_hand())
            plans = [
                planning.plan(str(one.vm.pid), self.new, "auto") for one in (first, second, third)
            ]
            plans[1].successor.argv.extend(word.format(sockets="/nowhere") for word in _NEVER)
            moved = Mover(self.layout).all(plans, 1)
            self.assertEqual([one.pid for one in moved], [first.vm.pid, second.vm.pid])
            self.upgraded(first, moved[0])
            self.assertEqual(moved[1].outcome, Outcome.ROLLED_BACK)
            self.assertIn("/nowhere/never", moved[1].failure)
            for one in (second, third):
                there = look.look(str(one.qmp))
                self.assertEqual((there.pid, there.state), (one.vm.pid, "running"))
                self.assertEqual(
                    integrity.check(one.vm.control, self.touched).status["bad_pages"], 0
                )
                self.nothing_beside(one)
