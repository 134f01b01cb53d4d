# SPDX-License-Identifier: GPL-2.0-or-later
"""The guest memory that devices look at while their state is loaded, read by a monitor.

Of a PC it is where option ROMs are: without them the device that patches guests' accesses to the
local APIC (``kvm-tpr-opt``, hw/i386/vapic.c in QEMU) refuses its state.  And it is the indices of
virtio's rings, which are compared with the saved ones (virtio_load() in hw/virtio/virtio.c).
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lab.base.errors import CannotTellError
from lab.transplant import devices
from lab.transplant.blocks import RamBlock
from lab.transplant.stream import RamPage
from lab.vm.monitor import QmpError
from lab.vm.qemu import Qemu

_PAGE = 4096
#: Option ROMs and the BIOS below 1 MiB (guest physical addresses).
_ROMS = range(0xC0000, 0x100000, _PAGE)
#: Where a ring has its index: behind 16 bits of flags (Virtual I/O Device, 2.7.6 and 2.7.8).
_INDEX = 2
#: How ``info mtree -f`` begins each view, and which view is the processors'.
_VIEW, _MEMORY = "FlatView #", 'AS "memory",'
#: A range of memory in a view: where it is, which region it is, and from where on in that.
_RANGE = re.compile(
    r"^\s*(?P<first>[0-9a-f]{16})-(?P<last>[0-9a-f]{16}) \(prio -?\d+, (?:ram|rom|nv-ram)\): "
    r"(?P<name>\S+)(?: @(?P<offset>[0-9a-f]{16}))?"
)
#: A line of ``xp``: an address, and what is there, in words of eight bytes.
_WORDS = re.compile(r"^[0-9a-f]+: ((?:0x[0-9a-f]{16} ?)+)\s*$")
#: What it says when there is no memory any more: the guest has changed its map since.
_NONE = "Cannot access memory"


@dataclass(frozen=True)
class _Range:
    """Guest memory, from a first address to a last one, and where that is in its block."""

    first: int
    last: int
    block: str
    offset: int


def read(qemu: Qemu, blocks: Sequence[RamBlock]) -> list[RamPage]:
    """Return those pages of a QEMU with those RAM blocks; none where there is no such memory.

    Raises CannotTellError for what is not understood.
    """
    names = {block.name for block in blocks}
    ranges = [one for one in _ranges(devices.hmp(qemu, "info mtree -f")) if one.block in names]
    found = []
    for address in dict.fromkeys([*_ROMS, *_rings(qemu)]):
        for one in ranges:
            if one.first <= address and address + _PAGE - 1 <= one.last:
                text = devices.hmp(qemu, f"xp /{_PAGE // 8}xg {address:#x}")
                if _NONE not in text:
                    found.append(RamPage(one.block, one.offset + address - one.first, _bytes(text)))
                break
    return found


def _rings(qemu: Qemu) -> Iterator[int]:
    """Yield the addresses of the pages with the indices of virtio's rings.

    It can be asked since QEMU 7.2, and a device's first queue that is none is refused.
    """
    for device in _asked(qemu, "x-query-virtio") or ():
        for queue in itertools.count():
            where = {"path": device["path"], "queue": queue}
            told = _asked(qemu, "x-query-virtio-queue-status", where)
            if not told:
                break
            for ring in ("vring-avail", "vring-used"):
                if told[ring]:
                    yield (told[ring] + _INDEX) // _PAGE * _PAGE


def _asked(qemu: Qemu, command: str, arguments: Mapping[str, Any] | None = None) -> Any:
    """Return the answer, or None where there is none."""
    try:
        return qemu.monitor.execute(command, arguments)
    except QmpError:
        return None


def _ranges(text: str) -> Iterator[_Range]:
    """Yield each range of memory that the processors see."""
    for view in text.split(_VIEW):
        if _MEMORY not in view:
            continue
        for line in view.splitlines():
            if told := _RANGE.match(line):
                first, last, offset = (
                    int(told[part] or "0", 16) for part in ("first", "last", "offset")
                )
                yield _Range(first, last, told["name"], offset)


def _bytes(text: str) -> bytes:
    """Return what the answer to ``xp`` says, as it is in memory."""
    told = [_WORDS.match(line) for line in text.splitlines() if line.strip()]
    words = [word for line in told if line for word in line[1].split()]
    if not all(told) or len(words) * 8 != _PAGE:
        raise CannotTellError(f"QEMU tells what is in memory in an unknown way: {text[:80]!r}")
    return b"".join(int(word, 16).to_bytes(8, "little") for word in words)
