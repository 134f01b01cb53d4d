# SPDX-License-Identifier: GPL-2.0-or-later
"""The suites as meson sees them; nothing is built."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from lab.base.layout import CHECKOUT

#: What meson gives a test that asks for nothing (s).
_DEFAULT_S = 30
_MESON = (sys.executable, "-m", "mesonbuild.mesonmain")
_NO_QEMU = {"unit", "page", "patches"}
_WITH_QEMU = {"avocado-quick", "avocado-medium", "avocado-thorough", "bench-smoke"}


def introspect(build: Path, *options: str, what: str = "tests") -> dict[str, Any]:
    setup = subprocess.run(
        [*_MESON, "setup", build, CHECKOUT, *options], capture_output=True, text=True, check=False
    )
    assert setup.returncode == 0, setup.stdout + setup.stderr
    said = subprocess.run(
        [*_MESON, "introspect", f"--{what}", build], capture_output=True, text=True, check=True
    )
    return {test["name"]: test for test in json.loads(said.stdout)}


def test_each_suite_has_the_time_it_takes(tmp_path: Path) -> None:
    found = introspect(tmp_path)
    assert found.keys() == _NO_QEMU | _WITH_QEMU
    for name, test in found.items():
        assert test["suite"] == [f"pageflip:{name}"]
        assert test["timeout"] > _DEFAULT_S
        assert bool(test["depends"]) == (name in _WITH_QEMU)


def test_an_archive_can_be_tried_without_a_qemu(tmp_path: Path) -> None:
    # meson dist tries it with the options that it was called with.
    found = introspect(tmp_path, "-Dqemu=false", "-Dguests=false")
    assert found.keys() == _NO_QEMU


def test_the_helper_has_all_of_its_sources(tmp_path: Path) -> None:
    (helper,) = introspect(tmp_path, what="targets")["transplant"]["target_sources"][:1]
    own = {str(source) for source in (CHECKOUT / "transplant").glob("*.c")}
    assert set(helper["sources"]) == own
