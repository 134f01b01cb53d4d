# SPDX-License-Identifier: GPL-2.0-or-later
"""Numbers as users write them."""

from __future__ import annotations

import re


def whole(text: str) -> int | None:
    """Return a whole number that is written in ASCII digits, or None for what is none.

    str.isdigit() is true of "²", and int() refuses that, and thousands of digits as well.
    """
    return int(text) if re.fullmatch(r"[0-9]{1,18}", text) else None
