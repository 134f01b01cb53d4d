# SPDX-License-Identifier: GPL-2.0-or-later
"""Transparent huge pages, switched off for the lab and what it starts (``--pages 4k``)."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager

from lab.base.errors import PreconditionError

_PR_SET_THP_DISABLE, _PR_GET_THP_DISABLE = 41, 42  # linux/prctl.h, prctl(2)


@contextmanager
def disabled(*, wanted: bool) -> Iterator[None]:
    """Have none for as long as the block lasts: a process inherits that, and keeps it in exec().

    Raises PreconditionError where the kernel has no such switch.
    """
    before = _prctl(_PR_GET_THP_DISABLE, 0) if wanted else 0
    if wanted:
        _prctl(_PR_SET_THP_DISABLE, 1)
    try:
        yield
    finally:
        if wanted:
            _prctl(_PR_SET_THP_DISABLE, before)


def _prctl(what: int, value: int) -> int:
    told: int = ctypes.CDLL(None, use_errno=True).prctl(
        what, *map(ctypes.c_ulong, (value, 0, 0, 0))
    )
    if told < 0:
        why = os.strerror(ctypes.get_errno())
        raise PreconditionError(
            f"transparent huge pages cannot be switched off here: {why}",
            hint="leave out --pages 4k",
        )
    return told
