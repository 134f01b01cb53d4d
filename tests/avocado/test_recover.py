# SPDX-License-Identifier: GPL-2.0-or-later
"""The lab is killed, interrupted, or cannot keep its records: one QEMU runs the guest all the same.

The guest is a QEMU with nothing but its firmware, which counts the timer's ticks in memory.
"""

import contextlib
import dataclasses
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import avocado

from lab.base import process as run
from lab.base.deadline import Deadline
from lab.base.errors import ExitCode
from lab.base.identity import Who
from lab.base.layout import CHECKOUT, Layout
from lab.live import journal, look
from lab.live.journal import LiveStep
from lab.pair import firmware
from lab.vm import binary

#: Where the BIOS counts the timer's ticks (BIOS data area).
_TICKS = 0x46C
_FILES = {"qmp", "hmp", "serial", "pid", "log"}
#: How long after a step has begun, at the most (s).
_AFTER_S = 0.3
#: How often the lab is killed at the same guest.
_SAME = 10
_MECHANISMS = ("flip", "remap", "gift", "precopy", "stop-copy")
Act = Callable[["subprocess.Popen[str]"], None]


@dataclasses.dataclass
class State:
    """How far a guest has counted, and how migration is set in its QEMU."""

    ticks: int
    settings: dict[str, Any]


@dataclasses.dataclass
class Small:
    """A guest, in a directory of its own."""

    directory: Path

    @property
    def qmp(self) -> Path:
        """Its monitor."""
        return self.directory / "qmp"

    def pids(self) -> list[int]:
        """Return the QEMUs that have it, or wait for it."""
        found = []
        for one in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                words = (one / "cmdline").read_bytes().split(b"\0")
                here = any(os.fsencode(self.qmp) in word for word in words)
                if here and b"qemu-system" in words[0] and b"-nodefaults" in words:
                    found.append(int(one.name))
        return [pid for pid in found if Who.of(pid).there]

    def ask(self, command: str, **arguments: str) -> Any:
        """Ask whoever is reached by the name of its monitor."""
        with look.connected(self.pids()[0], self.qmp) as qmp:
            return qmp.execute(command, arguments)

    def state(self) -> "State":
        """Return what an upgrade must not change."""
        told = self.ask("query-migrate-capabilities")
        capabilities = {one["capability"]: one["state"] for one in told}
        return State(self.ticks(), {**capabilities, **self.ask("query-migrate-parameters")})

    def ticks(self) -> int:
        """Return how long it has run, by itself."""
        line = f"xp /1wx {_TICKS:#x}"
        said = str(self.ask("human-monitor-command", **{"command-line": line}))
        return int(said.partition(":")[2], base=16)


class Absence:
    """Watches for how long a file was away (s)."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self.longest_s = 0.0

    def _watch(self) -> None:
        since = time.monotonic()
        while not self._end.wait(0.002):
            if os.path.lexists(self._path):
                since = time.monotonic()
            self.longest_s = max(self.longest_s, time.monotonic() - since)

    def __enter__(self) -> "Absence":
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._end.set()
        self._thread.join()


class Killed(avocado.Test):
    """Whatever becomes of the lab.

    :avocado: tags=medium
    """

    timeout = 3000

    def setUp(self) -> None:
        """Build what is needed; have journals of our own."""
        layout = Layout.default()
        self.old = binary.binary_of(layout, self.params.get("old", default="old"))
        self.new = binary.binary_of(layout, self.params.get("new", default="new"))
        self.firmware = firmware.prepare(layout)
        seed = int(self.params.get("seed", default=random.randrange(1 << 32)))
        self.log.info("again: -p seed=%d", seed)
        self.random = random.Random(seed)
        self.place = Path(tempfile.mkdtemp(prefix="pf"))
        os.environ["XDG_STATE_HOME"] = str(self.place / "state")
        os.environ["XDG_RUNTIME_DIR"] = str(self.place)

    def tearDown(self) -> None:
        """End what is left, on a time-out too."""
        for directory in self.place.glob("guest*"):
            for pid in Small(directory).pids():
                Who.of(pid).send(signal.SIGKILL)
        shutil.rmtree(self.place, ignore_errors=True)

    @contextlib.contextmanager
    def guest(self) -> Iterator[Small]:
        """Start one, and wait until it counts."""
        one = Small(Path(tempfile.mkdtemp(prefix="guest", dir=self.place)))
        here = one.directory
        argv = [
            self.old.path, "-L", self.firmware, "-nodefaults", "-display", "none", "-M", "q35",
            "-accel", "tcg", "-m", "64M", "-qmp", f"unix:{one.qmp},server=on,wait=off",
            "-monitor", f"unix:{here / 'hmp'},server=on,wait=off",
            "-serial", f"unix:{here / 'serial'},server=on,wait=off", "-pidfile", here / "pid",
        ]  # fmt: skip
        try:
            with run.spawned(argv, log=here / "log"):
                for _ in Deadline.after(60, "QEMU is there").poll():
                    if one.qmp.exists() and one.pids():
                        break
                for _ in Deadline.after(60, "the guest counts").poll(0.1):
                    if one.ticks():
                        break
                yield one
        finally:
            for pid in one.pids():
                Who.of(pid).send(signal.SIGKILL)

    def lab(self, *words: str | Path, before: tuple[str, ...] = ()) -> "subprocess.Popen[str]":
        """Start a lab."""
        argv = [*before, sys.executable, "-P", "-m", "lab", *map(str, words)]
        return subprocess.Popen(
            argv, cwd=CHECKOUT, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True
        )

    def upgrade(
        self,
        one: Small,
        mechanism: str,
        act: Act,
        before: tuple[str, ...] = (),
        new: Path | None = None,
    ) -> tuple[int, str]:
        """Upgrade it; `act` is called as soon as there is a journal.  Return status and stderr."""
        out = self.place / "out"
        words = ["--new", new or self.new.path, "--mechanism", mechanism, "--out", out]
        with self.lab("upgrade", "--pid", str(one.pids()[0]), *words, before=before) as lab:
            try:
                for _ in Deadline.after(120, "there is a journal").poll(0.0005):
                    if lab.poll() is not None or journal.left().entries:
                        break
                act(lab)
                _, said = lab.communicate(timeout=120)
            finally:
                lab.kill()
        self.log.info("%s: %d: %s", mechanism, lab.returncode, said.strip())
        return lab.returncode, said

    def at_random(self, what: signal.Signals) -> Act:
        """Return what sends a signal at some instant of an upgrade.

        However busy the host is, each step has its share of the instants.
        """
        step = self.random.choice(list(LiveStep))
        after = self.random.uniform(0, _AFTER_S)

        def act(lab: "subprocess.Popen[str]") -> None:
            order = list(LiveStep)
            for _ in Deadline.after(120, f"the upgrade is {step}").poll(0.0005):
                entries = journal.left().entries
                if not entries or order.index(entries[0].step) >= order.index(step):
                    break
            with contextlib.suppress(subprocess.TimeoutExpired):
                lab.wait(after)
            lab.send_signal(what)

        return act

    def recover(self, *, kill: bool = False) -> str:
        """Recover, perhaps once more after the first was killed; return what it said."""
        if kill:
            with self.lab("recover") as lab:
                for _ in Deadline.after(60, "it is at work").poll(0.0005):
                    if lab.poll() is not None or f" {lab.pid} " in _read("/proc/locks"):
                        break
                with contextlib.suppress(subprocess.TimeoutExpired):
                    lab.wait(self.random.uniform(0, 0.3))
                lab.kill()
        with self.lab("recover") as lab:
            _, said = lab.communicate(timeout=300)
        self.log.info("recover: %d: %s", lab.returncode, said.strip())
        self.assertEqual(lab.returncode, 0, said)
        return said

    def whole(self, one: Small, before: State) -> None:
        """Assert that one QEMU runs the guest on, is reached by every name, and nothing is left."""
        pids = one.pids()
        self.assertEqual(len(pids), 1, pids)
        self.assertEqual(one.ask("query-status")["status"], "running")
        now = one.ticks()
        self.assertGreaterEqual(now, before.ticks)
        after = one.state().settings
        changed = {key: after[key] for key in before.settings.keys() & after.keys()}
        self.assertEqual(changed, {key: before.settings[key] for key in changed})
        for _ in Deadline.after(60, "the guest goes on").poll(0.05):
            if one.ticks() > now:
                break
        self.assertEqual(int(_read(one.directory / "pid")), pids[0])
        for name in ("qmp", "hmp", "serial"):
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(str(one.directory / name))
        self.assertEqual({path.name for path in one.directory.iterdir()}, _FILES)
        self.assertEqual(list(journal.directory().iterdir()), [])
        journal.check_free(Who.of(pids[0]))

    def killed(self, kills: int) -> None:
        """Kill the lab so many times, with each mechanism in turn, and recover."""
        steps: list[str] = []
        for first in range(0, kills, _SAME):
            with self.guest() as one:
                for number in range(first, min(first + _SAME, kills)):
                    steps += self.killed_once(one, _MECHANISMS[number % len(_MECHANISMS)])
                    self.log.info("%d of %d killed, at %s", number + 1, kills, steps[-1])
        found = {step: steps.count(step) for step in sorted(set(steps))}
        self.log.info("killed at: %s", found)
        self.assertNotEqual(set(steps), {"none"})

    def killed_once(self, one: Small, mechanism: str) -> list[str]:
        """Kill the lab once, and recover; return how far it had got."""
        before = one.state()
        self.upgrade(one, mechanism, self.at_random(signal.SIGKILL))
        left = journal.left()
        self.assertEqual(left.damaged, ())
        self.recover(kill=self.random.random() < 0.3)
        self.whole(one, before)
        for entry in left.entries:
            self.assertFalse(Path(entry.mark).exists())
        return [f"{mechanism} {entry.step}" for entry in left.entries] or ["none"]

    def test_killed(self) -> None:
        """At some instants: -p kills=N."""
        self.killed(int(self.params.get("kills", default=10)))

    def test_killed_often(self) -> None:
        """At a hundred.

        :avocado: tags=thorough
        """
        self.killed(int(self.params.get("kills", default=100)))

    def test_interrupted(self) -> None:
        """Ctrl-C at any time: the lab itself leaves nothing.  -p interrupts=N, mechanism=NAME."""
        only = self.params.get("mechanism", default="")
        for number in range(int(self.params.get("interrupts", default=6))):
            mechanism = only or _MECHANISMS[number % len(_MECHANISMS)]
            with self.guest() as one:
                before = one.state()
                status, said = self.upgrade(one, mechanism, self.at_random(signal.SIGINT))
                self.assertIn(status, {ExitCode.PASS, ExitCode.FAIL, ExitCode.INTERRUPTED}, said)
                self.whole(one, before)

    def test_one_lab_at_a_time(self) -> None:
        """A lab stands still in the middle: no other one may; killed, it is recovered first."""
        with self.guest() as one:
            before, pid = one.state(), str(one.pids()[0])

            def others(lab: "subprocess.Popen[str]") -> None:
                lab.send_signal(signal.SIGSTOP)
                elsewhere = {**os.environ, "XDG_STATE_HOME": str(self.place / "elsewhere")}
                for environment in (dict(os.environ), elsewhere):
                    status, said = self.refused(pid, environment)
                    self.assertEqual(status, ExitCode.CANNOT_TELL, said)
                    self.assertIn(f"another lab, process {lab.pid}, is at work at process", said)
                with self.lab("recover") as other:
                    _, said = other.communicate(timeout=60)
                self.assertEqual(other.returncode, ExitCode.CANNOT_TELL, said)
                self.assertIn(f"another lab, process {lab.pid}, is at work", said)
                lab.kill()

            self.upgrade(one, "precopy", others)
            status, said = self.refused(str(one.pids()[0]), dict(os.environ))
            self.assertEqual(status, ExitCode.CANNOT_TELL, said)
            self.assertIn("was not finished", said)
            self.assertIn("./pageflip recover --pid ", said)
            self.recover()
            self.whole(one, before)

    def refused(self, pid: str, environment: dict[str, str]) -> tuple[int, str]:
        """Try an upgrade; return its exit status, and what it said."""
        words = ["upgrade", "--pid", pid, "--new", str(self.new.path), "--dry-run"]
        done = subprocess.run(
            [sys.executable, "-P", "-m", "lab", *words],
            cwd=CHECKOUT,
            env=environment,
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
            check=False,
        )
        return done.returncode, " ".join(done.stderr.split())

    def test_refused_at_once(self) -> None:
        """The new QEMU does not start: the old one's sockets are not away for longer than that."""
        script = self.place / "qemu-system-x86_64"
        line = f'case "$*" in *-incoming*) exit 3;; esac\nexec {self.new.path} "$@"\n'
        script.write_text(f"#!/bin/sh\n{line}", encoding="utf-8")
        script.chmod(0o755)
        for mechanism in ("gift", "precopy"):
            with self.guest() as one, Absence(one.qmp) as absence:
                before = one.state()
                status, said = self.upgrade(one, mechanism, lambda _lab: None, new=script)
                self.assertEqual(status, ExitCode.FAIL, said)
                self.whole(one, before)
            self.log.info("%s: absent for %.2f s", mechanism, absence.longest_s)
            self.assertLess(absence.longest_s, 10)

    def test_no_room_for_records(self) -> None:
        """The disk under --out is full, sooner or later: the guest moves, and is managed."""
        self.in_a_space()
        for size in (4, 8, 12, 16, 20):
            with self.guest() as one:
                before = one.state()
                status, said = self.upgrade(
                    one, "flip", lambda _lab: None, self.small(f"size={size}k")
                )
                self.assertEqual(status, 0, said)
                self.assertIn("are not complete: No space left on device", said)
                self.whole(one, before)

    def test_records_vanish(self) -> None:
        """--out goes, or becomes read-only, while a guest is under way."""
        self.in_a_space()
        for what in ("rm -rf {}/*", "mount -t tmpfs -o ro none {}"):
            for mechanism in ("flip", "precopy"):
                with self.guest() as one:
                    before = one.state()

                    def spoil(lab: "subprocess.Popen[str]", what: str = what) -> None:
                        lab.send_signal(signal.SIGSTOP)
                        words = ["nsenter", "--mount", f"--target={lab.pid}", "sh", "-c"]
                        line = what.format(self.place / "out")
                        subprocess.run([*words, line], check=True)
                        lab.send_signal(signal.SIGCONT)

                    status, said = self.upgrade(one, mechanism, spoil, self.small("size=1m"))
                    self.assertEqual(status, 0, said)
                    self.assertIn("are not complete: ", said)
                    self.whole(one, before)

    def in_a_space(self) -> None:
        """Cancel the test where this user may have no file systems of its own."""
        tried = subprocess.run([*self.small("size=8k"), "true"], check=False)
        if tried.returncode:
            self.cancel("only root may mount a small file system in a name space of its own")

    def small(self, options: str) -> tuple[str, ...]:
        """Return what runs a command with a small file system at --out, in a space of its own."""
        out = self.place / "out"
        out.mkdir(exist_ok=True)
        line = f'mount -t tmpfs -o {options} none {out} && exec "$@"'
        return ("unshare", "--mount", "--propagation=private", "sh", "-c", line, "sh")


def _read(path: str | Path) -> str:
    return Path(path).read_text(encoding="ascii")
