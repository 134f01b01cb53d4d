# SPDX-License-Identifier: GPL-2.0-or-later
"""The verb `recover` where no QEMU is left to ask; with QEMUs: tests/avocado/test_recover.py."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from fakes import made_entry

from lab import cli
from lab.base.identity import Who
from lab.live import journal, recover
from lab.live.aside import named
from lab.live.journal import LiveStep, Owner, Resource
from lab.verbs import doctor

pytestmark = pytest.mark.usefixtures("state")


@pytest.fixture
def other() -> Iterator[Who]:
    """Another process, which is no QEMU."""
    with subprocess.Popen(["sleep", "100"]) as child:
        yield Who.of(child.pid)
        child.kill()


def gone() -> Who:
    """Return a process that has ended."""
    with subprocess.Popen(["sleep", "100"]) as child:
        who = Who.of(child.pid)
        child.kill()
    return who


def leave(**more: Any) -> None:
    """Leave an upgrade half done, in the middle of the move."""
    with journal.begun(made_entry(**more)) as book:
        book.write(LiveStep.MOVING, runs=Owner.EITHER)


def test_there_is_nothing_to_be_done(capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["recover"]) == 0
    assert cli.main(["recover", "--pid", "1", "--json"]) == 0
    told = capfd.readouterr()
    assert told.err.count("no live upgrade has been left half done") == 2
    assert json.loads(told.out) == []
    assert cli.main(["recover", "--pid", "/run/qmp"]) == 2
    assert "is no process id" in capfd.readouterr().err


def test_nobody_has_the_guest_any_more(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Both have ended: what lies about is put away, and the exit code says that it is lost."""
    pid, mark = tmp_path / "pid", tmp_path / "mark"
    pid.write_text("1")
    mark.mkdir()
    (file,) = named([pid])
    leave(old=gone(), new=gone(), resources=(file.resource(),), mark=str(mark))
    file.put()
    pid.write_text("2")
    assert cli.main(["recover", "--json"]) == 1
    told = capfd.readouterr()
    (one,) = json.loads(told.out)
    assert (one["runs"], one["did"]) == ("nobody", [])
    assert "nobody has its guest any more" in told.err
    assert list(tmp_path.glob("pid*")) == [pid]
    assert not mark.exists()
    assert journal.left().entries == ()
    assert cli.main(["recover"]) == 0


def test_who_does_not_answer_is_left_alone(
    other: Who, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(recover, "_SILENCE_S", 0.2)
    monkeypatch.setattr(recover, "_ANSWER_S", 0.1)
    leave(old=other, monitor="/nowhere/qmp")
    assert cli.main(["recover", "--pid", str(other.pid)]) == 3
    said = " ".join(capfd.readouterr().err.split())
    assert f"the old QEMU process {other.pid} does not answer" in said
    assert f"./pageflip recover --pid {other.pid}" in said
    assert other.there
    assert len(journal.left().entries) == 1


def test_a_qemu_without_a_guest_never_gets_one(
    other: Who, capfd: pytest.CaptureFixture[str]
) -> None:
    """The one of a rehearsal has the devices' state alone, whatever became of the old one."""
    leave(old=gone(), new=other, mechanism="device-load")
    assert cli.main(["recover"]) == 1
    assert "nobody has its guest any more" in capfd.readouterr().err
    assert not other.there


def test_a_resource_that_nobody_knows_is_not_passed_over(
    other: Who, capfd: pytest.CaptureFixture[str]
) -> None:
    leave(old=other, resources=(Resource(kind="teapot", name="t"),))
    assert cli.main(["recover"]) == 3
    assert "that this version does not know: teapot" in " ".join(capfd.readouterr().err.split())
    assert len(journal.left().entries) == 1


def test_one_that_cannot_be_read_does_not_keep_the_others(
    other: Who, capfd: pytest.CaptureFixture[str]
) -> None:
    leave(old=gone())
    (journal.directory() / "1-1.json").write_text("{")
    assert cli.main(["recover"]) == 1
    said = " ".join(capfd.readouterr().err.split())
    assert "nobody has its guest" in said
    assert "1-1.json: is no journal that this version reads" in said
    assert cli.main(["recover"]) == 3
    assert cli.main(["recover", "--pid", str(other.pid)]) == 0


def test_doctor_lists_what_is_left(other: Who) -> None:
    assert list(doctor.unfinished(cast("Any", None))) == []
    leave(old=other)
    (found,) = doctor.unfinished(cast("Any", None))
    assert (found.name, found.state) == ("live upgrade", "note")
    assert f"process {other.pid}, begun at" in found.text
    assert found.to_do.endswith(f"./pageflip recover --pid {other.pid}")


def test_the_lab_that_is_at_work_is_not_disturbed(capfd: pytest.CaptureFixture[str]) -> None:
    with journal.begun(made_entry()):
        assert cli.main(["recover"]) == 3
    said = " ".join(capfd.readouterr().err.split())
    assert f"another lab, process {os.getpid()}, is at work" in said
