# SPDX-License-Identifier: GPL-2.0-or-later
"""The tiny guest with a shell on its serial port, and disks that are known by their hash."""

import re
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab.base import process
from lab.base.deadline import Deadline
from lab.base.layout import Layout
from lab.guest import images
from lab.live import look, planning
from lab.live.move import Mover
from lab.model import Outcome
from lab.pair import firmware
from lab.vm.binary import Binary
from lab.vm.monitor import Monitor

_ANSWER_S = 60.0
_DONE = re.compile(rb"@@(\d+)@@")


@dataclass
class Shell:
    """What answers on the serial port; whoever is connected loses it when the guest moves."""

    path: Path

    def run(self, command: str) -> str:
        """Run a command in the guest; return what it printed, raise AssertionError if it fails."""
        deadline = Deadline.after(_ANSWER_S, command)
        with socket.socket(socket.AF_UNIX) as line:
            line.settimeout(1)
            line.connect(str(self.path))
            line.sendall(b"\n")
            # What is typed may be echoed; it is not what is looked for.
            line.sendall(f"stty -echo; echo @@''begin; {command}; echo @@$?@@\n".encode())
            text = b""
            while not (found := _DONE.search(text)):
                deadline.check()
                with suppress(TimeoutError):
                    text += line.recv(65536)
        said = text[: found.start()].decode(errors="replace").partition("@@begin")[2]
        assert found.group(1) == b"0", f"{command}: {said}"
        return said.replace("\r", "").strip()


@dataclass
class ShellGuest:
    """A running one."""

    pid: int
    directory: Path
    shell: Shell

    @property
    def qmp(self) -> Path:
        """Its monitor."""
        return self.directory / "qmp"

    @contextmanager
    def monitor(self) -> Iterator[Monitor]:
        """Talk to it for as long as the block lasts."""
        with look.connected(look.find(str(self.qmp))[0], self.qmp) as monitor:
            yield monitor

    def execute(self, command: str, **arguments: Any) -> Any:
        """Run one QMP command."""
        with self.monitor() as monitor:
            return monitor.execute(command, placed(arguments, self.directory))

    def wait_for(self, condition: str) -> None:
        """Wait until a condition of the guest's shell is true."""
        self.shell.run(f"n=0; until {condition}; do n=$((n+1)); test $n -lt 300 || break; "
                       f"usleep 100000; done; {condition}")  # fmt: skip

    def fill(self, device: str, mib: int = 4) -> str:
        """Write random data to the beginning of a disk, and return what `hash` will say of it."""
        self.shell.run(f"dd if=/dev/urandom of={device} bs=1M count={mib} conv=fsync")
        return self.hash(device)

    def hash(self, device: str) -> str:
        """Return the hash of all that is on a disk, read from there."""
        said = self.shell.run(f"sync; echo 3 >/proc/sys/vm/drop_caches; sha256sum {device}")
        return re.findall(r"[0-9a-f]{64}", said)[-1]


def placed(value: Any, directory: Path) -> Any:
    """Return it with the directory in place of ``@`` and names of members as QMP has them."""
    if isinstance(value, str):
        return value.replace("@", str(directory))
    if isinstance(value, dict):
        return {name: placed(part, directory) for name, part in value.items()}
    return value


@contextmanager
def shell_guest(
    layout: Layout, qemu: Binary, directory: Path, *words: str, **disks: str
) -> Iterator[ShellGuest]:
    """Start one; `disks` are images to be made in its directory first, with what they are."""
    for name, what in disks.items():
        options = placed(what, directory).split()
        tool = qemu.path.with_name("qemu-img")
        process.run([tool, "create", "-q", *options, directory / name, "8M"])
    image = images.build("tiny", layout)
    argv = [
        qemu.path, "-L", firmware.prepare(layout), "-nodefaults", "-display", "none",
        "-machine", "pc-q35-10.0,accel=tcg", "-m", "320M",
        "-kernel", image.kernel, "-initrd", image.initrd,
        "-append", f"{image.append} pageflip.shell",
        "-serial", f"unix:{directory}/serial,server=on,wait=off",
        "-qmp", f"unix:{directory}/qmp,server=on,wait=off",
        "-device", "pcie-root-port,id=rp1,chassis=1", "-device", "pcie-root-port,id=rp2,chassis=2",
        "-device", "virtio-scsi-pci,id=s,bus=rp2",
        *(placed(word, directory) for word in words),
    ]  # fmt: skip
    with process.spawned(argv, log=directory / "log", cwd=directory) as child:
        for _ in Deadline.after(_ANSWER_S, "QEMU listens").poll(0.02):
            assert child.poll() is None, (directory / "log").read_text(encoding="utf-8")
            if (directory / "serial").exists() and (directory / "qmp").exists():
                break
        guest = ShellGuest(child.pid, directory, Shell(directory / "serial"))
        guest.shell.run("true")
        yield guest


class ShellGuests:
    """A mixin for tests, beside `BothQemus`: such guests of the old QEMU, and their upgrade."""

    @contextmanager
    def guest(self, *words: str, **disks: str) -> Iterator[ShellGuest]:
        """Start a guest, and end whatever QEMU has it then."""
        with tempfile.TemporaryDirectory(prefix="disks", dir="/var/tmp") as name:
            directory = Path(name)
            with shell_guest(self.layout, self.old, directory, *words, **disks) as one:
                try:
                    yield one
                finally:
                    pid = look.find(str(one.qmp))[0]
                    if pid != one.pid:
                        process.Foreign(pid).kill()

    def upgrade(self, one: ShellGuest, mechanism: str) -> None:
        """Do what the verb does."""
        plan = planning.plan(str(one.qmp), self.new, mechanism)
        moved = Mover(self.layout).one(plan)
        self.assertEqual((moved.outcome, moved.failure), (Outcome.UPGRADED, ""))
        self.assertEqual(moved.differences, [])
        self.assertEqual(look.look(str(one.qmp)).binary.version, self.new.version)
