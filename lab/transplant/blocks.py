# SPDX-License-Identifier: GPL-2.0-or-later
"""RAM blocks, as a QEMU's monitor lists them (``info ramblock``).  Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass

from lab.base.errors import CannotTellError

#: A line: name, page size, offset, used and total length, and since QEMU 8.2 the address.
_LINE = re.compile(
    r"^\s*(?P<name>\S(?:.*\S)?)\s+\d+ [KMG]?i?B\s+0x(?P<offset>[0-9a-f]+)\s+0x(?P<used>[0-9a-f]+)"
    r"\s+0x(?P<most>[0-9a-f]+)(?:\s+0x(?P<address>[0-9a-f]+))?(?:\s+\w+)?\s*$"
)
_HEADER = "Block Name"


@dataclass(frozen=True)
class RamBlock:
    """A RAM block: its offset in ``ram_addr_t``, and its lengths in bytes."""

    name: str
    offset: int
    used: int
    most: int
    #: Where it is in the QEMU; 0 when the monitor does not say.
    address: int = 0


def parse(text: str) -> list[RamBlock]:
    """Read the answer to ``info ramblock``; raise CannotTellError for what is not understood."""
    header, *lines = [line for line in text.splitlines() if line.strip()] or [""]
    found = [_LINE.match(line) for line in lines]
    if _HEADER not in header or not found or not all(found):
        raise CannotTellError(f"QEMU's RAM blocks are listed in an unknown way: {text.strip()!r}")
    return [
        RamBlock(
            line["name"],
            *(int(line[part] or "0", 16) for part in ("offset", "used", "most", "address")),
        )
        for line in found
        if line
    ]
