# SPDX-License-Identifier: GPL-2.0-or-later
"""What is a difference between two QEMUs, and what is not."""

from __future__ import annotations

from typing import Any

import pytest
from made_truth import DISK, block, device, disk_node, drive, file_node, truth

from lab.live import compare
from lab.live.truth.model import Bitmap, Chardev, Device, Listener, Migration, OpenFile, Truth

OTHER = OpenFile(device=1, inode=8, name="/images/other.qcow2")
LIMITED = {"bps": 1000, "group": "d0"}


def new(**more: Any) -> Truth:
    """The same guest in the next version, and another process."""
    return truth(**{"version": "10.2.2", "pid": 2, **more})


def found(old: Truth, other: Truth, *, committed: bool = False) -> list[str]:
    return [str(one) for one in compare.differences(old, other, committed=committed)]


def test_the_same_guest() -> None:
    assert found(truth(), new()) == []
    assert found(truth(), new(), committed=True) == []


@pytest.mark.parametrize(
    ("old", "other", "said"),
    [
        ({}, {"files": [OTHER], "block": block(drives={"d0": drive(disk_node(OTHER))})},
         "block drives d0 medium children file file: /images/disk.qcow2 in the old QEMU, "
         "/images/other.qcow2 in the new one"),
        ({}, {"files": [DISK, OTHER]},
         "files /images/other.qcow2: missing in the old QEMU, 'open' in the new one"),
        ({"block": block(drives={"d0": drive(disk_node(), limits=LIMITED)})}, {},
         "block drives d0 limits bps: 1000 in the old QEMU, missing in the new one"),
        ({"block": block(drives={"d0": drive(None)})}, {},
         "block drives d0 medium: missing in the old QEMU, there in the new one"),
        ({"block": block(drives={"d0": drive(disk_node(bitmaps={
            "b": Bitmap(granularity=1, recording=True, persistent=False)}))})}, {},
         "block drives d0 medium bitmaps b: there in the old QEMU, missing in the new one"),
        ({"block": block(jobs={"j": "stream, running"})}, {},
         "block jobs j: 'stream, running' in the old QEMU, missing in the new one"),
        ({"block": block(others={"n": file_node()})}, {},
         "block others n: there in the old QEMU, missing in the new one"),
        ({"chardevs": {"c": Chardev(where="null"), "serial0": Chardev(where="null")}}, {},
         "chardevs c: there in the old QEMU, missing in the new one"),
        ({"listeners": [Listener(kind="tcp", address="0.0.0.0:1")]}, {"listeners": []},
         "listeners tcp:0.0.0.0:1: 'open' in the old QEMU, missing in the new one"),
        ({"networks": {"n0": "index=0,type=user", "n1": "index=0,type=user"}}, {},
         "networks n1: 'index=0,type=user' in the old QEMU, missing in the new one"),
        ({}, {"devices": {"/machine/peripheral/a": device(addr=24)}},
         "devices /machine/peripheral/a properties addr: 16 in the old QEMU, 24 in the new one"),
        ({"devices": {"/machine/peripheral/a": device(), "/machine/peripheral/b": device()}}, {},
         "devices /machine/peripheral/b: there in the old QEMU, missing in the new one"),
        ({}, {"taps": ["tap0"]}, "taps tap0: missing in the old QEMU, 'open' in the new one"),
        ({"nodes": ["/dev/sg0", "/dev/null"]}, {},
         "nodes /dev/sg0: 'open' in the old QEMU, missing in the new one"),
    ],
)  # fmt: skip
def test_a_difference(old: dict[str, Any], other: dict[str, Any], said: str) -> None:
    assert said in found(truth(**old), new(**other))


def test_a_file_is_the_same_by_any_name() -> None:
    moved = OpenFile(device=1, inode=7, name="/images/disk.qcow2 (deleted)")
    assert found(truth(), new(files=[moved])) == []


def test_what_a_version_has_never_heard_of() -> None:
    place = "/machine/peripheral/a"
    more = {"devices": {place: device(late=True)}}
    assert found(truth(), new(**more)) == []
    assert found(truth(**more), new()) == []
    # Within a property nothing is unknown: a bit that CPUID has is a bit that the guest sees.
    cpu = {"devices": {place: device(**{"feature-words": {"0x7.0.EBX": 1}})}}
    other = {"devices": {place: device(**{"feature-words": {"0x7.0.EBX": 1, "0x7.1.EAX": 2}})}}
    assert len(found(truth(**cpu), new(**other))) == 1
    # And the same version has heard of the same.
    assert len(found(truth(), truth(**more))) == 1


def test_versions_arrange_a_board_otherwise() -> None:
    def board(**more: Any) -> dict[str, Any]:
        own = {f"/machine/unnamed/{name}": device(kind) for name, kind in more.items()}
        own = {path: one.model_copy(update={"asked": False}) for path, one in own.items()}
        return {"devices": {"/machine/peripheral/a": device(), **own}}

    assert found(truth(**board(rtc="mc146818rtc")), new(**board(lpc="ICH9-LPC"))) == []
    # Within a version nothing is arranged otherwise, and what was asked for is there.
    assert found(truth(**board(rtc="mc146818rtc")), truth()) != []
    assert found(truth(**board(rtc="mc146818rtc")), new(devices={})) != []
    # One that both have is the same.
    other = board(rtc="other")
    assert found(truth(**board(rtc="mc146818rtc")), new(**other)) != []


@pytest.mark.parametrize(
    ("name", "old", "other", "same"),
    [
        ("rombar", 1, -1, True),
        ("rombar", 1, 0, False),
        ("rombar", 0, -1, False),
        ("hotplug-handler", "", "/machine/ICH9-LPC", True),
        ("hotplug-handler", "/machine/a", "/machine/b", False),
        ("addr", 1, -1, False),
    ],
)
def test_what_versions_say_otherwise(name: str, old: object, other: object, same: bool) -> None:
    one = {"devices": {"/machine/peripheral/a": device(**{name: old})}}
    two = {"devices": {"/machine/peripheral/a": device(**{name: other})}}
    assert (found(truth(**one), new(**two)) == []) is same
    assert len(found(truth(**one), truth(**two))) == 1  # a version agrees with itself


def test_levels_of_a_topology() -> None:
    def machine(**smp: int) -> dict[str, Any]:
        board = device("pc-q35-7.2-machine", smp={"cpus": 2, "cores": 2, **smp})
        return {"devices": {"/machine": board}}

    assert found(truth(**machine()), new(**machine(books=1))) == []
    assert len(found(truth(**machine()), new(**machine(cores=1)))) == 1


def test_a_socket_that_somebody_is_connected_to() -> None:
    def serial(where: str) -> dict[str, Any]:
        return {"chardevs": {"serial0": Chardev(where=where)}}

    assert found(truth(**serial("unix:")), new(**serial("unix:/run/s"))) == []
    assert len(found(truth(**serial("unix:/run/a")), new(**serial("unix:/run/b")))) == 1


def test_what_arrives_with_the_guest() -> None:
    waiting = truth().machine.model_copy(update={"state": "inmigrate"})
    moving = Migration(capabilities={"events": True}, parameters={"max": 2})
    assert found(truth(), new(machine=waiting, migration=moving)) == []
    assert found(truth(), new(machine=waiting, migration=moving), committed=True) == [
        "machine state: 'running' in the old QEMU, 'inmigrate' in the new one",
        "migration capabilities events: False in the old QEMU, True in the new one",
        "migration parameters max: 1 in the old QEMU, 2 in the new one",
    ]
    behind, unnumbered = ({"devices": {"/machine/peripheral/a": device(busnr=n)}} for n in (5, 0))
    assert found(truth(**behind), new(**unnumbered)) == []
    assert len(found(truth(**behind), new(**unnumbered), committed=True)) == 1
    stored = disk_node(bitmaps={"b": Bitmap(granularity=1, recording=True, persistent=True)})
    old = truth(block=block(drives={"d0": drive(stored)}))
    assert found(old, new()) == []
    assert len(found(old, new(), committed=True)) == 1


def test_what_was_plugged_in_is_there_from_the_start() -> None:
    late = {"devices": {"/machine/peripheral/a": device(hotplugged=True)}}
    assert found(truth(**late), new()) == found(truth(**late), new(), committed=True) == []


def test_a_tray_is_where_the_guest_left_it() -> None:
    opened, closed = (block(drives={"d0": drive(None, tray_open=one)}) for one in (True, False))
    assert found(truth(block=opened), new(block=closed)) == []
    assert len(found(truth(block=opened), new(block=closed), committed=True)) == 1


def test_shared_memory_in_a_file_that_the_new_one_does_not_open() -> None:
    said = {"share": True, "size": 4096}
    file = Device(
        type="memory-backend-file", properties={**said, "mem-path": "/a", "align": 0, "pmem": False}
    )
    memfd = Device(type="memory-backend-memfd", properties={**said, "seal": True})
    other = Device(type="memory-backend-memfd", properties={**said, "size": 8192, "seal": True})
    assert found(truth(objects={"m": file}), truth(objects={"m": memfd})) == []
    (why,) = found(truth(objects={"m": file}), truth(objects={"m": other}))
    assert why.startswith("objects m properties size: ")
    assert found(truth(objects={"m": memfd}), truth(objects={"m": file}))


def test_every_rule_has_a_reason() -> None:
    assert all(rule.why for rule in compare.MAY_DIFFER)


def test_monitors_that_only_one_version_has_as_objects() -> None:
    """By whatever name; where both have them, each is missed."""
    monitors = {
        "monitor": Device(type="monitor-qmp", properties={"a": 1}),
        "compat_monitor0": Device(type="monitor-hmp", properties={}),
    }
    mine = truth().objects
    assert found(truth(), new(objects={**mine, **monitors})) == []
    assert found(truth(objects={**mine, **monitors}), new()) == []
    (said,) = found(
        truth(objects={**mine, **monitors}),
        new(objects={**mine, "monitor": monitors["monitor"]}),
    )
    assert said.startswith("objects compat_monitor0: ")
    assert found(truth(), truth(objects={**mine, **monitors}, pid=2))
    other = {"monitor": Device(type="rng-random", properties={})}
    assert found(truth(), new(objects={**mine, **other}))
