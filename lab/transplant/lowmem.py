# SPDX-License-Identifier: GPL-2.0-or-later
"""The memory of a PC where its option ROMs are, read by a monitor.

Its devices look there when their state is loaded: without it the one that patches guests' accesses
to the local APIC (``kvm-tpr-opt``, hw/i386/vapic.c in QEMU) refuses its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from lab.base.errors import CannotTellError
from lab.transplant import devices
from lab.transplant.blocks import RamBlock
from lab.transplant.stream import RamPage
from lab.vm.qemu import Qemu

_PAGE = 4096
#: Option ROMs and the BIOS below 1 MiB (guest physical addresses).
_ROMS = range(0xC0000, 0x100000, _PAGE)
#: A line of ``info mtree -f``: a range, which region it is, and from where on in that.
_RANGE = re.compile(
    r"^\s*(?P<first>[0-9a-f]{16})-(?P<last>[0-9a-f]{16}) \(prio -?\d+, (?:ram|rom|nv-ram)\): "
    r"(?P<name>\S+)(?: @(?P<offset>[0-9a-f]{16}))?"
)
#: A line of ``xp``: an address, and what is there, in words of eight bytes.
_WORDS = re.compile(r"^[0-9a-f]+: ((?:0x[0-9a-f]{16} ?)+)\s*$")


def read(qemu: Qemu, blocks: Sequence[RamBlock]) -> list[RamPage]:
    """Return those pages of a QEMU with those RAM blocks; none where there is no such memory.

    Raises CannotTellError for what is not understood.
    """
    names = {block.name for block in blocks}
    ranges = list(_ranges(devices.hmp(qemu, "info mtree -f")))
    found = []
    for address in _ROMS:
        for first, last, name, offset in ranges:
            if first <= address and address + _PAGE - 1 <= last and name in names:
                text = devices.hmp(qemu, f"xp /{_PAGE // 8}xg {address:#x}")
                found.append(RamPage(name, offset + address - first, _bytes(text)))
                break
    return found


def _ranges(text: str) -> Iterator[tuple[int, int, str, int]]:
    """Yield first and last address, name and offset of each range of memory that is told."""
    for line in text.splitlines():
        if told := _RANGE.match(line):
            first, last, offset = (
                int(told[part] or "0", 16) for part in ("first", "last", "offset")
            )
            yield first, last, told["name"], offset


def _bytes(text: str) -> bytes:
    """Return what the answer to ``xp`` says, as it is in memory."""
    told = [_WORDS.match(line) for line in text.splitlines() if line.strip()]
    words = [word for line in told if line for word in line[1].split()]
    if not all(told) or len(words) * 8 != _PAGE:
        raise CannotTellError(f"QEMU tells what is in memory in an unknown way: {text[:80]!r}")
    return b"".join(int(word, 16).to_bytes(8, "little") for word in words)
