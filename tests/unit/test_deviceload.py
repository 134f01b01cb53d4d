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
from lab.base.errors import CannotTellError, PreconditionError
from lab.live import planning
from lab.live.planning import Plan
from lab.live.successor import Successor
from lab.mechanisms import Asked, deviceload
from lab.transplant import lowmem, stream
from lab.transplant.blocks import RamBlock
from lab.transplant.stream import RamPage
from lab.vm.qemu import Qemu

BLOCKS = [RamBlock("ram0", 0, 2**29, 2**29), RamBlock("pc.rom", 2**29, 2**17, 2**17)]
TREE = """\
FlatView #0
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


def monitor(words: str = "") -> Qemu:
    """Return a QEMU whose memory has at each address the address."""

    def execute(_command: str, arguments: dict[str, str]) -> str:
        asked = arguments["command-line"].split()
        if asked[0] == "info":
            return TREE
        first = int(asked[2], 16)
        return words or "\r\n".join(
            f"{at:016x}: 0x{at:016x} 0x{at + 8:016x}" for at in range(first, first + 4096, 16)
        )

    found = Qemu("old", cast("Any", None), process.Foreign(os.getpid()), Path())
    found.connection = cast("Any", argparse.Namespace(execute=execute))
    return found


def test_what_option_roms_are_in_is_read() -> None:
    """From the block that is seen there; what is in two, or is no memory, is left out."""
    pages = lowmem.read(monitor(), BLOCKS)
    wanted = [("ram0", at) for at in range(0xC0000, 0xC4000, 0x1000)] + [("pc.rom", 0x4000)]
    assert [(one.block, one.offset) for one in pages] == wanted
    assert all(len(one.data) == 4096 for one in pages)
    assert struct.unpack_from("<Q", pages[1].data, 16) == (0xC1010,)
    assert lowmem.read(monitor(), []) == []


@pytest.mark.parametrize("words", ["Cannot access memory", f"{0xC0000:016x}: 0x{0:016x}"])
def test_memory_that_is_told_in_an_unknown_way_is_refused(words: str) -> None:
    with pytest.raises(CannotTellError, match="unknown way"):
        lowmem.read(monitor(words), BLOCKS)


def test_pages_are_in_the_stream_s_last_section() -> None:
    state = b"QEVM\0\0\0\3\x04x\0"
    page = RamPage("ram0", 0xC1000, bytes(range(256)) * 16)
    one, none = (stream.complete(state, "pc", BLOCKS, pages) for pages in ([page], []))
    told = struct.pack(">Q", 0xC1008) + b"\x04ram0" + page.data
    assert told in one
    assert one.replace(told, b"") == none
    assert one.index(told) == one.index(b"\x03" + struct.pack(">I", 0x7FFFFFF0)) + 5


def plan(mechanism: mechanisms.Mechanism, *commands: str) -> Plan:
    binary = argparse.Namespace(version="1", commands=frozenset(commands))
    found = argparse.Namespace(pid=7, binary=binary)
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
    monkeypatch.setattr("lab.live.preflight.examine", lambda *_: seen)
    monkeypatch.setattr("lab.live.preflight.successor", lambda *_: given.successor)
    new = cast("Any", argparse.Namespace(path="/new"))
    asked = Asked(rehearse=True)
    made = planning.plan("7", new, "auto", asked)
    assert isinstance(made.mechanism, mechanisms.DeviceLoad)
    assert planning.plan("7", new, "auto").mechanism.name == "precopy"
    given.found.binary.commands = frozenset()
    with pytest.raises(PreconditionError, match="has no command xen-save-devices-state"):
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
