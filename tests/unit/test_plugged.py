# SPDX-License-Identifier: GPL-2.0-or-later
"""What was plugged in and taken out while the guest ran, as a command line for what is left."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from made_truth import block, device, disk_node, drive, file_node, truth

from lab.live import plugged
from lab.live.plugged import Current
from lab.live.truth import kernel
from lab.live.truth.ask import Asker
from lab.live.truth.model import Chardev, Device, Node, OpenFile
from lab.live.truth.told import Told, told
from lab.live.words import options

QEMU = "/usr/bin/qemu-system-x86_64"
BUS = "/machine/peripheral/port/port"
#: A bus is no device: it is not hotplugged, and nobody asked for it.
BUSES = {
    BUS: Device(type="PCIE", properties={"hotplug-handler": ""}),
    "/machine/peripheral/s/s.0": Device(type="SCSI", properties={"hotplug-handler": ""}),
    "/machine/peripheral/usb/usb.0": Device(type="usb-bus", properties={"hotplug-handler": ""}),
}
SETTINGS = {"serial": None, "num-queues": 65535, "romfile": None, "addr": -1, "bootindex": None}
LATE = "/machine/peripheral/late"


def late(kind: str = "virtio-blk-pci", bus: str = BUS, **properties: Any) -> Device:
    return device(kind, hotplugged=True, parent_bus=bus, **{"addr": 24, **properties})


def current(*argv: str, asked: Told | None = None, **more: Any) -> Current:
    whole = {"block": block(drives={}), "networks": {}, "chardevs": {}, "objects": {}, **more}
    devices = {**BUSES, **whole.pop("devices", {})}
    asked = asked or Told(dict.fromkeys(("virtio-blk-pci", "scsi-hd"), SETTINGS))
    return plugged.current([QEMU, *argv], truth(devices=devices, **whole), asked)


def said(made: Current, option: str) -> list[Any]:
    return [json.loads(text) for text in options(made.argv, option)]


def test_nothing_has_changed() -> None:
    argv = ("-device", "virtio-blk-pci,id=a", "-snapshot", "-netdev", "hubport,id=h,hubid=1")
    made = current(*argv, devices={"/machine/peripheral/a": device(parent_bus=BUS)})
    assert made == Current([QEMU, *argv])


def test_a_device_is_said_with_what_is_no_default() -> None:
    properties = {"serial": "abc", "num-queues": 65535, "romfile": "", "bootindex": -1}
    made = current(devices={LATE: late(**properties)})
    assert said(made, "device") == [
        {
            "driver": "virtio-blk-pci", "id": "late", "bus": "port", "addr": "3.0",
            "serial": "abc", "romfile": "",
        }
    ]  # fmt: skip
    assert made.why == {}
    assert len(made.remarks) == 1


def test_what_is_plugged_into_what_was_plugged_in_comes_after_it() -> None:
    below = {"/machine/peripheral/z/z.0": Device(type="SCSI", properties={"hotplug-handler": ""})}
    disk = late("scsi-hd", "/machine/peripheral/z/z.0", lun=4)
    made = current(
        devices={**below, "/machine/peripheral/a": disk, "/machine/peripheral/z": late()}
    )
    assert [one["id"] for one in said(made, "device")] == ["z", "a"]


def test_a_device_without_a_name() -> None:
    made = current(devices={"/machine/unnamed/virtio-blk-pci[0]": late()})
    assert "id" not in said(made, "device")[0]


@pytest.mark.parametrize(
    ("devices", "why"),
    [
        ({LATE: late("pc-dimm", "")}, "it is on no bus, where QEMU does not tell its place"),
        ({LATE: late("x", "/machine/peripheral/usb/usb.0", port="")},
         "QEMU does not tell its port"),
        ({LATE: late(), f"{LATE}/late": Device(type="PCI", properties={})}, "it is a bridge"),
        ({LATE: late(), "/machine/x/port": BUSES[BUS]}, "it is on port, and 2 buses are called so"),
    ],
)  # fmt: skip
def test_a_place_that_is_not_told(devices: dict[str, Device], why: str) -> None:
    made = current(devices=devices)
    assert said(made, "device") == []
    assert made.why["device late"].startswith(why)


def test_what_was_taken_out_is_left_out_and_the_rest_stays_where_it_is() -> None:
    argv = (
        "-drive", "if=none,id=d,file=/x", "-device", "virtio-blk-pci,id=gone,drive=d",
        "-set", "device.gone.serial=x", "-netdev", "user,id=n", "-object", "iothread,id=o",
        "-chardev", "null,id=c", "-blockdev", "null-co,node-name=b",
    )  # fmt: skip
    keyed, in_json = "virtio-net-pci,id=a", '{"driver": "e1000", "id": "j"}'
    placed = "virtio-net-pci,id=p,addr=7"
    stays = ("-device", keyed, "-device", in_json, "-device", placed, "-set", "device.a.x=y")
    devices = {
        f"/machine/peripheral/{name}": device(parent_bus=BUS, addr=number)
        for name, number in (("a", 16), ("j", 25), ("p", 56))
    }
    made = current(*argv, *stays, devices=devices)
    in_json = '{"driver": "e1000", "id": "j", "addr": "3.1"}'
    assert made.argv == [
        QEMU, "-device", f"{keyed},addr=2.0", "-device", in_json, "-device", placed,
        "-set", "device.a.x=y",
    ]  # fmt: skip
    assert made.remarks == [
        f"{name} was taken out while the guest ran"
        for name in ("drive d", "device gone", "netdev n", "object o", "chardev c", "blockdev b")
    ]


def test_what_comes_and_goes_is_left_to_whoever_looks() -> None:
    argv = ("-device", "virtio-net-pci,id=f,failover_pair_id=a")
    assert current(*argv).argv == [QEMU, *argv]


def test_another_device_of_the_same_name() -> None:
    made = current("-device", "e1000,id=late", devices={LATE: late()})
    assert [one["driver"] for one in said(made, "device")] == ["virtio-blk-pci"]


def test_objects_and_character_devices() -> None:
    objects = {
        "io": Device(type="iothread", properties={"poll-max-ns": 7, "type": "iothread"}),
        "s": Device(type="secret", properties={}),
    }
    where = {
        "n": "null", "u": "unix:/run/a,b,server=on", "client": "unix:/run/c", "f": "file",
        "serial0": "null",
    }  # fmt: skip
    chardevs = {name: Chardev(where=one) for name, one in where.items()}
    made = current(objects=objects, chardevs=chardevs)
    assert said(made, "object") == [{"qom-type": "iothread", "id": "io", "poll-max-ns": 7}]
    assert list(options(made.argv, "chardev")) == [
        "null,id=n",
        "socket,id=u,path=/run/a,,b,server=on,wait=off",
    ]


def test_taps() -> None:
    taps = {"t": ["fd=12"], "#net1": ["fd=13"], "m": ["fd=14", "fd=15"], "i": ["ifname=x"] * 2}
    made = current(asked=Told(taps=taps))
    assert list(options(made.argv, "netdev")) == [
        "tap,id=t,fd=12", "tap,id=m,fds=14:15", "tap,id=i,ifname=x,queues=2",
    ]  # fmt: skip


def test_whose_vhost_is() -> None:
    taps = Told(taps={"t": ["ifname=x,script=no,downscript=no"]})
    made = current(asked=taps, nodes=["/dev/vhost-net"])
    assert list(options(made.argv, "netdev")) == [
        "tap,id=t,ifname=x,script=no,downscript=no,vhost=on"
    ]
    made = current("-nic", "tap,fd=3,vhost=on", asked=taps, nodes=["/dev/vhost-net"])
    assert list(options(made.argv, "netdev")) == []
    assert made.why == {"network backend t": "QEMU does not tell which taps vhost serves"}


@pytest.fixture
def image(tmp_path: Path) -> OpenFile:
    path = tmp_path / "image"
    path.touch()
    where = kernel.identity(path) or (0, 0)
    return OpenFile(device=where[0], inode=where[1], name=str(path))


def top(image: OpenFile, **more: Any) -> Node:
    return disk_node(**{"name": "n", "children": {"file": file_node(image)}, **more})


def nodes(node: Node, *argv: str, **asked: Any) -> Current:
    whole = block(drives={"/machine/peripheral/late/virtio-backend": drive(node)})
    return current(*argv, asked=Told(**asked), block=whole)


def test_a_node_with_what_is_below_it(image: OpenFile) -> None:
    below = {"driver": "file", "read-only": False, "filename": image.name}
    node = {"driver": "qcow2", "node-name": "n", "read-only": False}
    made = nodes(top(image))
    assert said(made, "blockdev") == [{**node, "backing": None, "file": below}]
    assert "does not tell its discard=" in made.remarks[-1]
    # QEMU opens a backing file by itself unless somebody gave it a name, and only once.
    unnamed = {"file": file_node(image), "backing": disk_node()}
    assert said(nodes(top(image, children=unnamed)), "blockdev") == [{**node, "file": below}]
    named = {"file": file_node(image, name="f"), "backing": top(image, name="b")}
    made = nodes(top(image, children=named))
    assert [one["node-name"] for one in said(made, "blockdev")] == ["f", "b", "n"]
    assert said(made, "blockdev")[2] == {**node, "file": "f", "backing": "b"}
    settings = {"direct": True, "detect_zeroes": "unmap"}
    made = nodes(top(image, settings=settings, read_only=True))
    assert said(made, "blockdev")[0].items() >= {
        "read-only": True, "cache": {"direct": True}, "detect-zeroes": "unmap",
    }.items()  # fmt: skip
    # What is named already is not said again.
    assert nodes(top(image), "-blockdev", "null-co,node-name=n").argv[3:] == []


def test_what_has_discarded_does_so_again(image: OpenFile) -> None:
    made = nodes(top(image), discarding={"/machine/peripheral/late/virtio-backend"})
    (one,) = said(made, "blockdev")
    assert (one["discard"], one["file"]["discard"], len(made.remarks)) == ("unmap", "unmap", 1)


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"driver": "throttle"}, "QEMU does not tell how its driver throttle was set"),
        ({"settings": {"encrypted": True}}, "it is encrypted"),
        ({"filename": "json:{}"}, "it has options that are not carried over: json:{}"),
        ({"children": {"file": file_node(None)}}, "the file that it has open is not known"),
        ({"children": {"file": file_node(OpenFile(device=1, inode=1, name="/nowhere"))}},
         "the file that it has open is /nowhere, and no more by that name"),
        ({"children": {"x": file_node()}}, "it has x below it"),
    ],
)  # fmt: skip
def test_a_node_that_is_not_told(image: OpenFile, more: dict[str, Any], why: str) -> None:
    made = nodes(top(image, **more))
    assert said(made, "blockdev") == []
    assert made.why["block node n"].startswith(why)


class Answers:
    """A monitor that knows some answers."""

    def execute(self, command: str, arguments: Any = None, _deadline: Any = None) -> Any:
        return {
            "device-list-properties": [
                {"name": "serial", "type": "str"},
                {"name": "vectors", "type": "uint32", "default-value": 2},
                {"name": "busnr", "type": "busnr"},
                {"name": "attached", "type": "bool"},
                {"name": "virtio-backend", "type": "child<x>"},
            ],
            "human-monitor-command": (
                "e0: index=0,type=nic,model=e1000\n"
                " \\ t0: index=0,type=tap,fd=12\nu: index=0,type=user,net=10.0.2.0\n"
            ),
            "query-blockstats": [
                {"device": "", "qdev": "/a", "parent": {"driver-specific": {"discard-nb-ok": 1}}},
                {"device": "b", "driver-specific": {"discard-nb-ok": 0, "discard-nb-failed": 0}},
                {"device": "c", "driver-specific": {"discard-nb-failed": 2}},
            ],
        }[command]


def test_what_is_asked() -> None:
    found = told(Asker(Answers()), truth(devices={LATE: late()}))
    assert found == Told(
        settings={"virtio-blk-pci": {"serial": None, "vectors": 2}},
        taps={"t0": ["fd=12"]},
        discarding=frozenset({"/a", "c"}),
    )
