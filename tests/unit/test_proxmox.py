# SPDX-License-Identifier: GPL-2.0-or-later
"""What Proxmox VE keeps of a guest."""

from __future__ import annotations

import fcntl
import os
import subprocess
from pathlib import Path

import pytest

from lab import managers
from lab.base.errors import PreconditionError, UsageError
from lab.managers import proxmox
from lab.managers.journal import Guest
from lab.managers.proxmox import Proxmox

CONFIGURATION = "cores: 2\n{}\nname: a\n\n[before]\nlock: snapshot\n"


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("_RUN", "_LOCKS", "_CONFIGURATIONS"):
        (tmp_path / name).mkdir()
        monkeypatch.setattr(proxmox, name, tmp_path / name)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    return tmp_path


def guest(pid: int) -> Guest:
    where = Path("/nowhere")
    return Guest(name="100", identity="", pid=pid, monitor=where, emulator=where)


def test_who_is_meant(node: Path) -> None:
    manager = managers.named("proxmox")
    assert isinstance(manager, Proxmox)
    for name, said in (("web1", "have numbers"), ("100", "does not run")):
        with pytest.raises(UsageError, match=said):
            manager.find([name])
    with subprocess.Popen(["true"]) as gone:
        pass
    (node / "_RUN/100.pid").write_text(f"{gone.pid}\n")
    with pytest.raises(UsageError, match="does not run"):
        manager.find(["100"])
    assert not manager.settled(guest(gone.pid))
    (node / "_RUN/100.pid").write_text(f"{os.getpid()}\n")
    assert manager.settled(guest(gone.pid))


@pytest.mark.parametrize(("line", "said"), [("", ""), ("lock: backup", "backup"), ("#lock: x", "")])
def test_a_locked_configuration(node: Path, line: str, said: str) -> None:
    (node / "_CONFIGURATIONS/100.conf").write_text(CONFIGURATION.format(line))
    assert proxmox._lock_of("100") == said


def test_a_guest_that_is_being_worked_at(node: Path) -> None:
    with (node / "_LOCKS/lock-100.conf").open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(PreconditionError, match="at work"), proxmox._locked([guest(1)]):
            pass
    with (
        proxmox._locked([guest(1)]),
        (node / "_LOCKS/lock-100.conf").open("a") as other,
        pytest.raises(BlockingIOError),
    ):
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
