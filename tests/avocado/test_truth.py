# SPDX-License-Identifier: GPL-2.0-or-later
"""Any QEMU, with anything done to it, arrives as it was, or is refused beforehand with a reason."""

import re
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import avocado
from bothqemus import BothQemus
from commandlines import ALONE, KINDS, NOT_ALONE, SHARED, Case, case, files, placed

from lab.base import process
from lab.base.deadline import Deadline
from lab.base.errors import CannotTellError, PreconditionError
from lab.live import compare, look, planning, truth
from lab.live.move import Mover
from lab.live.moved import Moved
from lab.live.truth import Truth
from lab.model import Outcome
from lab.pair import firmware
from lab.vm.monitor import QmpError, monitor

_START_S = 30.0
#: What a command line may be besides what it says of itself.
_BASE = ("-accel", "tcg", "-m", "64M", "-display", "none", "-vga", "none")
#: At least so many of a hundred command lines are ones that QEMU takes.
_STARTED = 60


class NotStartedError(CannotTellError):
    """QEMU does not take this command line."""


class Generated(BothQemus, avocado.Test):
    """QEMUs from generated command lines, with random changes afterwards, and no guest in them.

    -p cases=N: how many; -p first=N: the first one's seed; a failure names the seed.
    -p kind=TEXT: of the kinds only those with this in their names.

    :avocado: tags=medium
    """

    timeout = 7200
    series = True
    cases = 20

    def setUp(self) -> None:
        """Build what is needed."""
        super().setUp()
        self.firmware = firmware.prepare(self.layout)

    @contextmanager
    def started(self, one: Case, directory: Path) -> Iterator[tuple[int, Truth]]:
        """Start a case's QEMU, change it, and say what it is then."""
        for arguments in files(directory):
            process.run([self.old.path.with_name("qemu-img"), *arguments])
        sockets = directory / "main"
        argv = [
            self.old.path, "-L", self.firmware, "-machine", "q35", *_BASE,
            *placed(one.words, directory), "-qmp", f"unix:{sockets},server=on,wait=off",
        ]  # fmt: skip
        log = directory / "log"
        with process.spawned(argv, log=log, cwd=directory) as child:

            def alive() -> None:
                if child.poll() is not None:
                    raise NotStartedError(log.read_text(encoding="utf-8", errors="replace"))

            deadline = Deadline.after(_START_S, "QEMU answers")
            with monitor("case", sockets, deadline, alive, lambda _text: None) as qmp:
                for command, given in one.changes:
                    with suppress(QmpError):
                        qmp.execute(command, placed(given, directory))
                before = truth.take(child.pid, qmp, [str(directory / "pid")])
            yield child.pid, before

    def one(self, one: Case, mechanism: str = "auto") -> str:
        """Try a case, and return what came of it; raise AssertionError when it does not hold."""
        with tempfile.TemporaryDirectory(prefix="case", dir="/var/tmp") as name:
            directory = Path(name)
            moved: Moved | None = None
            try:
                with self.started(one, directory) as (pid, before):
                    try:
                        plan = planning.plan(str(directory / "main"), self.new, mechanism)
                    except PreconditionError as error:
                        self.assertRegex(error.message, r"cannot be upgraded by [\w-]+: .|no QMP")
                        self.unchanged(pid, directory, before)
                        return f"refused: {error.message.partition(': ')[2][:150]}"
                    moved = Mover(self.layout).one(plan)
                    arrived = moved.outcome is Outcome.UPGRADED and moved.done
                    self.assertTrue(arrived, f"{moved.failure} {moved.differences}")
                    return f"upgraded by {moved.mechanism}"
            except NotStartedError as error:
                return f"not started: {error.message.strip()[-150:]}"
            finally:
                if moved and moved.new_pid:
                    process.Foreign(moved.new_pid).kill()

    def unchanged(self, pid: int, directory: Path, before: Truth) -> None:
        """Assert that nothing about a QEMU has changed."""
        with look.connected(pid, directory / "main") as qmp:
            after = truth.take(pid, qmp, [str(directory / "pid")])
        found = [str(one) for one in compare.differences(before, after, committed=True)]
        self.assertEqual(found, [])

    def all(self, cases: int) -> None:
        """Try as many cases, and report all that do not hold."""
        first = int(self.params.get("first", default=0))
        bad, results = [], Counter[str]()
        for seed in range(first, first + int(self.params.get("cases", default=cases))):
            one = case(seed)
            try:
                said = self.one(one)
            except (AssertionError, CannotTellError) as error:
                said = f"FAILED: {error}"
                bad.append(f"seed {seed}: {said[:600]}")
            results[said.partition(":")[0].partition(" by")[0]] += 1
            self.log.info("seed %d: %s, then %s: %s", seed, " ".join(one.words),
                          [name for name, _ in one.changes], said)  # fmt: skip
        self.log.info("all: %s", dict(results))
        self.assertEqual(bad, [])
        total = sum(results.values())
        self.assertGreaterEqual((total - results["not started"]) * 100, _STARTED * total, results)

    def test_some(self) -> None:
        """A few, which are the same each time."""
        self.all(20)

    def test_many(self) -> None:
        """Each option several times over.

        :avocado: tags=thorough
        """
        self.all(300)

    def test_kinds(self) -> None:
        """One of each kind of thing that a command line does not say, or says in its own way."""
        bad = []
        only = self.params.get("kind", default="")
        for name, (words, changes, mechanism, expected) in KINDS.items():
            if only not in name:
                continue
            said = self.one(Case(0, tuple(words.split(" ")), changes), mechanism)
            self.log.info("%s: %s", name, said)
            if expected not in said:
                bad.append(f"{name}: {said}, and not {expected}")
        self.assertEqual(bad, [])

    def test_a_difference(self) -> None:
        """What only a comparison finds is found beforehand, by whatever mechanism."""
        set_later = ("qom-set", {"path": "/objects/io", "property": "poll-max-ns", "value": 1000})
        words = ("-object", "iothread,id=io")
        for mechanism in ("flip", "flip-late", "cpr-transfer"):
            more = tuple(SHARED.split(" ")) if mechanism == "cpr-transfer" else ()
            case = Case(0, (*words, *more), (set_later,))
            with tempfile.TemporaryDirectory(prefix="case", dir="/var/tmp") as name:
                directory = Path(name)
                with self.started(case, directory) as (pid, before):
                    plan = planning.plan(str(directory / "main"), self.new, mechanism)
                    moved = Mover(self.layout).one(plan)
                    self.assertEqual(moved.outcome, Outcome.ROLLED_BACK, mechanism)
                    self.assertIn("objects io properties poll-max-ns", moved.failure)
                    self.unchanged(pid, directory, before)

    def test_a_daemon(self) -> None:
        """Why its new QEMU does not start is said, although it says so to /dev/null."""
        with tempfile.TemporaryDirectory(prefix="case", dir="/var/tmp") as name:
            qmp, pid = f"{name}/qmp", Path(name, "pid")
            argv = [
                self.old.path, "-L", self.firmware, "-machine", "q35", *_BASE, "-daemonize",
                "-pidfile", pid, "-qmp", f"unix:{qmp},server=on,wait=off",
            ]  # fmt: skip
            process.run(argv)
            try:
                plan = planning.plan(qmp, self.new, "flip")
                plan.successor.argv.extend(("-chardev", "socket,id=never,path=/nowhere/never"))
                moved = Mover(self.layout).one(plan)
                self.assertEqual(moved.outcome, Outcome.ROLLED_BACK)
                self.assertIn("/nowhere/never", moved.failure)
                moved = Mover(self.layout).one(planning.plan(qmp, self.new, "flip"))
                self.assertEqual((moved.outcome, moved.differences), (Outcome.UPGRADED, []))
            finally:
                process.Foreign(int(pid.read_text(encoding="ascii"))).kill()

    def test_every_option(self) -> None:
        """What -help lists is either tried or named as what cannot be."""
        text = process.run([self.old.path, "-help"]).stdout
        listed = set(re.findall(r"^--?([\w-]+)", text, re.MULTILINE))
        self.assertGreater(len(listed), 50)
        self.assertEqual(sorted(listed - ALONE.keys() - NOT_ALONE.keys()), [])
