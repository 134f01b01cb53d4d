# SPDX-License-Identifier: GPL-2.0-or-later
"""The lab's end of the helper: what QEMU says, what it is given, and how both ends talk."""

from __future__ import annotations

import platform
import socket
import struct
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import needs
import pytest

from lab.base.deadline import Deadline
from lab.base.errors import CannotTellError
from lab.base.layout import Layout
from lab.host import facts
from lab.mechanisms import transplant
from lab.transplant import blocks, devices, helper, stream
from lab.transplant.blocks import RamBlock
from lab.transplant.channel import MAGIC, REPLY, VERSION, Channel, HelperError, Order, pack
from lab.transplant.stream import Configuration

OLD = """\
              Block Name    PSize              Offset               Used              Total
                  pc.ram    4 KiB  0x0000000000000000 0x0000000020000000 0x0000000020000000
   0000:00:01.0/vga.vram    4 KiB  0x0000000020080000 0x0000000001000000 0x0000000001000000
    /rom@etc/acpi/tables    4 KiB  0x0000000021100000 0x0000000000020000 0x0000000000200000
"""
NEW = """\
 Block Name    PSize          Offset           Used            Total                HVA  RO
     pc.ram    2 MiB  0x000000000000 0x000020000000 0x000020000000 0x00007f2a5be00000  rw
    pc.bios    4 KiB  0x000020000000 0x000000040000 0x000000040000 0x00007f2a81200000  ro
"""


def test_blocks_as_old_and_new_releases_list_them() -> None:
    ram, _, tables = blocks.parse(OLD)
    assert ram == RamBlock("pc.ram", 0, 0x20000000, 0x20000000)
    assert tables == RamBlock("/rom@etc/acpi/tables", 0x21100000, 0x20000, 0x200000)
    ram, bios = blocks.parse(NEW)
    assert ram.address == 0x7F2A5BE00000
    assert bios == RamBlock("pc.bios", 0x20000000, 0x40000, 0x40000, 0x7F2A81200000)


@pytest.mark.parametrize(
    "text",
    ["", "unknown command: 'info ramblock'", OLD.splitlines()[0], OLD + "  pc.more  4 KiB  what\n"],
)
def test_a_list_that_is_not_understood_is_refused(text: str) -> None:
    with pytest.raises(CannotTellError, match="unknown way"):
        blocks.parse(text)


def test_a_device_state_becomes_a_stream() -> None:
    saved = b"\x04devices"
    made = stream.complete(
        b"QEVM\0\0\0\3" + saved + b"\0",
        Configuration("pc-q35-7.2"),
        [RamBlock("pc.ram", 0, 0x1000, 0x1000), RamBlock("rom", 0x2000, 0x3000, 0x8000)],
    )
    sections = struct.pack(">I", 0x7FFFFFF0)
    end = struct.pack(">Q", 0x10) + b"\x7e" + sections
    assert made == b"".join(
        (
            b"QEVM\0\0\0\3\x07" + struct.pack(">I", 10) + b"pc-q35-7.2",
            b"\x01" + sections + b"\x03ram" + struct.pack(">II", 0, 4),
            struct.pack(">Q", 0x4004),
            b"\x06pc.ram" + struct.pack(">Q", 0x1000) + b"\x03rom" + struct.pack(">Q", 0x3000),
            end,
            b"\x03" + sections + end,
            saved + b"\0",
            b"\x06" + struct.pack(">I", 2) + b"{}",
        )
    )


@pytest.mark.parametrize("state", [b"", b"QEVM\0\0\0\3\0", b"QEVM\0\0\0\2\1\0", b"QEVM\0\0\0\3\4x"])
def test_what_is_no_whole_device_state_is_refused(state: bytes) -> None:
    with pytest.raises(CannotTellError, match="device state"):
        stream.complete(state, Configuration("pc"), [])


def test_a_target_with_pages_of_any_size_says_which() -> None:
    """As vmstate_target_page_bits has it (migration/savevm.c)."""
    state = b"QEVM\0\0\0\3\x04x\0"
    fixed, told = (
        stream.complete(state, Configuration("virt-10.0", bits), []) for bits in (None, 12)
    )
    name = b"configuration/target-page-bits"
    more = b"\x05" + bytes([len(name)]) + name + struct.pack(">II", 1, 12)
    assert told == fixed.replace(b"virt-10.0", b"virt-10.0" + more)


@pytest.mark.parametrize(
    ("machine", "architecture", "found"),
    [
        ("pc-q35-10.0-machine", "x86_64", Configuration("pc-q35-10.0")),
        ("virt-10.0-machine", "aarch64", Configuration("virt-10.0", 12)),
        ("raspi3b-machine", "aarch64", None),
        ("virt-2.7-machine", "aarch64", None),
        ("virt-10.0-machine", "riscv64", Configuration("virt-10.0")),
    ],
)
def test_the_configuration_is_of_the_machine(
    machine: str, architecture: str, found: Configuration | None
) -> None:
    told = {"qom-get": machine, "query-target": {"arch": architecture}}
    answers = SimpleNamespace(execute=lambda command, _arguments=None: told[command])
    qemu = cast("Any", SimpleNamespace(monitor=answers))
    if found:
        assert devices.configuration(qemu) == found
        return
    said = f"not understood for {machine[:5]}.* {architecture}"
    with pytest.raises(CannotTellError, match=said):
        devices.configuration(qemu)


def answer(kind: int, serial: int, payload: bytes, length: int | None = None) -> bytes:
    size = len(payload) if length is None else length
    return struct.pack("<IHHII", MAGIC, VERSION, kind, size, serial) + payload


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (answer(Order.HELLO | REPLY, 1, pack((1, "no room"))), "no room"),
        (answer(Order.HELLO, 1, pack((0,))), "is none"),
        (answer(Order.HELLO | REPLY, 2, pack((0,))), "is none"),
        (answer(Order.HELLO | REPLY, 1, b"", 2**21), "is none"),
        (answer(Order.HELLO | REPLY, 1, b""), "cut off"),
        (answer(Order.HELLO | REPLY, 1, b"", 8), "it has ended"),
        (b"", "it has ended"),
    ],
)
def test_an_answer_that_is_none(said: bytes, words: str) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(said)
        theirs.shutdown(socket.SHUT_WR)
        with pytest.raises(HelperError, match=words):
            Channel(ours, lambda: "it has ended").ask(
                Order.HELLO, deadline=Deadline.after(5, "hello")
            )


@pytest.mark.skipif(bool(needs.static_c()), reason=needs.static_c())
def test_the_helper_refuses_what_it_cannot_take(tmp_path: Path) -> None:
    layout = Layout(Layout.default().checkout, tmp_path, tmp_path)
    first = helper.compiled(layout)
    assert helper.compiled(layout) == first
    ram = RamBlock("pc.ram", 0, 4096, 4096)
    with helper.started(layout, tmp_path / "log") as one:
        for refused, words in (
            (lambda: one.examine(2**22 + 1, [ram]), "/proc/4194305/status"),
            (lambda: one.examine(1, []), "0 RAM blocks"),
            (lambda: one.examine(1, [ram] * 65), "65 RAM blocks"),
            (lambda: one.examine(1, [RamBlock("pc.ram", 0, 8192, 4096)]), "length that none can"),
            (lambda: one.start(["/bin/true"], {}, dry=True), "nothing was examined"),
            (lambda: one.adopt([ram]), "no new QEMU"),
            (one.count, "no new QEMU"),
            (lambda: one.hold({}), "no new QEMU"),
            (lambda: one.hold(dict.fromkeys(range(65), 9)), "65 descriptors"),
            (one.finish, "is not held"),
        ):
            with pytest.raises(HelperError, match=words):
                refused()
        assert one.abandon() == ""


def test_kernels_that_are_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    for release, refused in (("5.10.0-30-amd64", True), ("5.13.0", False), ("6.1-rc3", False)):
        monkeypatch.setattr(platform, "release", lambda release=release: release)
        said = transplant._missing_here()
        assert (said == f"it takes Linux 5.13, and this is {release}") == refused
        assert facts.linux() < transplant._DIRECT
    monkeypatch.setattr(platform, "release", lambda: "6.18.44-x")
    assert facts.linux() >= transplant._DIRECT
