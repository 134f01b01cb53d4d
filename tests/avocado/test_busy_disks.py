# SPDX-License-Identifier: GPL-2.0-or-later
"""Disks that are written to all the time: a request that is in flight is lost or doubled by no way.

Parameters (avocado -p): old, new: the pair; mechanisms, disks: which of them, separated by commas.
"""

import avocado
from bothqemus import BothQemus
from shell import ShellGuest, ShellGuests

#: Each writes random blocks to a quarter of the disk, and to a file in memory what the disk has to
#: have then.  Every write is flushed.
_WRITERS, _BLOCKS = 4, 16
_WRITE = (
    "w() {{ n=0; while test ! -e /stop; do at=$(($1 * {blocks} + n % {blocks})); "
    "dd if=/dev/urandom of=/block$1 bs=64k count=1; "
    "dd if=/block$1 of=/dev/vda bs=64k seek=$at conv=fsync,notrunc; "
    "dd if=/block$1 of=/shadow bs=64k seek=$at conv=notrunc; "
    "n=$((n + 1)); echo $n >/n$1; mv /n$1 /count$1; done; touch /stopped$1; }}; "
    "dd if=/dev/vda of=/shadow bs=64k count={all}; "
    "for i in {numbers}; do w $i >/dev/null 2>&1 & done; true"
).format(blocks=_BLOCKS, all=_WRITERS * _BLOCKS, numbers=" ".join(map(str, range(_WRITERS))))
#: How the host writes; a limit keeps requests waiting in QEMU.
_DISKS = {
    "threads": "cache=writeback,aio=threads",
    "native": "cache=none,aio=native",
    "io_uring": "cache=none,aio=io_uring",
    "limited": "cache=none,aio=io_uring,throttling.iops-total=40",
}
_NODES = (
    "-object", "memory-backend-ram,id=m0,size=160M", "-numa", "node,memdev=m0",
    "-object", "memory-backend-ram,id=m1,size=160M", "-numa", "node,memdev=m1",
)  # fmt: skip


class BusyDisks(ShellGuests, BothQemus, avocado.Test):
    """With an iothread that the disk is served by, and in a guest of two NUMA nodes.

    :avocado: tags=medium,thorough
    """

    timeout = 1800
    series = True

    def test(self) -> None:
        """Everything that was written is where it was written."""
        ways = self.params.get("mechanisms", default="flip,flip-late,remap,transplant").split(",")
        for name in self.params.get("disks", default=",".join(_DISKS)).split(","):
            for mechanism in ways:
                self.log.info("%s, by %s", name, mechanism)
                self.busy(_DISKS[name], mechanism)

    def busy(self, how: str, mechanism: str) -> None:
        """Upgrade a guest that writes, and compare."""
        words = (
            "-object", "iothread,id=io", "-drive", f"file=@/busy,if=none,id=d,format=qcow2,{how}",
            "-device", "virtio-blk-pci,drive=d,iothread=io,bus=rp1,num-queues=4", *_NODES,
        )  # fmt: skip
        with self.guest(*words, busy="-f qcow2") as one:
            one.wait_for("test -b /dev/vda")
            one.shell.run(_WRITE)
            one.wait_for(f"test $(cat /count*|wc -l) = {_WRITERS}")
            before = self.written(one)
            self.upgrade(one, mechanism)
            # Nobody has waited for anything: they went on by themselves.
            one.wait_for(f"test $(cat /count0) -gt {before[0] + 2}")
            one.shell.run("touch /stop")
            one.wait_for(f"test $(ls /stopped*|wc -l) = {_WRITERS}")
            after = self.written(one)
            self.log.info("%s blocks before the upgrade, %s afterwards", before, after)
            one.shell.run("sync; echo 3 >/proc/sys/vm/drop_caches")
            one.shell.run(f"cmp -n {_WRITERS * _BLOCKS << 16} /shadow /dev/vda")

    def written(self, one: ShellGuest) -> list[int]:
        """Return how many blocks each writer has written."""
        return [int(word) for word in one.shell.run("cat /count*").split()]
