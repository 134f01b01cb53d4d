# SPDX-License-Identifier: GPL-2.0-or-later
"""``pageflip upgrade --domain``: guests of a real libvirt, in namespaces of the test's own.

Parameters (avocado -p): old (10.0), new (10.2).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import avocado
from libvirthost import TOUCHED, LibvirtHost, Lines, libvirt_host, lost

from lab.base.deadline import Deadline
from lab.base.errors import PreconditionError
from lab.base.layout import Layout
from lab.guest import images
from lab.measure import integrity
from lab.pair import build, firmware
from lab.workloads.netns import GUEST


class Managers(avocado.Test):
    """Each guest's memory is rewritten all the time, and checked to the last page.

    :avocado: tags=managers,medium
    """

    timeout = 900

    def setUp(self) -> None:
        """Build what is needed."""
        self.layout = Layout.default().into(Path(self.outputdir))
        self.old = build.by_name(self.layout, self.params.get("old", default="10.0"))
        self.new = build.by_name(self.layout, self.params.get("new", default="10.2"))

    @contextmanager
    def host(self, user: str = "") -> Iterator[tuple[LibvirtHost, Path]]:
        """Have a host with libvirt; cancel where there cannot be one."""
        image = images.build("tiny", self.layout)
        files = firmware.prepare(self.layout)
        made = libvirt_host(self.layout, Path(self.outputdir), image, files, self.old.qemu, user)
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
        lines.heart.wait(before + 300, Deadline.after(60, "the guest's heart beats"), lambda: None)
        report = integrity.check(lines.control, TOUCHED)
        self.assertEqual(report.status["bad_pages"], 0, report)
        self.assertEqual(report.full_pass["pages_checked"] * 4096, TOUCHED)

    def upgraded(self, host: LibvirtHost, name: str, lines: Lines) -> None:
        """Upgrade a domain, and assert that libvirt has it as it was, under the new QEMU."""
        was, number, uuid = host.pid(name), host.virsh("domid", name), host.virsh("domuuid", name)
        lines.renew()
        code, said = host.upgrade(name)
        self.log.info(said)
        self.assertEqual(code, 0, said)
        self.assertNotEqual(host.pid(name), was)
        self.assertEqual(list(host.qemus()), [host.pid(name)])
        self.assertEqual(host.version(name), self.new.version)
        self.assertEqual(host.virsh("domstate", name), "running")
        self.assertEqual((host.virsh("domid", name), host.virsh("domuuid", name)), (number, uuid))
        self.whole(lines)

    def test_twice(self) -> None:
        """Two upgrades in a row, libvirt restarted after each, and no datagram lost."""
        with self.host() as (host, sockets), host.domain("g1", sockets, cpus=2) as lines:
            traffic = host.traffic(lines, GUEST)
            host.install(self.new.qemu)
            self.upgraded(host, "g1", lines)
            host.restart_daemon()
            self.upgraded(host, "g1", lines)
            host.restart_daemon()
            self.assertEqual(host.version("g1"), self.new.version)
            seen = traffic.finish()
            self.assertEqual((lost(seen, lines.control), seen.tcp_broken), (0, ""))
            self.assertEqual(seen.tcp_back, seen.tcp_sent)
            self.assertGreater(seen.sent, 1000)
