# SPDX-License-Identifier: GPL-2.0-or-later
"""Guests are taken out of QEMUs that know nothing of it, and whatever goes wrong costs none.

Parameters (avocado -p): stock, a QEMU to sandbox in place of the pair; tracers (10), how many
helpers are killed at random instants; seed; and those of test_upgrade.py.
"""

import os
import platform
import random
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from unittest import mock

import avocado
from byhand import ByHand, Guest
from upgrading import SECOND_QEMU, Upgrading, kill_new, stop_new

from lab import mechanisms, stage
from lab.base import process
from lab.base.deadline import Deadline
from lab.base.errors import CannotTellError, PreconditionError
from lab.base.layout import Layout
from lab.live import look, planning
from lab.live.move import Mover
from lab.live.moved import Moved
from lab.measure import integrity
from lab.mechanisms import operation
from lab.model import Outcome, Result, VerdictKind
from lab.transplant import blocks, devices, helper, stream
from lab.transplant.channel import HelperError
from lab.transplant.helper import Helper
from lab.vm import binary
from lab.vm.qemu import Vm

#: As libvirt starts every guest.
_SANDBOX = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"
#: What the second QEMU itself needs weighs more in so small a guest.
_RATIO = 1 + 4 * SECOND_QEMU
#: What the name of a file begins with that is guest memory.
_FILE = "pageflip-shared-memory-"


def _end_new(_old: Vm, new: Vm) -> None:
    """Kill the new QEMU when it has already answered."""
    os.kill(new.pid, signal.SIGKILL)


def _helper(layout: Layout) -> int:
    """Return the process of the lab's helper."""
    program = helper.compiled(layout)
    for child in process.children(os.getpid()):
        with suppress(OSError):
            if Path(f"/proc/{child}/exe").readlink() == program:
                return child
    raise AssertionError("there is no helper")


@contextmanager
def _half_a_state() -> Iterator[None]:
    """Let only half of the device state arrive."""
    whole = stream.complete

    def half(*words: Any) -> bytes:
        made = whole(*words)
        return made[: len(made) // 2]

    with mock.patch.object(stream, "complete", half):
        yield


class Transplant(Upgrading, avocado.Test):
    """Stock QEMUs; the guest is whole, and the old one's if the new one is no good.

    :avocado: tags=medium
    """

    ram = "256M"
    touch = "50%"

    def test_stock_to_stock(self) -> None:
        """Neither has the series."""
        result = self.passes("transplant", _RATIO, old="stock:old", new="stock:new")
        self.assertEqual(result.integrity.heartbeats_lost, 0)
        self.assertGreater(self.moved(result, "flipped_bytes"), 0)
        self.assertGreater(self.moved(result, "copied_bytes"), 0)
        self.assertLess(self.moved(result, "copied_bytes"), self.moved(result, "flipped_bytes"))

    def test_stock_to_ours(self) -> None:
        """The first step of everybody who has guests today; every byte is compared."""
        self.passes("transplant", 2.3, old="stock:old", new="new", verify=True, dirty_rate="10M")

    def test_more_than_one_processor(self) -> None:
        """Two of them, and huge pages stay what they are."""
        result = self.passes("transplant", _RATIO, old="stock:old", new="stock:new", cpus=2)
        before, after = result.memory.old_huge_bytes, result.memory.new_huge_bytes
        self.assertGreaterEqual(after, before * 3 // 4)

    def test_auto_takes_it(self) -> None:
        """For a pair without the series it is the best that can go back."""
        result = self.upgrade("auto", 2.3, old="stock:old", new="stock:new")
        chosen = mechanisms.named(result.mechanism)
        self.assertTrue(chosen.rolls_back)
        if not mechanisms.named("transplant").missing(
            *(binary.binary_of(Layout.default(), name) for name in ("stock:old", "stock:new"))
        ):
            self.assertEqual(result.mechanism, "transplant")


class Faults(Upgrading, avocado.Test):
    """Something is broken on purpose, at each step.

    :avocado: tags=fault,medium
    """

    ram = "256M"
    touch = "50%"

    def test_new_killed_at_each_step(self) -> None:
        """The new QEMU crashes: before it answers, and before each thing that is asked of it."""
        self.rolled_back(kill_new, "killed by signal 9")
        for step in ("adopt", "copy", "hold"):
            with self.before(Helper, step, _end_new):
                self.rolled_back(None, "killed by signal 9")
        with self.before(devices, "load", _end_new):
            self.rolled_back(None, "")

    def test_new_hangs_while_it_loads(self) -> None:
        """It is given up when the guest has stood still for long enough."""

        def hang(_old: Vm, new: Vm) -> None:
            os.kill(new.pid, signal.SIGSTOP)

        patience = mock.patch.object(stage, "_PATIENCE_MS", 5_000)
        with patience, self.before(devices, "load", hang):
            self.rolled_back(None, "no answer after 5 s")

    def test_new_never_answers(self) -> None:
        """It hangs from the start: the guest runs on until it is given up.

        :avocado: tags=thorough
        """
        self.rolled_back(stop_new, "not done after")

    def test_state_truncated(self) -> None:
        """Half of the device state: the new QEMU refuses it."""
        with _half_a_state():
            self.rolled_back(None, "does not load the device state")

    def test_helper_killed_at_each_step(self) -> None:
        """With it ends the new QEMU, and the old one goes on."""
        for step in ("adopt", "copy", "hold", "finish"):
            with self.before(Helper, step, self.kill_helper):
                if step == "finish":  # the guest is the new QEMU's already
                    result = self.upgraded()
                    self.assertEqual(result.outcome, Outcome.UPGRADED, result.reasons)
                    self.whole(result)
                else:
                    self.rolled_back(None, "the helper is gone")

    def kill_helper(self, _old: Vm, _new: Vm) -> None:
        """Kill the lab's helper, as if the host were short of memory."""
        os.kill(_helper(Layout.default()), signal.SIGKILL)

    @contextmanager
    def before(self, owner: object, name: str, action: Callable[[Vm, Vm], None]) -> Iterator[None]:
        """Do something to the two QEMUs before the first call of `owner`'s function."""
        called = getattr(owner, name)
        seen: list[operation.Operation] = []
        made = operation.Operation.__init__

        def remember(self: operation.Operation, *words: Any, **named: Any) -> None:
            made(self, *words, **named)
            seen.append(self)

        def wrapped(self: object, *words: Any, **named: Any) -> Any:
            if seen:
                one = seen.pop()
                action(one._old, one._new)
            return called(self, *words, **named)

        with (
            mock.patch.object(operation.Operation, "__init__", remember),
            mock.patch.object(owner, name, wrapped),
        ):
            yield

    def upgraded(self, interfere: Callable[[Vm, Vm], None] | None = None) -> Result:
        """Upgrade a stock guest."""
        return self.upgrade("transplant", 2.3, interfere, old="stock:old", new="stock:new")

    def rolled_back(self, interfere: Callable[[Vm, Vm], None] | None, words: str) -> None:
        """Upgrade, and assert that the guest goes on under the old QEMU as if nothing had been."""
        result = self.upgraded(interfere)
        self.assertEqual(result.outcome, Outcome.ROLLED_BACK, result.reasons)
        self.assertEqual(result.verdict, VerdictKind.FAIL)
        self.assertIn(words, " ".join(result.reasons))
        self.whole(result)

    def whole(self, result: Result) -> None:
        """Assert that the guest, wherever it is, lacks nothing."""
        self.assertEqual(result.integrity.bad_pages, 0)
        self.assertGreaterEqual(result.integrity.pages_checked_after, result.integrity.pages_total)
        self.assertEqual(result.integrity.heartbeats_doubled, 0)


def _shared(pid: int) -> tuple[str, int]:
    """Return which file a QEMU's only shared memory is, and how many descriptors it has of it."""
    maps = Path(f"/proc/{pid}/maps").read_text(encoding="utf-8").splitlines()
    kinds = "/memfd:memory-backend-memfd", _FILE
    files = [line.split() for line in maps if any(kind in line for kind in kinds)]
    ((inode, rights),) = {(one[4], one[1]) for one in files}
    assert rights == "rw-s", rights
    opened = [one for one in Path(f"/proc/{pid}/fd").iterdir() if str(one.stat().st_ino) == inode]
    return inode, len(opened)


class Foreign(ByHand, avocado.Test):
    """QEMUs that were started by hand: what ``upgrade --pid`` does.

    :avocado: tags=medium
    """

    timeout = 900

    def prepare(self, old: str, new: str) -> None:
        """Have both QEMUs; cancel where one is not there or it cannot be done here."""
        self.layout = Layout.default().into(Path(self.outputdir))
        try:
            self.old = binary.binary_of(self.layout, old)
            self.new = binary.binary_of(self.layout, new)
        except CannotTellError as error:
            self.cancel(error.message)
        if lacking := mechanisms.named("transplant").missing(self.old, self.new):
            self.cancel(lacking)

    def prepare_sandboxed(self) -> None:
        """Prepare for a pair whose old one can be sandboxed."""
        old = str(self.params.get("stock", default=""))
        self.prepare(old or "stock:old", old or "stock:new")
        if "libseccomp" not in process.run(["ldd", self.old.path]).stdout:
            self.cancel(f"{self.old.path} has no sandbox")

    def test_stock(self) -> None:
        """By its process id, and management finds it where it was."""
        self.prepare("stock:old", "stock:new")
        self.taken()

    def test_sandboxed(self) -> None:
        """As libvirt starts one: no system call that makes a process is allowed."""
        self.prepare_sandboxed()
        self.taken("-sandbox", _SANDBOX)

    def test_rehearsed(self) -> None:
        """The new QEMU loads the guest, which then goes on where it was."""
        self.prepare("stock:old", "stock:new")
        with self.by_hand(rate=2**20) as one:
            (moved,) = self.move(one, rehearse=True)
            self.assertEqual((moved.outcome, moved.failure), (Outcome.REHEARSED, ""))
            self.still_there(one)

    def test_what_the_new_one_says(self) -> None:
        """Why it does not take the guest is passed on, and is not the old one's to say."""
        self.prepare("stock:old", "stock:new")
        with self.by_hand(rate=2**20) as one, _half_a_state():
            (moved,) = self.move(one)
            self.assertEqual(moved.outcome, Outcome.ROLLED_BACK)
            self.assertIn("load of migration failed", moved.failure)
            kept = Path(moved.run_directory, "new.log").read_text(encoding="utf-8")
            self.assertIn("load of migration failed", kept)
            self.assertNotIn("load of migration failed", one.vm.log.read_text(encoding="utf-8"))
            self.still_there(one)

    def test_allocated_at_the_start(self) -> None:
        """Memory that was allocated at the start is not allocated once more."""
        self.prepare("stock:old", "stock:new")
        ram = "memory-backend-ram,id=ram,size=512M,prealloc=on"
        moved = self.taken("-object", ram, "-machine", "memory-backend=ram", "-mem-prealloc")
        (record,) = Path(moved.run_directory).glob("*-new.json")
        words = record.read_text(encoding="utf-8")
        self.assertIn("prealloc=off", words)
        self.assertNotIn("-mem-prealloc", words)

    def test_shared(self) -> None:
        """Shared memory stays the file that it was, also when nothing comes of it.

        By that file the guest goes on to a third QEMU: what the second one has as its descriptor is
        what it hands over.
        """
        self.prepare("old", "new")
        ram = "memory-backend-memfd,id=ram,size=512M,share=on"
        with self.by_hand("-object", ram, "-machine", "memory-backend=ram", rate=2**20) as one:
            file = _shared(one.vm.pid)
            (moved,) = self.move(one, rehearse=True)
            self.assertEqual((moved.outcome, moved.failure), (Outcome.REHEARSED, ""))
            self.still_there(one)
            with _half_a_state():
                (moved,) = self.move(one)
            self.assertEqual(moved.outcome, Outcome.ROLLED_BACK)
            self.still_there(one)
            (moved,) = self.move(one)
            self.assertEqual((moved.outcome, moved.failure), (Outcome.UPGRADED, ""))
            self.assertEqual(_shared(moved.new_pid), file)
            self.whole(one, one.control)
            (moved,) = self.move(one, pid=moved.new_pid, mechanism="handover")
            self.assertEqual((moved.outcome, moved.failure), (Outcome.UPGRADED, ""))
            try:
                self.assertEqual(_shared(moved.new_pid), file)
                one.heart.wait(500, Deadline.after(60, "the guest's heart beats"), lambda: None)
                self.whole(one, one.control)
            finally:
                self.end(moved.new_pid)

    def test_shared_file(self) -> None:
        """The same of a file that has a name, twice: no new QEMU opens it by that."""
        self.prepare("stock:old", "stock:new")
        with tempfile.NamedTemporaryFile(prefix=_FILE, dir="/dev/shm") as file:
            ram = f"memory-backend-file,id=ram,size=512M,share=on,mem-path={file.name}"
            inode = str(os.fstat(file.fileno()).st_ino)
            with self.by_hand("-object", ram, "-machine", "memory-backend=ram", rate=2**20) as one:
                pid = one.vm.pid
                for _ in range(2):
                    self.assertEqual(_shared(pid), (inode, 1))
                    (moved,) = self.move(one, pid=pid)
                    self.assertEqual((moved.outcome, moved.failure), (Outcome.UPGRADED, ""))
                    self.assertEqual(moved.differences, [])
                    pid = moved.new_pid
                self.assertEqual(_shared(pid), (inode, 1))
                one.heart.wait(500, Deadline.after(60, "the guest's heart beats"), lambda: None)
                self.whole(one, one.control)

    def test_older_kernel(self) -> None:
        """Where a fork and a disk read past the cache do not agree, it stands still for both."""
        self.prepare("stock:old", "stock:new")
        with mock.patch.object(platform, "release", lambda: "6.1.0-9-amd64"):
            moved = self.taken()
        said = Path(moved.run_directory, "qmp.log").read_text(encoding="utf-8")
        self.assertEqual([said.count(f"old > {one} ") for one in ("stop", "cont")], [2, 1])

    def test_refused(self) -> None:
        """A device whose state is not saved, which QEMU itself does not say of it."""
        self.prepare("stock:old", "stock:new")
        disk = ("-drive", "if=none,id=d,driver=null-co", "-device", "nvme,drive=d,serial=1")
        with self.by_hand(*disk) as one:
            with self.assertRaises(PreconditionError) as refused:
                self.move(one)
            self.assertIn("does not save the state of this device", str(refused.exception))
            self.still_there(one)

    def test_tracers_killed(self) -> None:
        """Whenever the helper is killed: the guest runs, its memory is private, nobody is left."""
        self.prepare("stock:old", "stock:new")
        self.kill_tracers()

    def test_tracers_of_a_sandboxed_one_killed(self) -> None:
        """The same, where the filter holds again as soon as the helper is gone."""
        self.prepare_sandboxed()
        self.kill_tracers("-sandbox", _SANDBOX)

    def taken(self, *more: str) -> Moved:
        """Take a guest, and assert that it is whole, and where it is looked for."""
        with self.by_hand(*more, rate=2**20) as one:
            (moved,) = self.move(one)
            self.assertEqual((moved.outcome, moved.failure), (Outcome.UPGRADED, ""))
            one.heart.wait(500, Deadline.after(60, "the guest's heart beats"), lambda: None)
            self.whole(one, one.control)
            self.assertTrue(one.vm.dead)
            there = look.look(str(one.qmp))
            self.assertEqual((there.pid, there.binary.version), (moved.new_pid, self.new.version))
        return moved

    def move(
        self, one: Guest, *, rehearse: bool = False, pid: int = 0, mechanism: str = "transplant"
    ) -> list[Moved]:
        """Do what the verb does; `pid` is the QEMU that has the guest, if that is another one."""
        asked = mechanisms.Asked(rehearse=rehearse, patience_ms=30_000)
        plan = planning.plan(str(pid or one.vm.pid), self.new, mechanism, asked)
        return Mover(self.layout).all([plan], 1)

    def whole(self, _one: Guest, control: Any) -> None:
        """Assert that the guest has every page."""
        report = integrity.check(control, self.touched)
        self.assertEqual(report.status["bad_pages"], 0, report)
        self.assertEqual(report.full_pass["pages_checked"] * 4096, self.touched)

    def still_there(self, one: Guest) -> None:
        """Assert that the guest runs where it was, whole, and its QEMU has no child."""
        there = look.look(str(one.qmp))
        self.assertEqual((there.pid, there.state), (one.vm.pid, "running"))
        self.whole(one, one.vm.control)
        self.assertEqual(list(process.children(one.vm.pid)), [])

    def kill_tracers(self, *more: str) -> None:
        """Kill helpers at random instants of their work, and look at the guest after each."""
        chance = random.Random(str(self.params.get("seed", default="1")))
        log = Path(self.outputdir) / "transplant.log"
        with self.by_hand(*more) as one:
            with look.connected(one.vm.pid, one.qmp) as qmp:
                line = {"command-line": "info ramblock"}
                ram = blocks.parse(qmp.execute("human-monitor-command", line))
            for number in range(int(self.params.get("tracers", default=10))):
                self.kill_one(one, ram, log, chance.uniform(0, 0.03))
                self.put_back(one, ram, log)
                beats = len(one.vm.heart.beats)
                one.vm.heart.wait(beats + 50, Deadline.after(30, "it beats"), one.vm.alive)
                self.assertEqual(list(process.children(one.vm.pid)), [], number)
            self.still_there(one)
            (moved,) = self.move(one, rehearse=True)
            self.assertEqual(moved.outcome, Outcome.REHEARSED, moved.failure)

    def put_back(self, one: Guest, ram: list[blocks.RamBlock], log: Path) -> None:
        """Wait until guest memory is again as the fork found it; until then this is refused.

        The code in QEMU goes on to its end without the helper, on a busy host after a while.
        """
        for _ in Deadline.after(10, "guest memory is as before the fork").poll(0.05):
            with suppress(HelperError), helper.started(self.layout, log) as fresh:
                fresh.examine(one.vm.pid, ram)
                fresh.abandon()
                return

    def kill_one(self, one: Guest, ram: list[blocks.RamBlock], log: Path, delay_s: float) -> None:
        """Let a helper fork the QEMU, and kill it after a while."""
        words = [*one.vm.machine.argv(), "-S", "-incoming", "defer"]
        with helper.started(self.layout, log) as first:
            first.examine(one.vm.pid, ram)
            victim = _helper(self.layout)

            def kill() -> None:
                traced = Path(f"/proc/{one.vm.pid}/status")
                for _ in Deadline.after(10, "the helper traces QEMU").poll(0.0002):
                    if "\nTracerPid:\t0\n" not in traced.read_text(encoding="ascii"):
                        break
                time.sleep(delay_s)
                os.kill(victim, signal.SIGKILL)

            killer = threading.Thread(target=kill)
            killer.start()
            with suppress(CannotTellError):
                first.start(words, {}, dry=False)
            killer.join()
