# SPDX-License-Identifier: GPL-2.0-or-later
"""A small running QEMU, as `lab.live.truth` would tell of it."""

from __future__ import annotations

from typing import Any

from lab.live.truth.model import (
    BlockLayer,
    Chardev,
    Device,
    Displays,
    Drive,
    Listener,
    MachineState,
    Migration,
    Node,
    OpenFile,
    Truth,
)

DISK = OpenFile(device=1, inode=7, name="/images/disk.qcow2")


def file_node(file: OpenFile | None = DISK, lost: str = "", **more: Any) -> Node:
    return Node(
        **{
            "driver": "file", "name": "", "filename": "", "file": file, "lost": lost,
            "read_only": False, "settings": {"direct": False}, "bitmaps": {}, "children": {},
            **more,
        }
    )  # fmt: skip


def disk_node(file: OpenFile | None = DISK, **more: Any) -> Node:
    return file_node(None, **{"driver": "qcow2", "children": {"file": file_node(file)}, **more})


def drive(medium: Node | None, **more: Any) -> Drive:
    return Drive(**{"medium": medium, "tray_open": None, "limits": {}, **more})


def block(**more: Any) -> BlockLayer:
    whole = {"drives": {"d0": drive(disk_node())}, "others": {}, "jobs": {}, "exports": {}}
    return BlockLayer(**{**whole, **more})


def device(kind: str = "virtio-blk-pci", **properties: Any) -> Device:
    found = {"hotplugged": False, "addr": 16, **properties}
    return Device(type=kind, properties=found, asked=True)


def truth(**more: Any) -> Truth:
    return Truth(
        **{
            "version": "10.0.13",
            "pid": 1,
            "cwd": "/home",
            "root": "/",
            "machine": MachineState(
                type="pc-q35-10.0", accelerator="tcg", state="running", name="", uuid="0",
                cpus=[{"index": 0}], memory={"base-memory": 2**26},
            ),
            "block": block(),
            "files": [DISK],
            "nodes": ["/dev/null"],
            "chardevs": {"serial0": Chardev(where="null")},
            "listeners": [Listener(kind="unix", address="/run/q")],
            "networks": {"n0": "index=0,type=user"},
            "taps": [],
            "devices": {"/machine/peripheral/a": device()},
            "objects": {"pc.ram": Device(type="memory-backend-ram", properties={"share": False})},
            "migration": Migration(capabilities={"events": False}, parameters={"max": 1}),
            "displays": Displays(vnc=[], spice={}),
            **more,
        }
    )  # fmt: skip
