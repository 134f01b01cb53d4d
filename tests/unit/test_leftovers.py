# SPDX-License-Identifier: GPL-2.0-or-later
"""What a killed run left behind is removed by the next one; what is in use is not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lab.base import layout
from lab.base.layout import abandoned, held, socket_directory


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return tmp_path


def old(directory: Path) -> None:
    os.utime(directory, (1, 1))


def test_a_killed_runs_directory_goes(base: Path) -> None:
    code = (
        "import os, signal; from lab.base.layout import socket_directory\n"
        "with socket_directory() as d:\n"
        "    (d / 'old').mkdir(); print(d, flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=layout.CHECKOUT,
        check=False,
    )
    left = Path(done.stdout.strip())
    assert left.parent == base
    assert (left / "old").exists()
    old(left)
    with socket_directory() as fresh:
        assert fresh.exists()
        assert not left.exists()
    assert list(base.iterdir()) == []


def test_a_live_or_young_directory_stays(base: Path) -> None:
    live, young = base / "pageflip-run-live", base / "pageflip-run-young"
    live.mkdir()
    young.mkdir()
    old(live)
    with held(live):
        assert list(abandoned(base, "pageflip-run-*")) == []
    assert list(abandoned(base, "pageflip-run-*")) == [live]
