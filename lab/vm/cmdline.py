# SPDX-License-Identifier: GPL-2.0-or-later
"""From a scenario to QEMU's command line.  Pure: nothing here touches the system."""

from __future__ import annotations

import dataclasses
import enum
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

#: Ports of the guest's agent, by the names it looks for.
CONTROL_PORT = "org.pageflip.control"
HEARTBEAT_PORT = "org.pageflip.heartbeat"
#: And the port of QEMU's own agent (docs/interop/qemu-ga.rst).
_AGENT_PORT = "org.qemu.guest_agent.0"

#: What QEMU traces, read by lab.vm.tracelog.  The second is a pattern: a release that does not have
#: it says nothing then.
TRACED = ("runstate_set", "vmstate_downtime_checkpoin*")
#: The board of a guest that nothing is said of: QEMU's alias for its newest type of it.
DEFAULT_BOARD = "q35"


class Backing(enum.StrEnum):
    """What guest RAM is made of."""

    PRIVATE = "private"  # plain -m: anonymous memory, what ordinary guests have
    SHARED = "shared"  # memfd with share=on and aux-ram-share=on, what cpr-transfer needs
    MEMFD = "memfd"  # memfd with share=on, all else private: what handover needs
    FILE = "file"  # a file in memory, share=on, that another QEMU can map by its name
    HUGETLB = "hugetlb"  # private huge pages from the kernel's pool, all of them taken at once


class Invocation(Protocol):
    """How a QEMU is started, as far as it matters to whoever moves a guest there."""

    @property
    def sockets(self) -> Path:
        """A directory for the sockets of the move."""

    @property
    def qmp(self) -> Path:
        """The monitor's socket."""

    @property
    def descriptors(self) -> tuple[int, ...]:
        """The descriptors that its command line refers to by number."""

    def argv(self) -> list[str]:
        """Return its command line."""


@dataclass(frozen=True)
class Nic:
    """A virtio network card on a tap: an open descriptor, whose number is the lab's and QEMU's."""

    tap: int
    mac: str = "52:54:00:12:34:56"


@dataclass(frozen=True)
class Machine:
    """One QEMU: everything its command line says.

    ``sockets`` is the directory of its monitor's socket; the guest's ports connect to sockets in
    the same directory, on which the lab already listens.
    """

    qemu: Path
    firmware: Path
    kernel: Path
    initrd: Path | None
    append: str
    sockets: Path
    serial_log: Path
    accel: str
    ram_bytes: int
    cpus: int = 1
    backing: Backing = Backing.PRIVATE
    #: With Backing.FILE, the file.
    ram_file: Path | None = None
    machine_type: str = DEFAULT_BOARD
    #: What -cpu takes, where the board's own is not what the guest is made for.
    cpu: str = ""
    incoming: tuple[str, ...] = ()
    nics: tuple[Nic, ...] = ()
    #: What else it has, as -device takes it.
    devices: tuple[str, ...] = ()
    #: What the guest boots from (qcow2), where it has one; then QEMU's own agent is in the guest.
    disk: Path | None = None
    #: Whether its serial port is the terminal, and not `serial_log`.
    console: bool = False
    #: Where trace events go; None is stderr, with everything else that QEMU says.
    trace_log: Path | None = None

    @property
    def descriptors(self) -> tuple[int, ...]:
        """The descriptors that its command line refers to by number."""
        return tuple(nic.tap for nic in self.nics)

    @property
    def qmp(self) -> Path:
        """The monitor's socket."""
        return self.sockets / "qmp"

    @property
    def control(self) -> Path:
        """The socket that the agent's control port connects to."""
        return self.sockets / "control"

    @property
    def heartbeat(self) -> Path:
        """The socket that the agent's heartbeat port connects to."""
        return self.sockets / "heartbeat"

    @property
    def guest_agent(self) -> Path:
        """The socket to QEMU's own agent in the guest."""
        return self.sockets / "guest-agent"

    def argv(self) -> list[str]:
        """Return its command line."""
        words = [
            str(self.qemu),
            "-L",
            str(self.firmware),
            "-nodefaults",
            "-no-user-config",
            "-display",
            "none",
            *("-msg", "timestamp=on"),
            *(word for event in TRACED for word in ("-trace", event)),
            *_board(self),
            *_boots(self),
            "-chardev",
            f"socket,id=qmp,path={_escape(self.qmp)},server=on,wait=off",
            "-mon",
            "chardev=qmp,mode=control",
            "-serial",
            "mon:stdio" if self.console else f"file:{self.serial_log}",
            "-device",
            "virtio-serial-pci,id=ports",
        ]
        for name, port, path in (
            ("control", CONTROL_PORT, self.control),
            ("heartbeat", HEARTBEAT_PORT, self.heartbeat),
        ):
            words += [
                "-chardev",
                f"socket,id={name},path={_escape(path)}",
                "-device",
                f"virtserialport,bus=ports.0,chardev={name},name={port}",
            ]
        words += _disk(self)
        words += _network(self)
        for device in self.devices:
            words += ["-device", device]
        for where in self.incoming:
            words += ["-incoming", where]
        if self.trace_log:
            words += ["-D", str(self.trace_log)]
        return words


def successor(
    old: Machine,
    *,
    qemu: Path,
    firmware: Path,
    sockets: Path,
    serial_log: Path,
    incoming: tuple[str, ...],
) -> Machine:
    """Return the machine that takes the guest over from `old`.

    The same guest to the last device; only what belongs to the process differs.
    """
    return dataclasses.replace(
        old, qemu=qemu, firmware=firmware, sockets=sockets, serial_log=serial_log, incoming=incoming
    )


def cpr_channel(path: Path) -> str:
    """Return the value of ``-incoming`` that names cpr-transfer's second channel."""
    return json.dumps(
        {"channel-type": "cpr", "addr": {"transport": "socket", "type": "unix", "path": str(path)}}
    )


def _disk(machine: Machine) -> list[str]:
    if not machine.disk:
        return []
    file = {"driver": "file", "filename": str(machine.disk)}
    return [
        "-blockdev",
        json.dumps({"driver": "qcow2", "node-name": "disk", "file": file}),
        "-device",
        "virtio-blk-pci,drive=disk",
        "-chardev",
        f"socket,id=guest-agent,path={_escape(machine.guest_agent)},server=on,wait=off",
        "-device",
        f"virtserialport,bus=ports.0,chardev=guest-agent,name={_AGENT_PORT}",
    ]


def _network(machine: Machine) -> list[str]:
    words = []
    for number, nic in enumerate(machine.nics):
        # Without an option ROM: -kernel boots, and the network is not asked.
        card = f"virtio-net-pci,id=nic{number},netdev=net{number},mac={nic.mac},romfile="
        words += ["-netdev", f"tap,id=net{number},fd={nic.tap}", "-device", card]
    return words


def _boots(machine: Machine) -> list[str]:
    words = ["-kernel", str(machine.kernel)]
    if machine.initrd:
        words += ["-initrd", str(machine.initrd)]
    if machine.append:
        words += ["-append", machine.append]
    return words


def _board(machine: Machine) -> list[str]:
    megabytes = machine.ram_bytes // 2**20
    board = [
        "-machine",
        machine.machine_type,
        "-accel",
        machine.accel,
        "-m",
        f"{megabytes}M",
        "-smp",
        str(machine.cpus),
    ]
    if machine.cpu:
        board += ["-cpu", machine.cpu]
    if machine.backing is not Backing.PRIVATE:
        how = "share=on"
        if machine.backing is Backing.HUGETLB:
            how = "share=off,hugetlb=on,hugetlbsize=2M,prealloc=on"
        board[1] += ",memory-backend=ram"
        kind = "memfd"
        if machine.backing is Backing.FILE:
            kind, how = "file", f"mem-path={machine.ram_file},share=on"
        board += ["-object", f"memory-backend-{kind},id=ram,size={megabytes}M,{how}"]
    if machine.backing is Backing.SHARED:
        board[1] += ",aux-ram-share=on"
    return board


def _escape(path: Path) -> str:
    """Return `path` fit for a QEMU option list, where a comma is written twice."""
    return str(path).replace(",", ",,")
