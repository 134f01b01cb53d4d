# SPDX-License-Identifier: GPL-2.0-or-later
"""Linux guests whose disks are no more as the command line says: what is on them, by its hash."""

import hashlib
import os
from pathlib import Path

import avocado
from bothqemus import BothQemus
from shell import ShellGuest, ShellGuests

from lab import mechanisms
from lab.base.deadline import Deadline
from lab.base.errors import PreconditionError
from lab.live import planning
from lab.vm.monitor import Monitor
from lab.workloads.netns import GUEST, HOST, segment


class Disks(ShellGuests, BothQemus, avocado.Test):
    """Each guest writes random data to its disks, and has to find it there afterwards.

    :avocado: tags=medium
    """

    timeout = 600
    series = True

    def unplug(self, one: ShellGuest, device: str) -> None:
        """Have the guest let go of a device."""
        with one.monitor() as monitor:
            monitor.execute("device_del", {"id": device})
            monitor.wait_for(
                lambda event: event.name == "DEVICE_DELETED" and event.data.get("device") == device,
                Deadline.after(60, f"the guest lets go of {device}"),
                lambda: None,
            )

    def refused(self, one: ShellGuest, why: str) -> None:
        """Assert that an upgrade is refused with a reason."""
        with self.assertRaisesRegex(PreconditionError, why):
            planning.plan(str(one.qmp), self.new, "flip")

    def plugged(self, mechanism: str) -> None:
        """Disks plugged in on a root port and on a SCSI bus, with an iothread of their own."""
        with self.guest(late="-f qcow2", raw="-f raw") as one:
            one.execute("object-add", **{"qom-type": "iothread", "id": "io", "poll-max-ns": 7})
            one.execute("chardev-add", id="void", backend={"type": "null", "data": {}})
            one.execute("blockdev-add", **{"driver": "qcow2", "node-name": "q", "discard": "unmap",
                        "file": {"driver": "file", "filename": "@/late"}})  # fmt: skip
            one.execute("blockdev-add", **{"driver": "file", "node-name": "f", "filename": "@/raw"})
            one.execute("blockdev-add", **{"driver": "raw", "node-name": "r", "file": "f"})
            one.execute("device_add", driver="virtio-blk-pci", id="vd", bus="rp1", drive="q",
                        serial="late", iothread="io")  # fmt: skip
            one.execute("device_add", driver="scsi-hd", id="sd", bus="s.0", lun=5, drive="r")
            one.wait_for("test -b /dev/vda -a -b /dev/sda")
            before = [one.fill(device) for device in ("/dev/vda", "/dev/sda")]
            where = (
                "cat /sys/block/vda/serial; readlink -f /sys/block/vda; readlink -f /sys/block/sda"
            )
            places = one.shell.run(where)
            self.upgrade(one, mechanism)
            self.assertEqual([one.hash(device) for device in ("/dev/vda", "/dev/sda")], before)
            self.assertEqual(one.shell.run(where), places)
            after = one.fill("/dev/vda")
            # Management takes it out of the new QEMU as it would of the old one, and on it goes.
            self.unplug(one, "vd")
            one.execute("blockdev-del", **{"node-name": "q"})
            one.wait_for("test ! -b /dev/vda")
            self.upgrade(one, mechanism)
            self.assertEqual(one.hash("/dev/sda"), before[1])
            one.execute("blockdev-add", **{"driver": "qcow2", "node-name": "q",
                        "file": {"driver": "file", "filename": "@/late"}})  # fmt: skip
            one.execute("device_add", driver="virtio-blk-pci", id="vd", bus="rp1", drive="q")
            one.wait_for("test -b /dev/vda")
            self.assertEqual(one.hash("/dev/vda"), after)

    def test_plugged_by_flip(self) -> None:
        """The old QEMU starts the new one."""
        self.plugged("flip")

    def test_plugged_by_transplant(self) -> None:
        """The helper starts it."""
        if reason := mechanisms.Transplant().missing(self.old, self.new):
            self.cancel(reason)
        self.plugged("transplant")

    def test_a_network_card(self) -> None:
        """A NIC on a tap, both added by QMP, from which the host answers before and after."""
        with segment(Path(self.outputdir) / "network.log") as net, self.guest() as one:
            with one.monitor() as monitor:
                monitor.execute_with(net.tap(), "getfd", {"fdname": "tap"})
                monitor.execute("netdev_add", {"type": "tap", "id": "n", "fd": "tap"})
                nic = {"driver": "virtio-net-pci", "id": "nic", "bus": "rp1", "netdev": "n"}
                monitor.execute("device_add", nic)
            one.wait_for("test -e /sys/class/net/eth0")
            address = one.shell.run("cat /sys/class/net/eth0/address")
            one.shell.run(f"ifconfig eth0 {GUEST} up")
            ping = f"ping -c 1 -w 20 {HOST}"
            one.shell.run(ping)
            self.upgrade(one, "flip")
            self.assertEqual(one.shell.run("cat /sys/class/net/eth0/address"), address)
            one.shell.run(ping)

    def test_unplugged(self) -> None:
        """A disk of the command line's that was taken out: the other ones stay what they are."""
        words = (
            "-drive if=none,id=d0,file=@/d0 -device virtio-blk-pci,id=v0,bus=rp1,drive=d0 "
            "-drive if=none,id=d1,file=@/d1 -device virtio-blk-pci,id=v1,drive=d1"
        )
        with self.guest(*words.split(), d0="-f qcow2", d1="-f qcow2") as one:
            find = "basename $(ls -d /sys/devices/pci0000:00/*/virtio*/block/*)"
            name = one.shell.run(find)
            before = one.fill(f"/dev/{name}")
            self.unplug(one, "v0")
            self.upgrade(one, "flip")
            self.assertEqual(one.shell.run(find), name)
            self.assertEqual(one.hash(f"/dev/{name}"), before)

    def test_as_management_left_it(self) -> None:
        """A disk by a relative name, with limits, a bitmap and a job's remains: it goes over."""
        words = "-drive if=none,id=d0,file=d0 -device virtio-blk-pci,id=v0,drive=d0"
        limits = dict.fromkeys(("bps", "bps_rd", "bps_wr", "iops", "iops_rd", "iops_wr"), 0)
        limits["bps"] = 64 * 2**20
        with self.guest(*words.split(), d0="-f qcow2", copy="-f qcow2") as one:
            before = one.fill("/dev/vda")
            one.execute("block_set_io_throttle", device="d0", **limits)
            one.execute("block-dirty-bitmap-add", node="d0", name="kept", persistent=True)
            mirror = {"device": "d0", "target": "@/copy", "mode": "existing", "sync": "full"}
            one.execute("drive-mirror", **mirror, **{"job-id": "job"})
            self.refused(one, "job job is there")
            with one.monitor() as monitor:
                monitor.execute("block-job-cancel", {"device": "job", "force": True})
                for _ in Deadline.after(60, "the job ends").poll(0.02):
                    if not monitor.execute("query-jobs"):
                        break
            self.upgrade(one, "flip")
            self.assertEqual(one.hash("/dev/vda"), before)
            (drive,) = one.execute("query-block")
            self.assertEqual(drive["inserted"]["bps"], limits["bps"])
            (bitmap,) = drive["inserted"]["dirty-bitmaps"]
            self.assertEqual((bitmap["name"], bitmap["persistent"]), ("kept", True))
            self.assertNotEqual(one.fill("/dev/vda"), before)

    def test_other_images_than_at_the_start(self) -> None:
        """Committed, snapshotted, changed: refused, and the guest has the newest data still."""
        words = (
            "-drive if=none,id=d0,file=@/over -device virtio-blk-pci,id=v0,drive=d0 "
            "-drive if=none,id=cd,file=@/one,format=raw,media=cdrom -device scsi-cd,id=c,drive=cd"
        )
        images = {"base": "-f qcow2", "over": "-f qcow2 -b @/base -F qcow2"}
        with self.guest(*words.split(), **images, one="-f raw", two="-f raw") as one:
            (one.directory / "two").write_bytes(os.urandom(2**20))
            before = one.fill("/dev/vda")
            with one.monitor() as monitor:
                monitor.execute("block-commit", {"device": "d0", "job-id": "job"})
                self.wait(monitor, "BLOCK_JOB_READY", "job")
                monitor.execute("block-job-complete", {"device": "job"})
                self.wait(monitor, "BLOCK_JOB_COMPLETED", "job")
            self.refused(one, "the image of d0 is .*/base by now")
            self.assertEqual(one.hash("/dev/vda"), before)
            shot = {"device": "d0", "snapshot-file": "shot", "format": "qcow2"}
            one.execute("blockdev-snapshot-sync", **shot)
            before = one.fill("/dev/vda", 1)
            self.refused(one, "the image of d0 is .*/shot by now")
            self.assertEqual(one.hash("/dev/vda"), before)
            one.execute("eject", id="c", force=True)
            self.refused(one, "/one is not open any more")
            one.execute("blockdev-change-medium", id="c", filename="@/two", format="raw")
            self.refused(one, "the image of cd is .*/two by now")
            one.wait_for("test $(blockdev --getsize64 /dev/sr0) = 1048576")
            data = (one.directory / "two").read_bytes()
            self.assertEqual(one.hash("/dev/sr0"), hashlib.sha256(data).hexdigest())

    def wait(self, monitor: Monitor, event: str, job: str) -> None:
        """Wait for an event of a job's."""
        monitor.wait_for(
            lambda told: told.name == event and told.data.get("device") == job,
            Deadline.after(60, event),
            lambda: None,
        )
