# SPDX-License-Identifier: GPL-2.0-or-later
"""``pageflip upgrade --domain``: guests of a real libvirt, in namespaces of the test's own.

Parameters (avocado -p): old, new: the pair.
"""

import json
import random
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import avocado
from bothqemus import BothQemus
from libvirthost import (
    EMULATOR,
    FILE,
    MEMFD,
    TOUCHED,
    LibvirtHost,
    Lines,
    libvirt_host,
    lost,
    pause_ms,
    traffic,
)

from lab.base.deadline import Deadline, DeadlineError
from lab.base.errors import PreconditionError
from lab.guest import images
from lab.measure import integrity
from lab.pair import firmware
from lab.workloads.netns import GUEST

#: So long after its first step libvirt is back, or nearly (s).
_AWAY_S = 8.0
#: A busy machine's new QEMU may be too slow for the pause that QEMU allows by itself.
_PATIENT = ("--patience", "30000")
_TWICE = 2


class Managers(BothQemus, avocado.Test):
    """Each guest's memory is rewritten all the time, and checked to the last page.

    :avocado: tags=managers,medium
    """

    timeout = 3600

    @contextmanager
    def host(
        self, user: str = "", *, stock: bool = False, sandboxed: bool = False
    ) -> Iterator[tuple[LibvirtHost, Path]]:
        """Have a host with libvirt; cancel where there cannot be one."""
        image = images.build("tiny", self.layout)
        files = firmware.prepare(self.layout)
        old = None if stock else self.old.path
        out = Path(self.outputdir)
        made = libvirt_host(self.layout, out, image, old, files, user, sandboxed=sandboxed)
        try:
            entered = made.__enter__()
        except PreconditionError as error:
            self.cancel(f"{error.message} {error.hint}")
        try:
            yield entered
        finally:
            made.__exit__(None, None, None)

    def whole(self, lines: Lines) -> None:
        """Assert that the guest is whole, and hear it."""
        before = len(lines.heart.beats)
        try:
            beats = Deadline.after(60, "the guest's heart beats")
            lines.heart.wait(before + 300, beats, lambda: None)
        except DeadlineError:
            self.log.info("%d beats before, %d now", before, len(lines.heart.beats))
            mine = lines.control.call("status", Deadline.after(60, "the guest's account"))
            self.log.info("by the guest's account: %s", mine)
            raise
        report = integrity.check(lines.control, TOUCHED)
        self.assertEqual(report.status["bad_pages"], 0, report)
        self.assertEqual(report.full_pass["pages_checked"] * 4096, TOUCHED)

    def upgraded(self, host: LibvirtHost, name: str, lines: Lines, version: str = "") -> None:
        """Upgrade a domain, and assert that libvirt has it as it was, under the new QEMU."""
        was, number, uuid = host.pid(name), host.virsh("domid", name), host.virsh("domuuid", name)
        lines.renew()
        code, said = host.upgrade(name, more=_PATIENT)
        self.log.info(said)
        self.assertEqual(code, 0, said)
        self.assertNotEqual(host.pid(name), was)
        self.said = said
        self.assertEqual(list(host.qemus()), [host.pid(name)])
        self.assertEqual(host.version(name), version or self.new.version)
        self.assertEqual(host.virsh("domstate", name), "running")
        self.assertEqual((host.virsh("domid", name), host.virsh("domuuid", name)), (number, uuid))
        self.whole(lines)

    def fill_disk(self, host: LibvirtHost, name: str) -> str:
        """Write random data to a domain's disk, and return its digest."""
        host.console(name, "dd if=/dev/urandom of=/dev/vda bs=1M count=64 conv=fsync 2>/dev/null")
        return host.digest(name)

    def groups(self, host: LibvirtHost, name: str) -> dict[str, Path]:
        """Return the group of each of the domain's processors that bounds their time."""
        where = host.bed.path("/sys/fs/cgroup")
        base = where / "cpu" if (where / "cpu").is_dir() else where
        return {one.name: one for one in base.rglob(f"*{name}*/**/vcpu*")}

    def test_what_an_operator_does(self) -> None:
        """Everything that libvirt did with the old QEMU it does with the new one."""
        with (
            self.host() as (host, sockets),
            host.domain("g1", sockets / "g1", cpus=2, quota=True) as lines,
        ):
            digest = self.fill_disk(host, "g1")
            host.install(self.new.path)
            self.upgraded(host, "g1", lines)
            self.assertEqual(host.digest("g1"), digest)
            self.bounded(host, "g1")
            host.virsh("suspend", "g1")
            self.assertEqual(host.virsh("domstate", "g1"), "paused")
            host.virsh("resume", "g1")
            self.commits(host, "g1")
            self.plugs(host, "g1")
            self.assertEqual(host.digest("g1"), digest)
            self.whole(lines)
            host.virsh("destroy", "g1")
            self.assertEqual(host.qemus(), {})
            self.assertEqual(host.virsh("domstate", "g1"), "shut off")

    def test_new_qemu_fails(self) -> None:
        """Whatever the new QEMU does, libvirt goes on with the old one, which lacks nothing."""
        with self.host() as (host, sockets), host.domain("g1", sockets / "g1") as lines:
            host.install(self.new.path)
            self.assertEqual(
                host.pageflip("preflight", "--domain", "g1", "--connect", host.uri)[0], 0
            )
            host.restart_daemon()
            before, was = host.status("g1"), host.pid("g1")
            for kind, fails, why in (
                ("ends", self.without_firmware, "could not load PC BIOS"),
                ("is killed", self.killed, ""),
            ):
                with fails(host):
                    code, said = host.upgrade("g1")
                self.log.info(said)
                self.assertEqual(code, 1, said)
                self.assertIn(why, said)
                self.assertEqual(list(host.qemus()), [was], kind)
                self.assertEqual(host.status("g1").decode(), before.decode(), kind)
                self.assertEqual(host.version("g1"), self.old.version, kind)
                host.virsh("suspend", "g1")
                host.virsh("resume", "g1")
                self.whole(lines)
                before = host.status("g1")

    @contextmanager
    def without_firmware(self, host: LibvirtHost) -> Iterator[None]:
        """Let the new QEMU end as soon as it starts."""
        files = host.bed.path("/usr/share/qemu")
        files.rename(files.with_name("aside"))
        try:
            yield
        finally:
            files.with_name("aside").rename(files)

    @contextmanager
    def killed(self, host: LibvirtHost) -> Iterator[None]:
        """Kill the new QEMU as soon as it is there."""
        over = threading.Event()
        seen: list[int] = []

        def kill() -> None:
            while not over.is_set() and not seen:
                seen.extend(pid for pid, argv in host.qemus().items() if "-incoming" in argv)
            for pid in seen:
                host.bed.kill(pid, signal.SIGKILL)

        thread = threading.Thread(target=kill)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
        self.assertTrue(seen)

    def test_a_daemon_that_is_started_in_the_middle(self) -> None:
        """It is kept out by the lock, and everything is as if it had not been tried."""
        over, said = threading.Event(), list[str]()

        def start(host: LibvirtHost) -> None:
            while not over.is_set():
                done = host.bed.run("timeout", "-k", "1", "5", "libvirtd", check=False)
                said.append(done.stdout)
                over.wait(0.5)

        with self.host() as (host, sockets), host.domain("g1", sockets / "g1") as lines:
            host.install(self.new.path)
            thread = threading.Thread(target=start, args=[host])
            thread.start()
            try:
                self.upgraded(host, "g1", lines)
            finally:
                over.set()
                thread.join()
            self.assertIn(f"{host.state}/driver.pid", "".join(said))
            host.restart_daemon()
            self.assertEqual(host.version("g1"), self.new.version)

    def test_sandboxed(self) -> None:
        """The distribution's QEMU, in the sandbox that libvirt gives it by itself: by transplant.

        To the same version installed once more: it is a newer package that keeps the version.
        """
        with (
            self.host(stock=True) as (host, sockets),
            host.domain("g1", sockets / "g1", cpus=2) as lines,
        ):
            digest, version = self.fill_disk(host, "g1"), host.version("g1")
            going = traffic(host.bed, lines, GUEST)
            for _ in range(_TWICE):
                self.confined(host, "g1")
                shutil.copy(host.bed.path(EMULATOR), again := Path(self.workdir, "again"))
                host.install(again)
                self.upgraded(host, "g1", lines, version)
                self.assertIn(" by transplant", self.said)
                self.confined(host, "g1")
                host.restart_daemon()
                self.assertEqual(host.digest("g1"), digest)
            seen = going.finish()
            # Of each, the packet that the old QEMU took when its guest stood still already, and one
            # that waited for room in the guest's queue then.
            self.assertLessEqual(lost(seen, lines.control), 2 * _TWICE)
            self.assertEqual((seen.tcp_broken, seen.tcp_back), ("", seen.tcp_sent))
            host.virsh("suspend", "g1")
            host.virsh("resume", "g1")
            self.plugs(host, "g1")
            self.whole(lines)
            host.virsh("destroy", "g1")
            self.assertEqual(host.qemus(), {})

    def test_sandboxed_with_the_series(self) -> None:
        """A QEMU that could start the new one, if its sandbox let it: by transplant as well."""
        with (
            self.host(sandboxed=True) as (host, sockets),
            host.domain("g1", sockets / "g1") as lines,
        ):
            going = traffic(host.bed, lines, GUEST)
            self.confined(host, "g1")
            host.install(self.new.path)
            self.upgraded(host, "g1", lines)
            self.assertIn(" by transplant", self.said)
            self.confined(host, "g1")
            host.restart_daemon()
            self.assertEqual(host.version("g1"), self.new.version)
            seen = going.finish()
            # One that waited for room in the guest's queue is kept, but by a QEMU that is killed.
            self.assertLessEqual(lost(seen, lines.control), 1)
            self.assertEqual(seen.tcp_broken, "")

    def confined(self, host: LibvirtHost, name: str) -> None:
        """Assert that a domain's QEMU has its system calls filtered."""
        status = host.bed.path(f"/proc/{host.pid(name)}/status").read_text(encoding="utf-8")
        self.assertIn("\nSeccomp:\t2\n", status)
        self.assertIn("-sandbox", host.qemus()[host.pid(name)])

    def test_killed(self) -> None:
        """The lab is killed at any instant: what is left is brought to its end.

        :avocado: tags=managers,thorough
        """
        seed = int(self.params.get("seed", default=str(random.randrange(10**6))))
        instants = random.Random(seed)
        with self.host() as (host, sockets), host.domain("g1", sockets / "g1") as lines:
            host.install(self.new.path)
            self.upgraded(host, "g1", lines)
            for number in range(int(self.params.get("kills", default="30"))):
                lines.renew()
                at = instants.uniform(0, _AWAY_S)
                host.killed_after(at, *host.upgrading("g1"))
                code, said = host.pageflip("recover")
                self.log.info("seed %d, kill %d after %.2f s: %s", seed, number, at, said)
                self.assertEqual(code, 0, said)
                self.assertEqual(host.virsh("domstate", "g1"), "running")
                self.assertEqual(list(host.qemus()), [host.pid("g1")])
                self.assertEqual(host.version("g1"), self.new.version)
                lines.find()
            self.whole(lines)

    def test_session(self) -> None:
        """A user's own libvirt, which starts by itself."""
        with self.host("tester") as (host, sockets), host.domain("g1", sockets / "g1") as lines:
            host.install(self.new.path)
            self.upgraded(host, "g1", lines)
            host.restart_daemon()
            self.upgraded(host, "g1", lines)
            host.virsh("suspend", "g1")
            host.virsh("resume", "g1")
            host.virsh("destroy", "g1")
            self.assertEqual(host.qemus(), {})

    def test_ten(self) -> None:
        """Ten domains with one command; libvirt's daemon is stopped once.

        :avocado: tags=managers,thorough
        """
        names = [f"g{number}" for number in range(10)]
        with self.host() as (host, sockets), ExitStack() as stack:
            guests = [
                stack.enter_context(host.domain(name, sockets / name, idle=True)) for name in names
            ]
            host.install(self.new.path)
            for lines in guests:
                lines.renew()
            began = time.monotonic()
            code, said = host.upgrade(*names, more=("--at-once", "2", *_PATIENT))
            self.log.info("%s\n%.1f s in all", said, time.monotonic() - began)
            self.assertEqual(code, 0, said)
            self.assertEqual(len(pause_ms(said)), len(names))
            self.assertEqual(sorted(host.qemus()), sorted(map(host.pid, names)))
            self.assertEqual(said.count("is kept away"), 1)
            for name, lines in zip(names, guests, strict=True):
                self.assertEqual(host.version(name), self.new.version)
                host.wake(name)
                self.whole(lines)

    def bounded(self, host: LibvirtHost, name: str) -> None:
        """Assert that the guest's processors are where libvirt bounds their time."""
        told = host.qmp(name, '{"execute": "query-cpus-fast"}')
        threads = {
            f"vcpu{cpu['cpu-index']}": cpu["thread-id"] for cpu in json.loads(told)["return"]
        }
        host.virsh("schedinfo", name, "--live", "vcpu_quota=40000")
        groups = self.groups(host, name)
        self.assertEqual(groups.keys(), threads.keys())
        for group, thread in threads.items():
            inside = ["cat", f"/proc/{thread}/cgroup"]
            self.assertIn(f"/{group}\n", host.bed.run(*inside).stdout)
            (limit,) = [
                (groups[group] / file).read_text(encoding="ascii").split()[0]
                for file in ("cpu.max", "cpu.cfs_quota_us")
                if (groups[group] / file).exists()
            ]
            self.assertEqual(limit, "40000")
        pinned = host.bed.run("taskset", "--pid", str(threads["vcpu0"])).stdout
        self.assertTrue(pinned.strip().endswith(": 1"), pinned)

    def commits(self, host: LibvirtHost, name: str) -> None:
        """Put a snapshot on the disk, and commit it."""
        over = f"{host.images}/{name}.over.qcow2"
        spec = f"vda,snapshot=external,file={over}"
        host.virsh(
            "snapshot-create-as", name, "s1", "--disk-only", "--no-metadata", "--diskspec", spec
        )
        self.assertIn(over, host.virsh("domblklist", name))
        host.virsh("blockcommit", name, "vda", "--active", "--pivot", "--wait")
        self.assertNotIn(over, host.virsh("domblklist", name))

    def plugs(self, host: LibvirtHost, name: str) -> None:
        """Plug a disk in, and take it out."""
        disk = f"{host.images}/{name}.more.qcow2"
        host.bed.run("qemu-img", "create", "-q", "-f", "qcow2", disk, "8M")
        host.virsh("attach-disk", name, disk, "vdb", "--subdriver", "qcow2", "--live")
        host.console(name, "while ! test -e /dev/vdb; do sleep 1; done")
        host.virsh("detach-disk", name, "vdb", "--live")
        host.until(lambda: "vdb" not in host.virsh("domblklist", name), "the disk is taken out")

    def test_config(self) -> None:
        """If that is asked for, the domain's next start is by the program that it was moved to."""
        other = Path("/usr/local/bin/qemu-system-x86_64")
        with self.host() as (host, sockets), host.domain("g1", sockets / "g1") as lines:
            shutil.copy(self.new.path, host.bed.path(other))
            # It looks for its firmware beside itself.
            host.bed.run("ln", "-s", "/usr/share/qemu", "/usr/local/share/qemu")
            lines.renew()
            code, said = host.upgrade("g1", more=("--new", str(other), "--config", *_PATIENT))
            self.assertEqual(code, 0, said)
            self.whole(lines)
            host.virsh("destroy", "g1")
            host.virsh("start", "g1")
            self.assertEqual(host.version("g1"), self.new.version)
            self.assertEqual(host.qemus()[host.pid("g1")][0], str(other))

    def test_twice(self) -> None:
        """Two upgrades in a row, libvirt restarted after each, and no datagram lost."""
        with self.host() as (host, sockets), host.domain("g1", sockets / "g1") as lines:
            going = traffic(host.bed, lines, GUEST)
            host.install(self.new.path)
            self.upgraded(host, "g1", lines)
            host.restart_daemon()
            self.upgraded(host, "g1", lines)
            host.restart_daemon()
            self.assertEqual(host.version("g1"), self.new.version)
            seen = going.finish()
            self.assertEqual((lost(seen, lines.control), seen.tcp_broken), (0, ""))
            self.assertEqual(seen.tcp_back, seen.tcp_sent)
            self.assertGreater(seen.sent, 1000)

    def test_shared(self) -> None:
        """A guest with shared memory, twice: by transplant, as nobody else starts its new QEMU."""
        with self.host() as (host, sockets):
            for name, backing in (("g1", MEMFD), ("g2", FILE)):
                with host.domain(name, sockets / name, backing=backing) as lines:
                    host.install(self.new.path)
                    for _ in range(_TWICE):
                        self.upgraded(host, name, lines)
                        self.assertIn(" by transplant", self.said)
                        host.restart_daemon()
