# SPDX-License-Identifier: GPL-2.0-or-later
"""The Vagrantfile, as far as it can be looked at without a box."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from lab.base.layout import CHECKOUT

FILE = CHECKOUT / "Vagrantfile"


@pytest.mark.skipif(shutil.which("vagrant") is None, reason="vagrant is not here")
def test_vagrant_takes_it(tmp_path: Path) -> None:
    shutil.copyfile(FILE, tmp_path / "Vagrantfile")
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    argv = ["vagrant", "validate", "--ignore-provider"]
    done = subprocess.run(
        argv, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_machine_is_set_up_by_commands_that_there_are() -> None:
    found = re.search(r"<<~SCRIPT\n(.*?)\n  SCRIPT", FILE.read_text(), re.DOTALL)
    assert found
    lines = [line.strip() for line in found[1].splitlines()]
    assert lines[-1] == "sg kvm -c './pageflip doctor'"
    for line in lines:
        assert line.split()[0] in {"set", "sudo", "cd", "./pageflip", "sg"}


def test_what_is_made_for_this_host_is_not_copied() -> None:
    # tests/hosts/provision reads the line by these words.
    found = re.search(r"rsync__exclude: \[(.*)\]", FILE.read_text())
    assert found
    ignored = (CHECKOUT / ".gitignore").read_text().splitlines()
    excluded = {word.strip().strip('"') for word in found[1].split(",")}
    assert {".venv/", "build/", "out/"} == excluded
    assert {f"/{one}" for one in excluded} <= set(ignored)
