# SPDX-License-Identifier: GPL-2.0-or-later
"""The rehearsal by device state alone: what it reads, when it is made, and how it ends."""

from __future__ import annotations

import argparse
import dataclasses
import os
import signal
import struct
import subprocess
from pathlib import Path
from typing import Any, cast

import pytest

from lab import mechanisms
from lab.base import process
from lab.base.deadline import Deadline
from lab.base.errors import CannotTellError, PreconditionError
from lab.live import planning
from lab.live.planning import Plan
from lab.live.successor import Successor
from lab.mechanisms import Asked, deviceload
from lab.transplant import devices, guestmem, stream
from lab.transplant.blocks import RamBlock
from lab.transplant.stream import RamPage
from lab.vm.monitor import QmpError
from lab.vm.qemu import Qemu

BLOCKS = [RamBlock("ram0", 0, 2**29, 2**29), RamBlock("pc.rom", 2**29, 2**17, 2**17)]
TREE = """\
FlatView #0
 AS "elsewhere", root: elsewhere
  00000000000c0000-00000000000fffff (prio 0, ram): pc.rom

FlatView #1
 AS "virtio-blk-pci", root: bus master container
 AS "memory", root: system
 Root memory region: system
  0000000000000000-00000000000bffff (prio 0, ram): ram0
  00000000000c0000-00000000000c3fff (prio 0, rom): ram0 @00000000000c0000
  00000000000c4000-00000000000c4fff (prio 1, rom): pc.rom @0000000000004000
  00000000000c5000-00000000000c57ff (prio 1, ram): ram0 @00000000000c5000
  00000000000c5800-00000000000c5fff (prio 1, i/o): io
  00000000000f0000-00000000000fffff (prio 0, romd): flash
  0000000000100000-000000001fffffff (prio 0, ram): ram0 @0000000000100000
"""


class Old:
    """An old QEMU's monitor: its memory has at each address the address, and one virtio device."""

    def __init__(self, words: str = "", state: str = "running") -> None:
        self.words, self.state = words, state
        self.did: list[str] = []
        self.capabilities = {"multifd": True, "events": True, "mapped-ram": False}
        self.mode = "cpr-transfer"
        self.blocked = ""

    def execute(self, command: str, given: Any = None, deadline: object = None) -> Any:
        del deadline
        self.did.append(command)
        return getattr(self, command.replace("-", "_"))(given)

    @staticmethod
    def x_query_virtio(_given: None) -> Any:
        return [{"path": "/net"}]

    def query_migrate_capabilities(self, _given: None) -> Any:
        return [{"capability": key, "state": on} for key, on in self.capabilities.items()]

    def migrate_set_capabilities(self, given: Any) -> None:
        self.capabilities |= {one["capability"]: one["state"] for one in given["capabilities"]}

    def query_migrate_parameters(self, _given: None) -> Any:
        return {"mode": self.mode}

    def migrate_set_parameters(self, given: Any) -> None:
        self.mode = given["mode"]

    def migrate(self, given: Any) -> None:
        assert (self.capabilities["multifd"], self.mode) == (False, "normal")
        raise QmpError(self.blocked or f"no {given['uri']}")

    def xen_save_devices_state(self, _given: Any) -> None:
        Path(self.given).write_bytes(b"state")

    def query_status(self, _given: None) -> Any:
        return {"status": self.state}

    def cont(self, _given: None) -> None:
        self.state = "suspended"

    def remove_fd(self, _given: Any) -> None:
        """Nothing is kept."""

    def execute_with(self, descriptor: int, *_how: object) -> dict[str, int]:
        self.given = f"/proc/self/fd/{descriptor}"
        return {"fdset-id": 0}

    def human_monitor_command(self, given: Any) -> str:
        asked = given["command-line"].split()
        if asked[0] == "info":
            return TREE
        first = int(asked[2], 16)
        return self.words or "\r\n".join(
            f"{at:016x}: 0x{at:016x} 0x{at + 8:016x}" for at in range(first, first + 4096, 16)
        )

    @staticmethod
    def x_query_virtio_queue_status(given: Any) -> dict[str, int]:
        number = given["queue"]
        if number > 2:
            raise QmpError("Invalid virtqueue number 3")
        if number == 1:
            return {"vring-avail": 0, "vring-used": 0}
        # The second one's indices are in the page behind the first byte of its rings.
        at = 0x1F0000 + number // 2 * 0x1FFE
        return {"vring-avail": at, "vring-used": at + 0x2000}


def monitor(words: str = "", state: str = "running") -> Qemu:
    """Return a QEMU with that monitor."""
    found = Qemu("old", cast("Any", None), process.Foreign(os.getpid()), Path())
    found.connection = cast("Any", Old(words, state))
    return found


def test_what_option_roms_are_in_is_read() -> None:
    """From the block that is seen there; what is in two, or is no memory, is left out."""
    pages = guestmem.read(monitor(), BLOCKS)
    wanted = [("ram0", at) for at in range(0xC0000, 0xC4000, 0x1000)] + [("pc.rom", 0x4000)]
    wanted += [("ram0", at) for at in (0x1F0000, 0x1F2000, 0x1F4000)]
    assert [(one.block, one.offset) for one in pages] == wanted
    assert all(len(one.data) == 4096 for one in pages)
    assert struct.unpack_from("<Q", pages[1].data, 16) == (0xC1010,)
    assert guestmem.read(monitor(), []) == []


def test_memory_that_has_gone_is_left_out() -> None:
    assert guestmem.read(monitor("Cannot access memory\r\n"), BLOCKS) == []


@pytest.mark.parametrize("words", ["unknown command: 'xp'", f"{0xC0000:016x}: 0x{0:016x}"])
def test_memory_that_is_told_in_an_unknown_way_is_refused(words: str) -> None:
    with pytest.raises(CannotTellError, match="unknown way"):
        guestmem.read(monitor(words), BLOCKS)


def test_pages_are_in_the_stream_s_last_section() -> None:
    state = b"QEVM\0\0\0\3\x04x\0"
    page = RamPage("ram0", 0xC1000, bytes(range(256)) * 16)
    one, none = (
        stream.complete(state, stream.Configuration("pc"), BLOCKS, pages) for pages in ([page], [])
    )
    told = struct.pack(">Q", 0xC1008) + b"\x04ram0" + page.data
    assert told in one
    assert one.replace(told, b"") == none
    assert one.index(told) == one.index(b"\x03" + struct.pack(">I", 0x7FFFFFF0)) + 5


def test_blockers_are_asked_for_whatever_was_set() -> None:
    """What takes more than one descriptor is off for that moment, and on again."""
    old = monitor()
    fake = cast("Old", old.connection)
    devices.check_blockers(old)
    fake.blocked = "it is blocked"
    with pytest.raises(QmpError, match="it is blocked"):
        devices.check_blockers(old)
    assert fake.capabilities == Old().capabilities
    assert fake.mode == "cpr-transfer"


@pytest.mark.parametrize(("state", "conts"), [("running", 0), ("paused", 0), ("save-vm", 1)])
def test_a_guest_that_sleeps_is_not_left_stopped(state: str, conts: int) -> None:
    old = monitor(state=state)
    deadline = Deadline.after(9, "it is saved")
    assert devices.save(old, deadline, live=False) == b"state"
    did = cast("Old", old.connection).did
    assert did.count("cont") == conts
    assert did[-1] == "remove-fd"


def plan(mechanism: mechanisms.Mechanism, *commands: str) -> Plan:
    binary = argparse.Namespace(version="1", commands=frozenset(commands))
    found = argparse.Namespace(pid=7, binary=binary, truth=None)
    made = Successor(["/q", "-object", "memory-backend-ram,id=m,size=1G,prealloc=on"])
    return Plan(cast("Any", found), cast("Any", None), mechanism, made, Asked())


ABLE = ("xen-save-devices-state", "add-fd", "human-monitor-command")


def test_a_way_without_return_is_rehearsed_before(capsys: pytest.CaptureFixture[str]) -> None:
    before = planning.rehearsal(plan(mechanisms.Postcopy(), *ABLE))
    assert before
    assert isinstance(before.mechanism, mechanisms.DeviceLoad)
    assert before.asked.rehearse
    assert "prealloc=off" in before.successor.argv[-1]
    assert "postcopy cannot go back" in capsys.readouterr().err
    assert planning.rehearsal(plan(mechanisms.Precopy(), *ABLE)) is None
    assert not capsys.readouterr().err
    apart = planning.rehearsal(plan(mechanisms.Remap()))
    assert apart
    assert isinstance(apart.mechanism, mechanisms.Flip)


def test_where_that_is_not_possible_it_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert planning.rehearsal(plan(mechanisms.Postcopy(), *ABLE[1:])) is None
    said = " ".join(capsys.readouterr().err.split())
    assert "not possible" in said
    assert "has no command xen-save-devices-state" in said


def test_what_cannot_be_rehearsed_itself_is_so(
    monkeypatch: pytest.MonkeyPatch, state: Path
) -> None:
    del state
    way = argparse.Namespace(mechanism="precopy", reasons=[])
    seen = argparse.Namespace(ways=[way], best="precopy")
    given = plan(mechanisms.Precopy(), *ABLE)
    for name, answer in (
        ("find", (os.getpid(), Path("/run/q"))),
        ("look", given.found),
    ):
        monkeypatch.setattr(f"lab.live.look.{name}", lambda *_, answer=answer: answer)
    monkeypatch.setattr("lab.live.preflight.examine", lambda *_, **__: seen)
    monkeypatch.setattr("lab.live.preflight.successor", lambda *_: given.successor)
    new = cast("Any", argparse.Namespace(path="/new"))
    asked = Asked(rehearse=True)
    made = planning.plan("7", new, "auto", asked)
    assert isinstance(made.mechanism, mechanisms.DeviceLoad)
    assert planning.plan("7", new, "auto").mechanism.name == "precopy"
    with pytest.raises(PreconditionError, match="precopy does not give up"):
        planning.plan("7", new, "auto", dataclasses.replace(asked, patience_ms=9))
    given.found.binary.commands = frozenset()
    with pytest.raises(PreconditionError, match=r"cannot be rehearsed.* xen-save-devices-state"):
        planning.plan("7", new, "auto", asked)
    given.found.binary.commands = frozenset(ABLE)
    with pytest.raises(PreconditionError, match="cannot be verified"):
        planning.plan("7", new, "auto", dataclasses.replace(asked, verify=True))


def test_the_new_qemu_never_stays() -> None:
    """Whatever became of it: it has a guest without memory."""
    with subprocess.Popen(["sleep", "100"]) as child:
        new = Qemu("new", cast("Any", None), child, Path())
        loading = deviceload._Loading(monitor(), new)
        loading.close()
        assert child.wait(10) == -signal.SIGKILL
        assert loading.undo() == ""
        assert not loading.info()["localhost"]["rehearsed"]
