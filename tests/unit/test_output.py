# SPDX-License-Identifier: GPL-2.0-or-later
"""What a QEMU says where others can read it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from lab.live import output
from lab.live.output import Output


def test_what_is_said_from_now_on(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("before\n", encoding="utf-8")
    with log.open("ab") as file, subprocess.Popen(["sleep", "100"], stderr=file) as child:
        try:
            for said in (Output(child.pid), Output(child.pid, tmp_path / "another")):
                file.write(b"one\ntwo\n\nthree\nfour\n")
                file.flush()
                assert said.said() == "two; three; four"
        finally:
            child.kill()


def test_what_goes_through_a_pipe_is_in_the_managers_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "log"
    with subprocess.Popen(["sleep", "100"], stderr=subprocess.PIPE) as child:
        try:
            said = Output(child.pid, log)
            log.write_text("one\n", encoding="utf-8")
            assert said.said() == "one"
            monkeypatch.setattr(output, "_LOGGED_S", 0.01)
            assert Output(child.pid).said() == Output(child.pid, log).said() == ""
        finally:
            child.kill()
