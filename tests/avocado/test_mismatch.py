# SPDX-License-Identifier: GPL-2.0-or-later
"""A new QEMU, a connection or a host that does not fit: the guest stays where it is.

Parameters (avocado -p): as in test_upgrade.py.
"""

import dataclasses
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from unittest import mock

import avocado
from upgrading import SECOND_QEMU, Upgrading

from lab import mechanisms
from lab.base import process as run
from lab.base.errors import ExitCode
from lab.base.layout import CHECKOUT, Layout
from lab.guest import disk
from lab.model import Outcome, Result, VerdictKind
from lab.pair import build
from lab.vm import cmdline
from lab.vm.qemu import Vm

_RATIO = 2.3 + SECOND_QEMU
_MIB = 1 << 20
#: Gets what the old QEMU sends, and how much it sent before; returns what goes on, None: no more.
Spoil = Callable[[bytes, int], bytes | None]


class Relay:
    """Passes on what goes from one socket to another, spoilt."""

    def __init__(self, listen: Path, to: Path, spoil: Spoil) -> None:
        self._to, self._spoil = to, spoil
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(listen))
        self._listener.listen()
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        old, new = self._listener.accept()[0], socket.socket(socket.AF_UNIX)
        with self._listener, old, new:
            new.connect(str(self._to))
            back = threading.Thread(target=self._pass_back, args=(new, old), daemon=True)
            back.start()
            passed = 0
            with suppress(OSError):
                while data := old.recv(_MIB):
                    spoilt = self._spoil(data, passed)
                    if spoilt is None:
                        break
                    passed += len(data)
                    new.sendall(spoilt)
            for end in (old, new):
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
            back.join()

    def _pass_back(self, new: socket.socket, old: socket.socket) -> None:
        with suppress(OSError):
            while data := new.recv(_MIB):
                old.sendall(data)


class Mismatch(Upgrading, avocado.Test):
    """What is refused, and what goes wrong on the way.

    :avocado: tags=fault,medium
    """

    ram = "256M"
    touch = "50%"

    def test_wrong_machine(self) -> None:
        """The new QEMU is started with another board than the guest has."""
        for mechanism in ("flip", "gift", "precopy"):
            with self.successor(machine_type="pc"):
                self.rolled_back(mechanism)

    def test_other_memory(self) -> None:
        """The new QEMU is started with less memory than the guest has."""
        for mechanism in ("flip", "gift", "precopy"):
            with self.successor(ram_bytes=192 * _MIB):
                self.rolled_back(mechanism)

    def test_missing_device(self) -> None:
        """The guest's disk is not on the new QEMU's command line."""
        for mechanism in ("flip", "gift", "precopy"):
            with self.disk(), self.successor(disk=None):
                self.rolled_back(mechanism)

    def test_locked_image(self) -> None:
        """Somebody else uses the image that the new QEMU is told to take.

        QEMU finds out when it is to run the guest: the new QEMU has it, complete, and stands still.
        """
        qemu = build.by_name(Layout.default(), "new").qemu
        other = self.image("other")
        argv = [qemu, "-machine", "none", "-nodefaults", "-display", "none", "-S"]
        argv += ["-blockdev", f"qcow2,node-name=d,file.driver=file,file.filename={other}"]
        with run.spawned(argv, log=Path(self.logdir) / "locker.log"):
            for mechanism in ("flip", "precopy"):
                with self.disk(), self.successor(disk=other):
                    result = self.upgrade(mechanism, _RATIO)
                self.assertEqual(result.outcome, Outcome.LOST)
                self.assertIn("Failed to get", " ".join(result.reasons))

    def test_closed(self) -> None:
        """The connection breaks in the middle of the guest's memory."""
        result = self.relayed(mechanisms.Precopy, self.closed)
        self.assertEqual(result.outcome, Outcome.ROLLED_BACK, result.reasons)
        self.assertEqual(result.integrity.bad_pages, 0)

    def test_closed_for_good(self) -> None:
        """With postcopy the guest is in two halves then, and nobody has it."""
        result = self.relayed(mechanisms.Postcopy, self.closed)
        self.assertEqual(result.outcome, Outcome.LOST)
        self.assertIn("postcopy-paused", " ".join(result.reasons))

    def test_corrupt(self) -> None:
        """A few bits on the way are nothing that QEMU would notice, as a rule: the checker does."""

        def flip(data: bytes, before: int) -> bytes:
            changed = bytearray(data)
            for position in range(40 * _MIB, 120 * _MIB, 10 * _MIB):
                if before <= position < before + len(data):
                    changed[position - before] ^= 1
            return bytes(changed)

        result = self.relayed(mechanisms.StopCopy, flip)
        self.assertEqual(result.verdict, VerdictKind.FAIL)
        if result.outcome is Outcome.UPGRADED:
            self.assertGreater(result.integrity.bad_pages, 0)

    def test_no_stream(self) -> None:
        """What arrives is no migration at all."""
        result = self.relayed(mechanisms.Precopy, lambda data, _: bytes(len(data)))
        self.assertEqual(result.outcome, Outcome.ROLLED_BACK, result.reasons)

    def test_full_disk(self) -> None:
        """Where the run's records are kept has no room: the lab cannot tell, and leaves nothing."""
        small = Path(self.workdir) / "small"
        small.mkdir()
        argv = [sys.executable, "-P", "-m", "lab", "upgrade", "--ram", "256M", "--touch", "50%"]
        for size in ("12k", "24k"):  # before the guest boots, and when it has
            mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "pageflip", str(small)]
            if subprocess.run(mount, check=False).returncode:
                self.cancel("only root may mount a small file system")
            try:
                done = run.run([*argv, "--out", small], cwd=CHECKOUT, check=False)
            finally:
                subprocess.run(["umount", str(small)], check=True)
            self.assertEqual(done.returncode, ExitCode.CANNOT_TELL, done.stdout)
            self.assertIn("pageflip: the disk is full: ", done.stdout)
            self.assertEqual(self.qemus(), set())

    def rolled_back(self, mechanism: str) -> None:
        """Upgrade, and assert that the guest goes on under the old QEMU as if nothing had been."""
        result = self.upgrade(mechanism, _RATIO)
        self.assertEqual(result.outcome, Outcome.ROLLED_BACK, result.reasons)
        self.assertEqual(result.verdict, VerdictKind.FAIL)
        self.assertEqual(result.integrity.bad_pages, 0)
        self.assertGreaterEqual(result.integrity.pages_checked_after, result.integrity.pages_total)

    @staticmethod
    def closed(data: bytes, before: int) -> bytes | None:
        """Let 50 MiB pass and no more."""
        return data if before < 50 * _MIB else None

    def qemus(self) -> set[str]:
        """Return the processes that are a QEMU of this test's."""
        found = set()
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if self.workdir in (process / "cmdline").read_text(encoding="utf-8"):
                    found.add(process.name)
        return found

    def image(self, name: str) -> Path:
        """Make an empty image."""
        path = Path(self.workdir) / f"{name}.qcow2"
        qemu_img = build.by_name(Layout.default(), "new").qemu_img
        run.run([qemu_img, "create", "-q", "-f", "qcow2", path, "64M"])
        return path

    @contextmanager
    def disk(self) -> Iterator[None]:
        """Give the guest a disk, although it does not know what to do with it."""
        image = self.image("disk")
        with mock.patch.object(disk, "overlay", lambda _base, _directory: image):
            yield

    @contextmanager
    def successor(self, **other: object) -> Iterator[None]:
        """Start the new QEMU with another machine than the old one."""
        real = cmdline.successor

        def changed(*args: object, **named: object) -> cmdline.Machine:
            return dataclasses.replace(real(*args, **named), **other)

        with mock.patch.object(cmdline, "successor", changed):
            yield

    def relayed(self, base: type[mechanisms.Mechanism], spoil: Spoil) -> Result:
        """Upgrade over a relay that spoils what it passes on."""

        class Relayed(base):
            name = "relayed"

            def prepare(self, old: Vm, new: Vm) -> None:
                super().prepare(old, new)
                self.sockets = new.machine.sockets
                Relay(self.sockets / "relay", self.sockets / "migrate", spoil)

            def go(self, old: Vm, new: Vm, asked: mechanisms.Asked) -> None:
                with mock.patch.object(self, "uri", lambda _: f"unix:{self.sockets / 'relay'}"):
                    super().go(old, new, asked)

        with mock.patch.object(mechanisms, "MECHANISMS", (*mechanisms.MECHANISMS, Relayed())):
            return self.upgrade("relayed", _RATIO)
