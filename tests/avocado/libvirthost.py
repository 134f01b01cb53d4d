# SPDX-License-Identifier: GPL-2.0-or-later
"""A host with libvirt on it, in a bed: domains that run the lab's guest, and what they lost."""

from __future__ import annotations

import dataclasses
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from bed import BRIDGE, Bed, bed

from lab.base import process
from lab.base.deadline import Deadline, DeadlineError
from lab.base.layout import CHECKOUT, Layout, socket_directory
from lab.guest.images import GuestImage
from lab.measure import integrity
from lab.vm.agent import Control, Heart, agent_lines
from lab.workloads.netns import PREFIX
from lab.workloads.traffic import Seen, Traffic

_LAB = (
    f"PYTHONPATH={CHECKOUT}",
    "PYTHONDONTWRITEBYTECODE=1",
    "COLUMNS=200",
    *(sys.executable, "-P", "-m", "lab"),
)
PACKAGES = ("libvirt-daemon-system", "libvirt-clients")
STOCK = "qemu-system-x86"
EMULATOR = Path("/usr/bin/qemu-system-x86_64")
_SHARE = Path("/usr/share/qemu")
_IMAGES = Path("/var/lib/libvirt/images")
_BOOT_S, _BEATS_S = 300.0, 60.0
#: How much of a guest's memory is filled and checked, and rewritten each second (bytes).
TOUCHED, _RATE = 96 * 2**20, 20 * 2**20

_XML = """
<domain type='qemu'>
  <name>{name}</name>
  <memory unit='MiB'>{mib}</memory>
  {backing}
  <vcpu>{cpus}</vcpu>
  <iothreads>1</iothreads>
  {tune}
  <os>
    <type arch='x86_64' machine='q35'>hvm</type>
    <kernel>{images}/kernel</kernel><initrd>{images}/initrd</initrd><cmdline>{append}</cmdline>
  </os>
  <features><acpi/></features>
  <cpu mode='custom'><model>qemu64</model></cpu>
  <devices>
    <emulator>{emulator}</emulator>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2' iothread='1'/>
      <source file='{disk}'/><target dev='vda' bus='virtio'/>
    </disk>
    {network}
    <serial type='pty'/>
    <channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>
    <channel type='unix'><source mode='connect' path='{sockets}/control'/>
      <target type='virtio' name='org.pageflip.control'/></channel>
    <channel type='unix'><source mode='connect' path='{sockets}/heartbeat'/>
      <target type='virtio' name='org.pageflip.heartbeat'/></channel>
    <memballoon model='virtio'/>
  </devices>
</domain>
"""
#: Shared memory without a name, and in a file of libvirt's.
MEMFD = "<memoryBacking><source type='memfd'/><access mode='shared'/></memoryBacking>"
FILE = "<memoryBacking><access mode='shared'/></memoryBacking>"
_BRIDGED = """<interface type='bridge'><source bridge='{bridge}'/><model type='virtio'/>
<rom enabled='no'/></interface>"""
_TUNE = (
    "<cputune><vcpupin vcpu='0' cpuset='0'/><period>100000</period><quota>50000</quota></cputune>"
)


@dataclasses.dataclass
class Lines:
    """The lines to the agent in a domain's guest; each QEMU connects to new ones."""

    directory: Path
    stack: ExitStack
    control: Control
    heart: Heart

    def __post_init__(self) -> None:
        self._all = [(self.control, self.heart)]

    @classmethod
    @contextmanager
    def of(cls, directory: Path) -> Iterator[Lines]:
        """Listen in a directory."""
        with ExitStack() as stack:
            made = cls(directory, stack, *_listen(directory, stack))
            yield made

    def find(self) -> None:
        """Take the lines of the QEMU that has the guest."""
        before = [len(heart.beats) for _, heart in self._all]
        for _ in Deadline.after(_BEATS_S, "the guest's heart beats").poll(0.1):
            for (control, heart), count in zip(self._all, before, strict=True):
                if len(heart.beats) > count:
                    self.control, self.heart = control, heart
                    return

    def renew(self) -> None:
        """Listen for the next QEMU; who is connected stays it."""
        for name in ("control", "heartbeat"):
            (self.directory / name).unlink()
        self.control, self.heart = _listen(self.directory, self.stack)
        self._all.append((self.control, self.heart))


def _listen(directory: Path, stack: ExitStack) -> tuple[Control, Heart]:
    lines = stack.enter_context(agent_lines(directory / "control", directory / "heartbeat"))
    for name in ("control", "heartbeat"):
        (directory / name).chmod(0o777)  # QEMU is another user
    return lines


class LibvirtHost:
    """The host: its daemon runs, and the emulator is the old QEMU."""

    def __init__(self, made: Bed, image: GuestImage, out: Path, user: str = "") -> None:
        self.bed = made
        self._image = image
        self.out = out
        self.user = user
        self.uri = "qemu:///session" if user else "qemu:///system"
        self.home = Path(f"/home/{user}") if user else Path("/root")

    def virsh(self, *words: str, check: bool = True) -> str:
        """Run a command of virsh's, and return what it printed."""
        done = self._as_user("virsh", "--quiet", "--connect", self.uri, *words, check=check)
        return done.stdout.strip()

    def _as_user(
        self, *argv: str, check: bool = True, seconds: float = 120.0
    ) -> subprocess.CompletedProcess[str]:
        runtime = f"XDG_RUNTIME_DIR={self.runtime}"
        return self.bed.run(
            "env", f"HOME={self.home}", runtime, *argv, check=check, user=self.user, seconds=seconds
        )

    @property
    def runtime(self) -> str:
        """The user's runtime directory."""
        return f"/run/user/{self.user}" if self.user else ""

    def pageflip(self, *words: str, seconds: float = 900.0) -> tuple[int, str]:
        """Run the lab in there; return its exit code and what it printed."""
        done = self._as_user(*_LAB, *words, check=False, seconds=seconds)
        return done.returncode, done.stdout

    def killed_after(self, seconds: float, *words: str) -> None:
        """Run the lab in there, and kill it some time after its first step."""
        steps = self.bed.path("/run/pageflip/live")
        argv = self.bed.argv(["env", f"HOME={self.home}", *_LAB, *words], self.user)
        with process.spawned(argv, log=self.out / "killed.log") as running:
            self.until(
                lambda: running.poll() is not None or any(steps.glob("*/managers/*.json")),
                "the lab begins",
            )
            with suppress(subprocess.TimeoutExpired):
                running.wait(seconds)
            for pid, told in self.bed.processes(Path(sys.executable).name).items():
                if words[0] in told:
                    self.bed.kill(pid, signal.SIGKILL)

    def upgrade(self, *names: str, more: tuple[str, ...] = ()) -> tuple[int, str]:
        """Upgrade domains to what is installed."""
        return self.pageflip(*self.upgrading(*names), *more)

    def upgrading(self, *names: str) -> tuple[str, ...]:
        """Return the command line that upgrades domains."""
        where = ("--connect", self.uri, "--out", str(self.out))
        return ("upgrade", "--domain", *names, *where)

    def install(self, qemu: Path) -> None:
        """Install a QEMU over the one that is there, as a package does."""
        beside = self.bed.path(f"{EMULATOR}.dpkg-new")
        shutil.copy(qemu, beside)
        beside.rename(self.bed.path(EMULATOR))

    def start_daemons(self) -> None:
        """Start libvirt's daemons, where no user does by connecting."""
        if not self.user:
            self.bed.run("virtlogd", "--daemon", check=False)
            self.bed.run("libvirtd", "--daemon")

    def stop_daemon(self) -> None:
        """End libvirt's daemon for QEMU, as a service manager does."""
        file = self.state / "driver.pid"
        if self.bed.path(file).exists():
            pid = self.bed.path(file).read_text(encoding="ascii").split()[0]
            self.bed.run("kill", pid, check=False)
            self.until(lambda: not self.bed.path(f"/proc/{pid}/exe").exists(), "libvirtd ends")

    def restart_daemon(self) -> None:
        """Restart libvirt's daemon for QEMU."""
        self.stop_daemon()
        self.start_daemons()
        self.virsh("version")

    @staticmethod
    def until(done: Callable[[], bool], what: str) -> None:
        """Wait until something is so."""
        for _ in Deadline.after(60, what).poll(0.01):
            if done():
                return

    @property
    def images(self) -> Path:
        """Where disks are."""
        return self.home if self.user else _IMAGES

    @property
    def state(self) -> Path:
        """Where libvirt keeps what runs."""
        return Path(self.runtime, "libvirt/qemu/run") if self.user else Path("/run/libvirt/qemu")

    def status(self, name: str) -> bytes:
        """Return a domain's status XML, as it is once libvirt's daemon has found the domain."""
        # A daemon writes it when it has found a domain, and answers for the domain no sooner.
        self.version(name)
        return self.bed.path(self.state / f"{name}.xml").read_bytes()

    def pid(self, name: str) -> int:
        """Return a domain's process, by the bed's numbers."""
        text = self.bed.path(self.state / f"{name}.pid").read_text(encoding="ascii")
        return int(text)

    def version(self, name: str) -> str:
        """Return what a domain's QEMU says it is."""
        said = self.virsh("qemu-monitor-command", name, "--hmp", "info version")
        return said.split()[0].partition("(")[0]

    def console(self, name: str, command: str) -> str:
        """Run a command in a domain's guest, by its serial console; return what it printed."""
        terminal = self.bed.path(self.virsh("ttyconsole", name))
        deadline = Deadline.after(_BOOT_S, f"the console of {name} answers {command}")
        descriptor = os.open(terminal, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
        try:
            # What is typed before the shell is there may be lost: it is asked for its prompt first.
            program = self.bed.path(f"/proc/{self.pid(name)}/exe")
            _type(descriptor, "", r"# $", deadline, program)
            # The shell echoes what is typed: it puts the marks together.
            line = f"echo be''gun; {command}; echo do''ne:$?"
            said = _type(descriptor, line, r"done:\d+\s", deadline, program)
        finally:
            os.close(descriptor)
        printed, _, status = said.partition("begun\n")[2].partition("done:")
        assert status.split()[0] == "0", said
        return printed

    def wake(self, name: str) -> None:
        """Let the agent in an idle domain go on."""
        self.console(name, "killall -CONT agent")

    def digest(self, name: str) -> str:
        """Return the SHA-256 of a domain's disk, as its guest reads it past its cache."""
        said = self.console(name, "echo 3 >/proc/sys/vm/drop_caches; sha256sum /dev/vda")
        return said.split()[0]

    def qmp(self, name: str, line: str) -> str:
        """Ask a domain's QEMU by libvirt's monitor."""
        return self.virsh("qemu-monitor-command", name, line)

    def qemus(self) -> dict[int, list[str]]:
        """Return every QEMU that is there, by the bed's process ids."""
        return self.bed.processes(EMULATOR.name)

    def _boot(self, name: str) -> None:
        """Start a domain; again if its QEMU crashes at once, which is not what is tested here.

        Debian 12's (7.2) does, now and then, under TCG with two processors: a segmentation fault of
        a processor's thread, a few seconds into the guest's boot.
        """
        for left in (2, 1, 0):
            self.virsh("start", name)
            try:
                self.console(name, "test -e /dev/vda")
            except (_EndedError, process.CommandError, OSError):
                if not left or self.virsh("domstate", name) == "running":
                    raise
            else:
                return

    @contextmanager
    def domain(
        self,
        name: str,
        sockets: Path,
        *,
        mib: int = 256,
        cpus: int = 1,
        quota: bool = False,
        idle: bool = False,
        backing: str = "",
    ) -> Iterator[Lines]:
        """Start a domain and fill its guest's memory; destroy it afterwards.

        A user's own has no tap; an idle one's memory is filled, and not rewritten, and its agent,
        whose heart takes a fifth of a processor, stands still until it is woken.  `backing` is what
        its memory is made of (XML).
        """
        disk = self.images / f"{name}.qcow2"
        self._as_user("qemu-img", "create", "-q", "-f", "qcow2", str(disk), "64M")
        text = _XML.format(
            name=name,
            mib=mib,
            cpus=cpus,
            backing=backing,
            tune=_TUNE if quota else "",
            images=_IMAGES,
            append=f"{self._image.append} pageflip.shell",
            emulator=EMULATOR,
            disk=disk,
            network=_BRIDGED.format(bridge=BRIDGE) if not self.user else "",
            sockets=sockets,
        )
        file = f"/tmp/{name}.xml"
        self.bed.path(file).write_text(text, encoding="utf-8")
        sockets.mkdir(exist_ok=True)
        with Lines.of(sockets) as lines:
            try:
                self.virsh("define", file)
                self._boot(name)
                self.console(name, "(agent </dev/null >/dev/null 2>&1 &)")
                for _ in Deadline.after(_BOOT_S, f"domain {name} boots").poll():
                    if lines.control.ready.is_set():
                        break
                if idle:
                    filled = Deadline.after(_BOOT_S, "the guest's memory is filled")
                    lines.control.call("fill", filled, bytes=TOUCHED)
                    self.console(name, "killall -STOP agent")
                else:
                    integrity.fill(lines.control, TOUCHED, _RATE, lambda _done, _total: None)
                yield lines
            finally:
                self.virsh("destroy", name, check=False)
                self.virsh("undefine", name, check=False)


def traffic(made: Bed, lines: Lines, address: str) -> Traffic:
    """Send numbered datagrams and a stream to a guest, which echoes them."""
    deadline = Deadline.after(60, "the guest's network answers")
    for port in made.path(f"sys/class/net/{BRIDGE}/brif").iterdir():
        # For a guest that stands still on a busy machine: as lab.workloads.netnschild has it.
        made.run("ip", "link", "set", "dev", port.name, "txqueuelen", "10000")
    ports = lines.control.call("echo", deadline, address=address, prefix=PREFIX)
    datagrams = made.socket(socket.SOCK_DGRAM)
    stream = made.socket(socket.SOCK_STREAM)
    stream.settimeout(deadline.left)
    datagrams.connect((address, ports["udp_port"]))
    stream.connect((address, ports["tcp_port"]))
    going = Traffic(datagrams, stream)
    going.start()
    going.wait(deadline, lambda: None)
    return going


class _EndedError(Exception):
    """A domain's QEMU is not there any more."""


def _type(terminal: int, line: str, wanted: str, deadline: Deadline, program: Path) -> str:
    """Type a line, an empty one again and again, until what is wanted has been printed."""
    said = ""
    os.write(terminal, f"{line}\n".encode())
    while not re.search(wanted, said):
        if not program.exists():
            raise _EndedError(f"{deadline.what}: its QEMU has ended; it says {said[-500:]!r}")
        if deadline.expired:
            raise DeadlineError(
                f"{deadline.what}: not in {deadline.seconds:g} s; it says {said[-500:]!r}"
            )
        if select.select([terminal], [], [], 1)[0]:
            said += os.read(terminal, 65536).decode(errors="replace").replace("\r", "")
        elif not line:
            os.write(terminal, b"\n")
    return said


def lost(seen: Seen, control: Control) -> int:
    """Return how many datagrams are missing that neither the guest nor the test had no room for."""
    echo = control.call("status", Deadline.after(60, "the guest's account"))["echo"]
    missing = seen.sent - len({one.n for one in seen.echoes})
    return missing - seen.unsent - seen.dropped - echo["dropped"] - echo["unanswered"]


def pause_ms(said: str) -> list[float]:
    """Return every pause that the lab reported."""
    return [float(one) for one in re.findall(r"stood still for ([\d.]+) ms", said)]


@contextmanager
def libvirt_host(
    layout: Layout,
    directory: Path,
    image: GuestImage,
    old: Path | None,
    firmware: Path,
    user: str = "",
    *,
    sandboxed: bool = False,
) -> Iterator[tuple[LibvirtHost, Path]]:
    """Have a host with libvirt, and a directory for the sockets of its guests' agents.

    Its QEMU is `old`, without the sandbox that libvirt puts a QEMU into if not `sandboxed`, so that
    it can start another one; or the machine's distribution's, in that sandbox.
    """
    packages = PACKAGES if old else (*PACKAGES, STOCK)
    with (
        socket_directory(roomy=True) as sockets,
        bed(layout, directory, packages, [sockets]) as made,
    ):
        sockets.chmod(0o755)
        (directory / "out").mkdir()
        host = LibvirtHost(made, image, directory / "out", user)
        if old:
            host.install(old)
            shutil.copytree(firmware, made.path(_SHARE), dirs_exist_ok=True)
        made.path(_IMAGES).mkdir(parents=True, exist_ok=True)
        assert image.initrd
        for file in (image.kernel, image.initrd):
            shutil.copy(file, made.path(_IMAGES / file.name))
        if user:
            made.run("useradd", "--create-home", user)
            made.run("install", "-d", "-o", user, "-m", "700", f"/run/user/{user}")
            (directory / "out").chmod(0o777)
        if old and not sandboxed:
            settings = host.home / ".config/libvirt" if user else Path("/etc/libvirt")
            made.path(settings).mkdir(parents=True, exist_ok=True)
            made.path(settings / "qemu.conf").write_text("seccomp_sandbox = 0\n", encoding="ascii")
            if user:
                made.run("chown", "-R", user, str(host.home))
        host.start_daemons()
        host.virsh("version")
        yield host, sockets
