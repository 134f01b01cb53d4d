# SPDX-License-Identifier: GPL-2.0-or-later
"""From a device state to a migration stream that any QEMU loads.  Pure.

``xen-save-devices-state`` writes the state of all devices and nothing else.  What ``-incoming``
expects besides is put in front: which machine it is, and a section ``ram`` that says how large the
RAM blocks are, and has few pages or none (docs/devel/migration/main.rst and migration/savevm.c,
ram.c in QEMU).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from lab.base.errors import CannotTellError
from lab.transplant.blocks import RamBlock

#: QEMU_VM_FILE_MAGIC and QEMU_VM_FILE_VERSION.
_HEAD = b"QEVM\0\0\0\3"
#: QEMU_VM_SECTION_START, _SECTION_END, _CONFIGURATION, _SECTION_FOOTER, and the end of it all.
_START, _END, _CONFIGURATION, _FOOTER, _EOF = b"\x01", b"\x03", b"\x07", b"\x7e", b"\x00"
#: QEMU_VM_VMDESCRIPTION, which is for tools that look at a stream in a file.
_DESCRIPTION, _NOTHING = b"\x06", b"{}"
#: QEMU_VM_SUBSECTION; and the one of the configuration that a target with pages of any size has.
_SUBSECTION, _PAGE_BITS = b"\x05", b"configuration/target-page-bits"
#: Of the section ``ram``: its version, and what a page's address may have in its lowest bits.
_RAM_VERSION, _MEM_SIZE, _PAGE, _RAM_EOS = 4, 0x04, 0x08, 0x10
#: No device's section has so high a number.
_RAM_SECTION = 0x7FFFFFF0


@dataclass(frozen=True)
class Configuration:
    """The machine type, and log2 of a page's size in bytes where the target has more than one."""

    machine: str
    page_bits: int | None = None


@dataclass(frozen=True)
class RamPage:
    """A page of guest memory: its block's name, the offset in it, and its 4096 bytes."""

    block: str
    offset: int
    data: bytes


def complete(
    state: bytes,
    configuration: Configuration,
    blocks: Sequence[RamBlock],
    pages: Sequence[RamPage] = (),
) -> bytes:
    """Return the stream for the device state of a QEMU with that configuration and RAM blocks.

    Of guest memory it has those `pages`.

    Raises CannotTellError when it is no device state, or is cut off.
    """
    if not state.startswith(_HEAD) or len(state) <= len(_HEAD) + 1:
        raise CannotTellError(f"QEMU has saved no device state, but {state[:16]!r}")
    if not state.endswith(_EOF):
        raise CannotTellError(f"the device state is cut off after {len(state)} bytes")
    description = _DESCRIPTION + struct.pack(">I", len(_NOTHING)) + _NOTHING
    begin = _HEAD + _configuration(configuration) + _ram(blocks, pages)
    return begin + state[len(_HEAD) :] + description


def _configuration(configuration: Configuration) -> bytes:
    """Return the section that vmstate_configuration has (migration/savevm.c)."""
    name = configuration.machine.encode()
    section = _CONFIGURATION + struct.pack(">I", len(name)) + name
    if configuration.page_bits is None:
        return section
    header = _SUBSECTION + bytes([len(_PAGE_BITS)]) + _PAGE_BITS
    return section + header + struct.pack(">II", 1, configuration.page_bits)


def _ram(blocks: Sequence[RamBlock], pages: Sequence[RamPage]) -> bytes:
    section = struct.pack(">I", _RAM_SECTION)
    footer = _FOOTER + section
    end = struct.pack(">Q", _RAM_EOS) + footer
    whole = sum(block.used for block in blocks)
    sizes = b"".join(
        bytes([len(name)]) + name + struct.pack(">Q", used)
        for name, used in ((block.name.encode(), block.used) for block in blocks)
    )
    contents = b"".join(
        struct.pack(">QB", page.offset | _PAGE, len(name)) + name + page.data
        for name, page in ((page.block.encode(), page) for page in pages)
    )
    return b"".join(
        (
            _START + section + b"\x03ram" + struct.pack(">II", 0, _RAM_VERSION),
            struct.pack(">Q", whole | _MEM_SIZE) + sizes + end,
            _END + section + contents + end,
        )
    )
