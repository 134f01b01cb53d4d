# SPDX-License-Identifier: GPL-2.0-or-later
"""The model of a running QEMU: one place for each thing.

Two of them are compared member by member (`lab.live.compare`), so lists have an order of their own
and what is keyed has the name that management knows it by.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field

from lab.model import Model


class OpenFile(Model):
    """A file by what it is, not by its name (inode(7))."""

    device: int
    inode: int
    name: str = Field(description="what the kernel calls it by now; for people")

    @property
    def identity(self) -> tuple[int, int]:
        """What makes it this file and no other."""
        return self.device, self.inode


class Bitmap(Model):
    """A dirty bitmap (BlockDirtyInfo in QEMU's qapi/block-core.json)."""

    granularity: int
    recording: bool
    persistent: bool


class Node(Model):
    """A node of the block graph with everything below it."""

    driver: str
    name: str = Field(description="empty where QEMU made one up")
    filename: str = Field(
        description="for what is no file of this host, and options that decide what is read"
    )
    file: OpenFile | None = Field(description="what is open in the process; null for no file")
    lost: str = Field(description="the name of a file that is not the one the process has open")
    read_only: bool
    settings: dict[str, Any]
    bitmaps: dict[str, Bitmap]
    children: dict[str, Node]

    @property
    def lowest(self) -> Node:
        """The node of the file that this one's newest data is in."""
        below = self.children.get("file")
        return below.lowest if below else self


class Drive(Model):
    """What a drive is to the guest: a BlockBackend."""

    medium: Node | None = Field(description="null without a medium")
    tray_open: bool | None = Field(description="null for what has no tray")
    limits: dict[str, Any] = Field(description="throttling; empty without")


class BlockLayer(Model):
    """Everything of the block layer."""

    drives: dict[str, Drive]
    others: dict[str, Node] = Field(description="named nodes that no drive has")
    jobs: dict[str, str] = Field(description="each with its type and its state")
    exports: dict[str, dict[str, Any]]


class Chardev(Model):
    """A character device."""

    where: str = Field(description="as query-chardev says it, without who is connected")


class Listener(Model):
    """A socket that the process listens on (proc_pid_net(5))."""

    kind: str = Field(description="unix, tcp, tcp6, udp or udp6")
    address: str


class Device(Model):
    """A device, or any other object, by its place in QOM."""

    type: str
    properties: dict[str, Any]
    asked: bool = Field(default=False, description="made by -device or device_add")


class Migration(Model):
    """Settings of migration."""

    capabilities: dict[str, bool]
    parameters: dict[str, Any]


class MachineState(Model):
    """The machine as a whole."""

    type: str
    accelerator: str
    state: str = Field(description="RunState (QAPI)")
    name: str
    uuid: str
    cpus: list[dict[str, Any]]
    memory: dict[str, Any]


class Displays(Model):
    """Who can see the guest's screen."""

    vnc: list[dict[str, Any]]
    spice: dict[str, Any]


class Truth(Model):
    """A running QEMU."""

    version: str
    pid: int
    cwd: str
    root: str
    machine: MachineState
    block: BlockLayer
    files: list[OpenFile] = Field(description="regular files and block devices that are open")
    nodes: list[str] = Field(description="character special files that are open")
    chardevs: dict[str, Chardev]
    listeners: list[Listener]
    networks: dict[str, str]
    taps: list[str] = Field(description="network interfaces that it has a descriptor of")
    devices: dict[str, Device]
    objects: dict[str, Device]
    migration: Migration
    displays: Displays
