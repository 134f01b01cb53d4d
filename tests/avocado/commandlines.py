# SPDX-License-Identifier: GPL-2.0-or-later
"""Command lines of QEMU, and what management does to a running one, made from a seed.

`@` is a directory of the case's own, with the files that `files` makes there.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_MIB = 2**20

#: For each option that can stand alone, spellings of what one can say with it.
ALONE: dict[str, tuple[str, ...]] = {
    "D": ("-D @/q.log -d guest_errors", "--D @/q.log"),
    "L": ("-L @",),
    "S": ("-S", "--S"),
    "acpitable": ("-acpitable sig=ABCD,data=@/rom",),
    "action": ("-action reboot=reset,panic=pause", "-action shutdown=pause"),
    "audio": ("-audio none,model=hda",),
    "audiodev": ("-audiodev none,id=snd", '-audiodev {"driver":"none","id":"snd"}'),
    "blockdev": (
        "-blockdev driver=qcow2,node-name=b0,file.driver=file,file.filename=@/disk0 "
        "-device virtio-blk-pci,drive=b0",
        '-blockdev {"driver":"raw","node-name":"b0","file":{"driver":"file","filename":"@/raw0"}} '
        "-device virtio-blk-pci,drive=b0,id=vb",
        "-blockdev null-co,node-name=b0,size=1048576,read-zeroes=on",
        '-blockdev {"driver":"file","node-name":"f0","filename":"@/a,b"} '
        "-blockdev raw,node-name=b0,file=f0 -device ide-hd,drive=b0",
    ),
    "boot": ("-boot menu=off", "-boot order=dc,strict=on", "-boot c"),
    "cdrom": ("-cdrom @/raw0",),
    "chardev": (
        "-chardev socket,id=c0,path=@/c0,server=on,wait=off",
        "-chardev backend=socket,id=c0,path=@/c0,server=yes,wait=no",
        "-chardev socket,id=c0,path=@/c,,0,server,nowait",
        "-chardev file,id=c0,path=@/out", "-chardev null,id=c0", "-chardev ringbuf,id=c0,size=64",
        "-chardev pty,id=c0", "-chardev udp,id=c0,host=127.0.0.1,port=9",
        "-chardev socket,id=c0,host=127.0.0.1,port=0,server=on,wait=off",
        "-chardev null,id=c0,mux=on -mon chardev=c0", "-chardev memory,id=c0",
        "-chardev file,path=@/out,id=c0 -device virtio-serial -device virtserialport,chardev=c0",
    ),
    "compat": ("-compat deprecated-input=accept",),
    "cpu": ("-cpu qemu64", "-cpu max", "-cpu Nehalem,-popcnt", "-cpu qemu64,+avx"),
    "d": ("-d unimp",),
    "debugcon": ("-debugcon file:@/dbg", "-debugcon null"),
    "device": (
        "-device virtio-net", "-device virtio-rng-pci,id=r", "-device driver=e1000,id=e",
        '-device {"driver":"virtio-balloon-pci","id":"bal"}', "-device usb-ehci,id=u",
        "-device virtio-scsi-pci,id=s -device scsi-cd,bus=s.0",
        "-device pcie-root-port,id=p,chassis=1", "-device nvme,serial=x,id=nv", "-device edu",
        "-device virtio-gpu-pci", "-device intel-hda -device hda-duplex", "-device vmcoreinfo",
        "-device i6300esb", "-device virtio-keyboard-pci", "-device pvpanic", "-device megasas",
        "-device isa-serial,chardev=c9 -chardev null,id=c9", "-device rtl8139",
        "-device pci-bridge,chassis_nr=2,id=br", "-device amd-iommu",
        "-device lsi53c895a -drive if=none,id=l0,file=@/raw0,format=raw -device scsi-hd,drive=l0",
    ),
    "dfilter": ("-dfilter 0x1000+0x100",),
    "display": ("-display none",),
    "drive": (
        "-drive file=@/disk0,if=none,id=d0,format=qcow2 -device virtio-blk,drive=d0",
        "-drive file=@/disk0,format=qcow2", "-drive if=virtio,file=@/raw0,format=raw,id=d0",
        "-drive file=@/over,if=virtio,format=qcow2", "-drive file=disk0,if=virtio,format=qcow2",
        "-drive file=@/a,,b,if=virtio,format=raw", "-drive if=none,id=d0,file.driver=file,"
        "file.filename=@/raw0,format=raw -device virtio-blk-pci,drive=d0",
        "-drive file=@/disk0,if=virtio,format=qcow2,bps=1000000,throttling.group=g",
        "-drive file=@/raw0,if=virtio,format=raw,snapshot=on", "-drive file=fat:@/empty,if=ide",
        "-drive file=@/raw0,if=floppy,format=raw", "-drive file=@/disk0,media=cdrom,readonly=on",
    ),
    "echr": ("-echr 20",),
    "fda": ("-fda @/raw0",),
    "fw_cfg": ("-fw_cfg name=opt/a,string=b", "-fw_cfg opt/a,file=@/raw0"),
    "gdb": ("-gdb unix:@/gdb,server=on,wait=off", "-gdb tcp::0"),
    "global": (
        "-global e1000.mac=52:54:00:00:00:03",
        "-global driver=e1000,property=mac,value=52:54:00:00:00:01",
    ),
    "hda": ("-hda @/disk0", "@/raw0"),
    "hdc": ("-hdc @/raw0",),
    "icount": ("-icount shift=7", "-icount auto"),
    "incoming": ("-incoming defer",),
    "m": ("-m 96", "-m size=64M,slots=2,maxmem=1G", "-m 64M,slots=1,maxmem=128M"),
    "machine": (
        "-machine usb=on", "-machine vmport=off,hpet=off", "-M smm=off", "-machine type=q35",
    ),
    "mem-path": ("-mem-path /dev/shm",),
    "mem-prealloc": ("-mem-prealloc",),
    "monitor": (
        "-monitor unix:@/hmp,server=on,wait=off", "-monitor null", "-monitor none",
        "-monitor telnet:127.0.0.1:0,server=on,wait=off",
    ),
    "name": ("-name a", "-name guest=a,,b,debug-threads=on", "-name g,process=x"),
    "net": ("-net none", "-net nic,model=e1000 -net user",),
    "netdev": (
        "-netdev user,id=n0 -device virtio-net-pci,netdev=n0",
        "-netdev type=user,id=n0 -device e1000,netdev=n0",
        '-netdev {"type":"user","id":"n0"} -device e1000e,netdev=n0',
        "-netdev user,id=n0,hostfwd=tcp:127.0.0.1:0-:22",
        "-netdev hubport,id=n0,hubid=1", "-netdev socket,id=n0,listen=127.0.0.1:0",
    ),
    "nic": ("-nic none", "-nic user,model=virtio", "-nic user,id=x"),
    "no-fd-bootchk": ("-no-fd-bootchk",),
    "no-reboot": ("-no-reboot",),
    "no-shutdown": ("-no-shutdown",),
    "no-user-config": ("-no-user-config",),
    "nodefaults": ("-nodefaults",),
    "nographic": ("-nographic",),
    "numa": ("-object memory-backend-ram,id=nm,size=64M -numa node,memdev=nm",),
    "object": (
        "-object iothread,id=io", "-object secret,id=sec,data=abc",
        "-object qom-type=rng-builtin,id=rb",
        '-object {"qom-type":"iothread","id":"io","poll-max-ns":0}', "-object can-bus,id=can",
        "-object throttle-group,id=tg,x-bps-total=1000000", "-object authz-simple,id=az,identity=x",
        "-object memory-backend-ram,id=mb,size=1M",
        "-object rng-random,id=rr,filename=/dev/urandom",
        "-object cryptodev-backend-builtin,id=cb", "-object thread-context,id=tc",
        "-object memory-backend-memfd,id=mm,size=64M,share=on -machine memory-backend=mm -m 64M",
    ),
    "only-migratable": ("-only-migratable",),
    "option-rom": ("-option-rom @/rom",),
    "overcommit": ("-overcommit mem-lock=off", "-overcommit cpu-pm=off"),
    "parallel": ("-parallel none", "-parallel null", "-parallel file:@/par"),
    "pflash": ("-pflash @/raw0",),
    "pidfile": ("-pidfile @/pid", "-pidfile pid", "--pidfile @/pid"),
    "qmp": (
        "-qmp unix:@/qmp2,server=on,wait=off", "-qmp unix:qmp3,server,nowait",
        "-qmp tcp:127.0.0.1:0,server=on,wait=off",
    ),
    "qmp-pretty": ("-qmp-pretty unix:@/qmp4,server=on,wait=off",),
    "readconfig": ("-readconfig @/more.cfg",),
    "rtc": ("-rtc base=utc", "-rtc clock=vm", "-rtc base=2020-01-01T00:00:00"),
    "run-with": ("-run-with async-teardown=on", "-run-with exit-with-parent=off"),
    "s": ("-s",),
    "sandbox": ("-sandbox off",),
    "seed": ("-seed 5",),
    "serial": (
        "-serial unix:@/ser,server=on,wait=off", "-serial none", "-serial null", "-serial pty",
        "-serial file:@/ser.log", "-serial mon:unix:@/sermon,server=on,wait=off", "-serial vc",
        "-serial mon:null", "-serial tcp:127.0.0.1:0,server=on,wait=off",
        "-serial null -serial unix:@/ser2,server=on,wait=off",
    ),
    "set": ("-device e1000,id=set0 -set device.set0.mac=52:54:00:00:00:02",),
    "smbios": ("-smbios type=1,manufacturer=x,,y", "-smbios type=0,vendor=z"),
    "smp": ("-smp 2", "-smp cpus=2,maxcpus=4,sockets=4", "-smp 1,maxcpus=2"),
    "snapshot": ("-snapshot -hda @/disk0",),
    "trace": ("-trace enable=migrate_set_state,file=@/trace", "-trace guest_*"),
    "usb": ("-usb",),
    "usbdevice": ("-usb -usbdevice tablet",),
    "uuid": ("-uuid 11111111-2222-3333-4444-555555555555",),
    "vga": ("-vga std", "-vga none", "-vga virtio", "-vga cirrus"),
    "watchdog-action": ("-watchdog-action none",),
    "win2k-hack": ("-win2k-hack",),
}  # fmt: skip

#: What -help lists and cannot stand alone on a host like a tester's, and why.
NOT_ALONE = {
    "accel": "the case has one", "enable-kvm": "not every host has it",
    "add-fd": "its descriptor has to be there", "append": "for a kernel", "kernel": "boots another",
    "mtdblock": "for boards with such flash", "sd": "for boards with a slot for cards",
    "initrd": "for a kernel", "shim": "for a kernel", "dtb": "for boards without ACPI",
    "bios": "boots another", "k": "a file of keymaps", "mon": "with a chardev: there",
    "daemonize": "the case would lose its process: there is a test for it",
    "dump-vmstate": "ends at once", "version": "ends at once", "h": "ends at once",
    "preconfig": "its monitor takes few commands", "loadvm": "takes a snapshot",
    "enable-sync-profile": "slows QEMU down for its developers", "perfmap": "for perf",
    "jitdump": "for perf", "full-screen": "takes a screen", "iscsi": "takes a server",
    "fsdev": "takes a build with 9p", "virtfs": "takes a build with 9p",
    "plugin": "takes a plugin", "msg": "only the form of messages", "prom-env": "for PPC and SPARC",
    "semihosting": "for ARM", "semihosting-config": "for ARM", "xen-attach": "takes Xen",
    "xen-domid": "takes Xen", "xen-domid-restrict": "takes Xen",
    "spice": "takes a build with SPICE",
    "vnc": "takes a build with VNC", "tpmdev": "takes a TPM", "alt-grab": "takes a window",
    "ctrl-grab": "takes a window", "g": "for PPC and SPARC", "tb-size": "of TCG", "h or -help": "",
}  # fmt: skip

_CONFIG = """[chardev "cfg0"]
  backend = "socket"
  path = "@/cfg0"
  server = "on"
  wait = "off"
[device "cfgdev"]
  driver = "virtio-rng-pci"
"""

#: What management may do to a running QEMU.  What it refuses is as good as not done.
CHANGES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("stop", {}),
    ("chardev-add", {"id": "late", "backend": {"type": "null", "data": {}}}),
    ("chardev-add", {"id": "late", "backend": {"type": "socket", "data": {"server": True,
        "wait": False, "addr": {"type": "unix", "data": {"path": "@/late"}}}}}),
    ("device_add", {"driver": "virtio-rng-pci", "id": "late", "bus": "p"}),
    ("device_add", {"driver": "usb-tablet", "id": "late"}),
    ("netdev_add", {"type": "user", "id": "late"}),
    ("object-add", {"qom-type": "iothread", "id": "late"}),
    ("object-del", {"id": "io"}),
    ("device_del", {"id": "r"}),
    ("blockdev-add", {"driver": "null-co", "node-name": "late", "size": _MIB}),
    ("blockdev-snapshot-sync", {"device": "d0", "snapshot-file": "@/late", "format": "qcow2"}),
    ("blockdev-snapshot-sync", {"node-name": "b0", "snapshot-file": "@/late", "format": "qcow2",
        "snapshot-node-name": "top"}),
    ("block-dirty-bitmap-add", {"node": "d0", "name": "late"}),
    ("block-dirty-bitmap-add", {"node": "d0", "name": "late", "persistent": True}),
    ("block_set_io_throttle", {"device": "d0", "bps": 500000, "bps_rd": 0, "bps_wr": 0, "iops": 0,
        "iops_rd": 0, "iops_wr": 0}),
    ("eject", {"device": "ide1-cd0"}),
    ("blockdev-change-medium", {"device": "ide1-cd0", "filename": "@/disk0"}),
    ("blockdev-change-medium", {"device": "ide2-cd0", "filename": "@/raw0", "format": "raw"}),
    ("migrate-set-parameters", {"max-bandwidth": 12345678, "downtime-limit": 77}),
    ("migrate-set-capabilities", {"capabilities": [{"capability": "xbzrle", "state": True}]}),
    ("nbd-server-start", {"addr": {"type": "unix", "data": {"path": "@/nbd"}}}),
    ("block-job-cancel", {"device": "d0"}),
    ("blockdev-mirror", {"device": "b0", "target": "late", "job-id": "job", "sync": "none"}),
    ("set_link", {"name": "n0", "up": False}),
    ("balloon", {"value": 48 * _MIB}),
    ("system_reset", {}),
    ("qom-set", {"path": "/objects/io", "property": "poll-max-ns", "value": 1000}),
    ("trace-event-set-state", {"name": "migrate_set_state", "enable": True}),
    ("watchdog-set-action", {"action": "pause"}),
)  # fmt: skip


_DRIVE = "-drive if=none,id=d0,file=@/disk0,format=qcow2 -device virtio-blk-pci,drive=d0"
_LIMITS = {"bps": 500000, "bps_rd": 0, "bps_wr": 0, "iops": 0, "iops_rd": 0, "iops_wr": 0}
_UP = "upgraded by"
#: Memory that cpr-transfer takes.
SHARED = (
    "-object memory-backend-memfd,id=mm,size=64M,share=on "
    "-machine memory-backend=mm,aux-ram-share=on"
)
_NBD = {"addr": {"type": "unix", "data": {"path": "@/nbd"}}}

#: Kinds of things: the command line, what is done to it, the mechanism, and what comes of it.
KINDS: dict[str, tuple[str, tuple[tuple[str, dict[str, Any]], ...], str, str]] = {
    "limits of a drive": (_DRIVE, (("block_set_io_throttle", {"device": "d0", **_LIMITS}),),
        "auto", _UP),
    "limits of a drive, and no hold": (_DRIVE, (("block_set_io_throttle",
        {"device": "d0", **_LIMITS}),), "flip-late", _UP),
    "a snapshot": (_DRIVE, (("blockdev-snapshot-sync",
        {"device": "d0", "snapshot-file": "@/late", "format": "qcow2"}),), "auto", "image of d0"),
    "a snapshot, by a relative name": (_DRIVE.replace("@/", ""), (("blockdev-snapshot-sync",
        {"device": "d0", "snapshot-file": "late", "format": "qcow2"}),), "auto", "image of d0"),
    "a bitmap in memory": (_DRIVE, (("block-dirty-bitmap-add", {"node": "d0", "name": "late"}),),
        "auto", "dirty bitmap late of d0"),
    "a bitmap in the image": (_DRIVE, (("block-dirty-bitmap-add",
        {"node": "d0", "name": "late", "persistent": True}),), "auto", _UP),
    "a job": (_DRIVE, (("blockdev-add", {"driver": "null-co", "node-name": "n", "size": 8 * _MIB}),
        ("blockdev-mirror", {"device": "d0", "target": "n", "job-id": "j", "sync": "full"})),
        "auto", "job j is there"),
    "an export": ("-blockdev null-co,node-name=n,size=1048576", (("nbd-server-start", _NBD),
        ("block-export-add", {"id": "e", "type": "nbd", "node-name": "n"})), "auto",
        "export e of n"),
    "a node": (_DRIVE, (("blockdev-add", {"driver": "null-co", "node-name": "late"}),), "auto",
        "block node late was added"),
    "a disk plugged in": ("-device pcie-root-port,id=p,chassis=1", (("blockdev-add",
        {"driver": "qcow2", "node-name": "n", "file": {"driver": "file", "filename": "@/disk0"}}),
        ("device_add", {"driver": "virtio-blk-pci", "id": "late", "bus": "p", "drive": "n"})),
        "auto", _UP),
    "a device without a place": ("-usb", (("device_add", {"driver": "usb-tablet", "id": "late"}),),
        "auto", "device late was added while the guest ran: QEMU does not tell its port"),
    "a device with one": ("-usb", (("device_add",
        {"driver": "usb-tablet", "id": "late", "port": "2"}),), "auto", _UP),
    "memory plugged in": ("-m 64M,slots=1,maxmem=1G", (("object-add",
        {"qom-type": "memory-backend-ram", "id": "mem", "size": 128 * _MIB}),
        ("device_add", {"driver": "pc-dimm", "id": "late", "memdev": "mem"})), "auto",
        "device late was added while the guest ran: it is on no bus"),
    "an object": ("-usb", (("object-add", {"qom-type": "iothread", "id": "late"}),), "auto", _UP),
    "an object that is not told": ("-usb", (("object-add",
        {"qom-type": "secret", "id": "late", "data": "abc"}),), "auto", "object late was added"),
    "a socket added": ("-usb", (("chardev-add", {"id": "late", "backend": {"type": "socket",
        "data": {"server": True, "wait": False, "addr": {"type": "unix",
        "data": {"path": "@/late"}}}}}),), "auto", _UP),
    "an object taken out": ("-object iothread,id=io", (("object-del", {"id": "io"}),), "auto", _UP),
    "no medium": ("-cdrom @/raw0", (("eject", {"device": "ide2-cd0", "force": True}),), "auto",
        "raw0 is not open any more"),
    "a keyed socket": ("-chardev backend=socket,id=c0,path=@/c0,server=yes,wait=no", (), "auto",
        _UP),
    "a socket with a comma": ("-serial unix:@/a,,c,server,nowait", (), "auto", _UP),
    "sockets in a file": ("-readconfig @/more.cfg", (), "auto", _UP),
    "aliases": ("-device virtio-net -device virtio-balloon -device ahci", (), "auto", _UP),
    "networks": ('-netdev type=user,id=a -device e1000,netdev=a -netdev {"type":"user","id":"b"} '
        "-device virtio-net-pci,netdev=b", (), "auto", _UP),
    "a network backend": ("-usb", (("netdev_add", {"type": "user", "id": "late"}),), "auto",
        "network backend late was added"),
    "paused": ("-usb", (("stop", {}),), "auto", _UP),
    "paused, the guest stopped anyway": ("-usb", (("stop", {}),), "stop-copy", _UP),
    "capabilities of multifd": ("-usb", (), "multifd", _UP),
    "capabilities of postcopy": ("-usb", (), "postcopy", _UP),
    "a log": ("-debugcon file:@/dbg -global isa-debugcon.iobase=0x402", (), "auto", _UP),
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A command line, and what is done to what it starts."""

    seed: int
    words: tuple[str, ...]
    changes: tuple[tuple[str, dict[str, Any]], ...]


def case(seed: int) -> Case:
    """Return the case of a seed: one option for sure, each in its turn, and a few others."""
    dice = random.Random(seed)
    names = sorted(ALONE)
    chosen = {names[seed % len(names)], *dice.sample(names, dice.choice((0, 1, 2, 3)))}
    words = [word for name in sorted(chosen) for word in dice.choice(ALONE[name]).split(" ")]
    changes = dice.sample(CHANGES, dice.choice((0, 0, 1, 1, 2)))
    return Case(seed, tuple(words), tuple(changes))


def placed(value: Any, directory: Path) -> Any:
    """Return it with the directory in place of ``@``."""
    if isinstance(value, str):
        return value.replace("@", str(directory))
    if isinstance(value, dict):
        return {name: placed(part, directory) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [placed(part, directory) for part in value]
    return value


def files(directory: Path) -> Iterator[tuple[str, ...]]:
    """Make what the command lines name; yield the arguments of qemu-img for the images."""
    for name in ("raw0", "a,b"):
        with (directory / name).open("wb") as file:
            file.truncate(_MIB)
    (directory / "rom").write_bytes(b"\x55\xaa\x01\xcb" + bytes(508))
    (directory / "empty").mkdir()
    (directory / "more.cfg").write_text(placed(_CONFIG, directory), encoding="utf-8")
    disk, over = str(directory / "disk0"), str(directory / "over")
    yield "create", "-q", "-f", "qcow2", disk, "8M"
    yield "create", "-q", "-f", "qcow2", "-b", disk, "-F", "qcow2", over
