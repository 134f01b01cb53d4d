# SPDX-License-Identifier: GPL-2.0-or-later
"""``--domain`` with Proxmox VE: a guest in its public shape, and an event daemon of the test's own.

Parameters (avocado -p): old, new (the releases' own).
"""

import shutil
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import avocado
from bed import BRIDGE, Bed, bed
from bothqemus import BothQemus
from libvirthost import TOUCHED, Lines, lost, traffic

from lab.base.deadline import Deadline
from lab.base.errors import PreconditionError
from lab.base.layout import CHECKOUT, socket_directory
from lab.guest import images
from lab.measure import integrity
from lab.pair import firmware
from lab.workloads.netns import GUEST

KVM = Path("/usr/bin/kvm")
_RUN = Path("/run/qemu-server")
_LOG = Path("/run/qmeventd.log")
_SCRIPTS = Path("/usr/libexec/qemu-server")
_RAN = "/run/scripts.log"
#: What they come to, where nothing but a bridge is configured.
_BRIDGING = {
    "pve-bridge": f"#!/bin/sh\necho up $1 >>{_RAN}\nip link set $1 master {BRIDGE} up\n",
    "pve-bridgedown": f"#!/bin/sh\necho down $1 >>{_RAN}\nip link set $1 nomaster down\n",
}
#: The name of an option as a program has it, which only a terminal would be other with.
_OPTION = b"echr\0"


class Proxmox(BothQemus, avocado.Test):
    """The guest's memory is rewritten all the time, and checked to the last page.

    :avocado: tags=managers,medium
    """

    timeout = 1800

    @contextmanager
    def node(self) -> Iterator[tuple[Bed, Path]]:
        """Have a machine with what Proxmox VE has running, but for Proxmox VE."""
        with ExitStack() as stack:
            sockets = stack.enter_context(socket_directory(roomy=True))
            try:
                made = stack.enter_context(bed(self.layout, Path(self.outputdir), (), [sockets]))
            except PreconditionError as error:
                self.cancel(f"{error.message} {error.hint}")
            made.path(_RUN).mkdir()
            made.path(_SCRIPTS).mkdir(parents=True)
            for name, text in _BRIDGING.items():
                made.path(_SCRIPTS / name).write_text(text, encoding="ascii")
                made.path(_SCRIPTS / name).chmod(0o755)
            shutil.copytree(firmware.prepare(self.layout), made.path("/usr/share/kvm"))
            self.install(made, self.old.path)
            made.run(*self.event_daemon())
            yield made, sockets

    @staticmethod
    def install(made: Bed, qemu: Path) -> None:
        """Install a QEMU over the one that is there, as a package does.

        Proxmox VE's knows an option -id NUMBER, which changes nothing: as another one of QEMU's.
        """
        program = qemu.read_bytes()
        assert program.count(_OPTION) == 1
        made.path(f"{KVM}.new").write_bytes(
            program.replace(_OPTION, b"id".ljust(len(_OPTION), b"\0"))
        )
        made.path(f"{KVM}.new").chmod(0o755)
        made.path(f"{KVM}.new").rename(made.path(KVM))

    @staticmethod
    def event_daemon() -> list[str]:
        """Return the command line of the event daemon."""
        script = Path(__file__).with_name("qmeventd.py")
        return [sys.executable, str(script), "/run/qmeventd.sock", str(_LOG)]

    def argv(self, sockets: Path, queues: int) -> list[str]:
        """Return a command line as qemu-server writes it, and the agent's ports."""
        image = images.build("tiny", self.layout)
        several = f"mq=on,vectors={2 * queues + 2}" if queues > 1 else "mq=off"
        for file in (image.kernel, image.initrd):
            assert file
        words = f"""
            -name vm100,debug-threads=on -no-shutdown
            -chardev socket,id=qmp,path={_RUN}/100.qmp,server=on,wait=off
            -mon chardev=qmp,mode=control
            -chardev socket,id=qmp-event,path=/run/qmeventd.sock,reconnect-ms=5000
            -mon chardev=qmp-event,mode=control
            -pidfile {_RUN}/100.pid -daemonize
            -smbios type=1,uuid=6059fa6c-2c77-4113-8549-e99ed3520a21
            -smp {queues},sockets=1,cores={queues},maxcpus={queues}
            -nodefaults -boot menu=on,strict=on
            -display none -cpu qemu64 -accel tcg -m 256 -L /usr/share/kvm
            -chardev socket,path={_RUN}/100.qga,server=on,wait=off,id=qga0
            -device virtio-serial,id=qga0 -device virtserialport,chardev=qga0,name=agent
            -id 100 -netdev type=tap,id=net0,ifname=tap100i0
        """.split()
        words[-1] += f",script={_SCRIPTS}/pve-bridge,downscript={_SCRIPTS}/pve-bridgedown"
        if queues > 1:
            words[-1] += f",queues={queues}"
        words += f"""
            -device virtio-net-pci,mac=BC:24:11:00:00:01,netdev=net0,id=net0,romfile=,{several}
            -machine type=pc-q35-10.0
            -chardev socket,id=control,path={sockets}/control
            -device virtserialport,chardev=control,name=org.pageflip.control
            -chardev socket,id=heartbeat,path={sockets}/heartbeat
            -device virtserialport,chardev=heartbeat,name=org.pageflip.heartbeat
        """.split()
        return [
            *(str(KVM), *words, "-kernel", str(image.kernel), "-initrd", str(image.initrd)),
            *("-append", image.append),
        ]

    @contextmanager
    def guest(self, made: Bed, sockets: Path, queues: int = 1) -> Iterator[Lines]:
        """Start the guest, in a scope of its own."""
        join = 'for one in /sys/fs/cgroup /sys/fs/cgroup/systemd; do [ -e "$one/cgroup.procs" ] '
        join += '&& mkdir -p "$one/qemu.slice/100.scope" '
        join += '&& echo $$ > "$one/qemu.slice/100.scope/cgroup.procs"; done; exec "$@"'
        with Lines.of(sockets) as lines:
            made.run("sh", "-c", join, "sh", *self.argv(sockets, queues))
            for _ in Deadline.after(180, "the guest boots").poll():
                if lines.control.ready.is_set():
                    break
            integrity.fill(lines.control, TOUCHED, 20 * 2**20, lambda _done, _total: None)
            yield lines

    def pageflip(self, made: Bed, *words: str) -> tuple[int, str]:
        """Run the lab in there; return its exit code and what it printed."""
        lab = ["env", f"PYTHONPATH={CHECKOUT}", "COLUMNS=200", sys.executable, "-P", "-m", "lab"]
        out = ["--out", self.outputdir, "--connect", "proxmox"]
        done = made.run(*lab, *words, *out, check=False, seconds=240)
        self.log.info(done.stdout)
        return done.returncode, done.stdout

    def test_moves(self) -> None:
        """Pid file, sockets, scope and event daemon are right; nobody cleans up after the old."""
        self.moves("flip")

    def test_transplanted(self) -> None:
        """The same, from outside, of a guest with two processors and as many queues."""
        self.moves("transplant", queues=2)

    def moves(self, mechanism: str, queues: int = 1) -> None:
        """Move a guest, whose network goes on."""
        with self.node() as (made, sockets), self.guest(made, sockets, queues) as lines:
            going = traffic(made, lines, GUEST)
            was = made.path(_RUN / "100.pid").read_text(encoding="ascii").strip()
            scope = made.path(f"/proc/{was}/cgroup").read_text(encoding="utf-8")
            self.install(made, self.new.path)
            lines.renew()
            how = ("--mechanism", mechanism, "--patience", "30000")
            code, said = self.pageflip(made, "upgrade", "--domain", "100", *how)
            self.assertEqual(code, 0, said)
            now = made.path(_RUN / "100.pid").read_text(encoding="ascii").strip()
            self.assertNotEqual(now, was)
            self.assertEqual(list(made.processes("kvm")), [int(now)])
            self.assertEqual(made.path(f"/proc/{now}/cgroup").read_text(encoding="utf-8"), scope)
            self.assertIn(f"{self.new.version}, by {mechanism}", said)
            names = sorted(one.name for one in made.path(_RUN).iterdir())
            self.assertEqual(names, ["100.pid", "100.qga", "100.qmp"])
            events = made.path(_LOG).read_text(encoding="utf-8").splitlines()
            self.assertEqual(events[-1], f"connected 100 {now}")
            self.assertNotIn("cleanup 100", events)
            lines.find()
            report = integrity.check(lines.control, TOUCHED)
            self.assertEqual(report.status["bad_pages"], 0, report)
            seen = going.finish()
            # Of each queue, one that waited for room when the guest was stopped: kept, but by a
            # QEMU that is killed (docs/transplant.md).
            most = queues if mechanism == "transplant" else 0
            self.assertLessEqual(lost(seen, lines.control), most)
            self.assertEqual((seen.tcp_broken, seen.tcp_back), ("", seen.tcp_sent))
            ran = made.path(_RAN).read_text(encoding="ascii")
            self.assertEqual(ran, "up tap100i0\n")
            made.run("kill", now)
            for _ in Deadline.after(30, "the event daemon sees the guest's end").poll(0.1):
                if "cleanup 100" in made.path(_LOG).read_text(encoding="utf-8"):
                    break

    def test_busy(self) -> None:
        """A guest that Proxmox VE is at work at is refused, and not touched."""
        with self.node() as (made, sockets), self.guest(made, sockets):
            was = list(made.processes("kvm"))
            self.install(made, self.new.path)
            made.path("/etc/pve/qemu-server").mkdir(parents=True)
            made.path("/etc/pve/qemu-server/100.conf").write_text("lock: backup\n[a]\n")
            code, said = self.pageflip(made, "upgrade", "--domain", "100")
            self.assertEqual(code, 3, said)
            self.assertIn("guest 100 is locked (backup)", said)
            self.assertEqual(list(made.processes("kvm")), was)
            events = made.path(_LOG).read_text(encoding="utf-8").splitlines()
            self.assertEqual(events, [f"connected 100 {was[0]}"])
