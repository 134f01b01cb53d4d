# SPDX-License-Identifier: GPL-2.0-or-later
"""Transparent huge pages are switched off for what the lab starts, and on again."""

from __future__ import annotations

import subprocess
import sys

import pytest

from lab.base.errors import PreconditionError
from lab.host import thp

_ASK = "import ctypes; print(ctypes.CDLL(None).prctl(42, 0, 0, 0, 0))"


def _child() -> int:
    return int(subprocess.run([sys.executable, "-c", _ASK], capture_output=True, check=True).stdout)


def test_what_is_started_has_none() -> None:
    before = _child()
    with thp.disabled(wanted=True):
        assert _child() == 1
        with thp.disabled(wanted=False):  # somebody else's upgrade, in the same lab
            assert _child() == 1
    assert _child() == before


def test_a_kernel_without_the_switch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(thp, "_PR_GET_THP_DISABLE", 10**6)
    with pytest.raises(PreconditionError, match="switched off here"), thp.disabled(wanted=True):
        pass
