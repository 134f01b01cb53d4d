# SPDX-License-Identifier: GPL-2.0-or-later
"""The journal of a live upgrade on disk, and who is kept from a QEMU meanwhile."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from fakes import made_entry

from lab.base import files, identity, layout
from lab.base.errors import CannotTellError, PreconditionError, UsageError
from lab.base.identity import Who
from lab.live import exclusion, journal
from lab.live.exclusion import BusyError
from lab.live.journal import LiveStep, Owner, Resource

pytestmark = pytest.mark.usefixtures("state")


@pytest.fixture
def other() -> Iterator[Who]:
    """Another process."""
    with subprocess.Popen(["sleep", "100"]) as child:
        yield Who.of(child.pid)
        child.kill()


@contextmanager
def lab(code: str, *words: str) -> Iterator[subprocess.Popen[str]]:
    """Another lab, which has printed a line; it is killed when the block is left."""
    argv = [sys.executable, "-c", code, *words]
    with subprocess.Popen(argv, cwd=layout.CHECKOUT, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout
        child.stdout.readline()
        try:
            yield child
        finally:
            child.kill()


BEGIN = """
import sys, time
sys.path.insert(0, "tests/unit")
from fakes import made_entry
from lab.base.identity import Who
from lab.live import journal
with journal.begun(made_entry(old=Who.of(int(sys.argv[1])))) as book:
    book.write(journal.LiveStep.MOVING)
    print(flush=True)
    time.sleep(100)
"""


def paths() -> list[str]:
    return sorted(path.name for path in journal.directory().iterdir())


def test_each_step_is_there_before_it_is_done(other: Who) -> None:
    entry = made_entry(old=other, resources=(Resource(kind="file", name="/q", facts={"inode": 1}),))
    path = journal.directory() / f"{entry.name}.json"
    with journal.begun(entry) as book:
        assert journal.read(path) == entry
        assert path.stat().st_mode & 0o777 == 0o600
        for step in LiveStep:
            book.write(step, runs=Owner.EITHER)
            assert journal.read(path) == entry.model_copy(update={"step": step, "runs": "either"})
        assert len(paths()) == 2  # it and its lock
        book.finish()
    assert paths() == []


def test_what_is_written_is_on_disk_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file before it has its name, the directory after it has."""
    done: list[str] = []
    sync, replace = os.fsync, Path.replace

    def noted(descriptor: int) -> None:
        done.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        sync(descriptor)

    def renamed(path: Path, target: Path) -> Path:
        done.append(f"{path.name} > {target.name}")
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", noted)
    monkeypatch.setattr(Path, "replace", renamed)
    files.write_durably(tmp_path / "j", "one")
    assert done == [".j.new", ".j.new > j", tmp_path.name]
    assert (tmp_path / "j").read_text() == "one"


def test_a_lab_that_was_killed_leaves_its_journal_and_nobody_begins_again(other: Who) -> None:
    with lab(BEGIN, str(other.pid)) as child:
        child.kill()
        child.wait()
    (entry,) = journal.left().entries
    assert (entry.old, entry.step, entry.lab.pid) == (other, LiveStep.MOVING, child.pid)
    hint = f"./pageflip recover --pid {other.pid}"
    with pytest.raises(PreconditionError, match="as far as: moving") as refused:
        journal.check_free(other)
    assert refused.value.hint == hint
    with pytest.raises(PreconditionError, match="was not finished"):
        journal.begun(made_entry(old=other)).__enter__()
    assert journal.left().entries == (entry,)
    with journal.reopened(entry) as book:
        book.finish()
    with pytest.raises(CannotTellError, match="meanwhile"), journal.reopened(entry):
        pass
    assert paths() == []
    journal.check_free(other)


def test_the_qemu_that_it_moves_to_is_not_begun_either(other: Who) -> None:
    with journal.begun(made_entry()) as book:
        book.write(LiveStep.SETTLING, new=other)
        with pytest.raises(BusyError):
            journal.check_free(other)
    with pytest.raises(PreconditionError, match="was not finished"):
        journal.check_free(other)


def test_a_number_that_came_back_is_another_process(other: Who) -> None:
    before = other.model_copy(update={"start": other.start - 1})
    assert other.there
    assert not before.there
    with journal.begun(made_entry(old=before)):
        pass
    journal.check_finished(other)
    before.send(signal.SIGKILL)
    assert other.there
    other.send(signal.SIGKILL)
    os.waitid(os.P_PID, other.pid, os.WEXITED | os.WNOWAIT)
    assert not other.there  # although it is still to be waited for
    with pytest.raises(UsageError, match="there is no process"):
        Who.of(2**22 + 1)


def test_two_labs_exclude_each_other_whosever_they_are(other: Who, tmp_path: Path) -> None:
    """By the process itself: they have no directory in common."""
    with lab(BEGIN, str(other.pid)) as child:
        os.environ["XDG_STATE_HOME"] = str(tmp_path / "elsewhere")  # the fixture puts it back
        with pytest.raises(BusyError, match=f"another lab, process {child.pid}, is at work"):
            journal.check_free(other)
        with pytest.raises(BusyError), journal.begun(made_entry(old=other)):
            pass
        child.send_signal(signal.SIGKILL)
        child.wait()
        with journal.begun(made_entry(old=other)) as book:  # the kernel has freed it
            book.finish()


def test_the_lock_holds_when_the_old_qemu_has_ended(other: Who) -> None:
    with lab(BEGIN, str(other.pid)):
        other.send(signal.SIGKILL)
        os.waitpid(other.pid, 0)
        (entry,) = journal.left().entries
        with pytest.raises(BusyError), journal.reopened(entry):
            pass
    with journal.reopened(entry) as book:
        book.finish()
    assert paths() == []


def test_a_look_does_not_keep_others_from_looking(other: Who, tmp_path: Path) -> None:
    with exclusion.seen(other):
        journal.check_free(other)
        with pytest.raises(BusyError), exclusion.alone(other, tmp_path / "l"):
            pass


def test_a_journal_that_cannot_be_kept_means_that_nothing_begins(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "/proc/nowhere")
    with pytest.raises(PreconditionError, match="cannot be kept in /proc/nowhere") as refused:
        journal.begun(made_entry()).__enter__()
    assert "XDG_STATE_HOME" in refused.value.hint


def test_a_step_that_cannot_be_written_down_does_not_stop_an_upgrade(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def full(_path: Path, _text: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with journal.begun(made_entry()) as book:
        monkeypatch.setattr(journal, "write_durably", full)
        book.write(LiveStep.MOVING)
        assert book.entry.step is LiveStep.MOVING
        assert journal.left().entries[0].step is LiveStep.PLANNED
        book.finish()
    assert "No space left on device" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"version": 2}, "version"),
        ({"version": 2, "more": 1}, "version"),
        ({"old": {"pid": 1}}, "old.start"),
        ({"step": "dancing"}, "step"),
    ],
)
def test_what_is_no_journal_of_ours_is_not_guessed_at(
    change: dict[str, object], why: str, other: Who
) -> None:
    with journal.begun(made_entry(old=other)):
        pass
    path = journal.directory() / f"{made_entry(old=other).name}.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    found = journal.left()
    assert found.entries == ()
    assert f"{path}: is no journal that this version reads: {why}" in found.damaged[0].message
    path.write_text("{" * (1 << 21))
    assert journal.left().damaged


def test_what_a_lab_left_that_had_no_journal_yet_goes(other: Who) -> None:
    with journal.begun(made_entry(old=other)):
        pass
    place = journal.directory()
    (place / "7-7.lock").touch()
    (place / ".7-7.json.new").touch()
    (place / f"{made_entry(old=other).name}.lock").touch()
    with lab(BEGIN, str(os.getpid())):
        kept = set(paths()) - {"7-7.lock", ".7-7.json.new"}
        journal.sweep()
        assert set(paths()) == kept


def test_who_waits_for_the_guest_is_found_by_its_mark(tmp_path: Path) -> None:
    """By its command line or its environment, and not because somebody reads a file of it."""
    mark, variable = str(tmp_path / "run"), f"X={tmp_path / 'run'}"
    code = "import time; print(flush=True); time.sleep(100)"
    with (
        lab(code, "-incoming", f"localhost:{mark}/migrate") as first,
        lab(code, f"{mark}/qmp.log"),
        lab(code, "-incoming", "defer"),
        subprocess.Popen(
            ["cat"],
            env={**os.environ, "X": mark},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
        ) as second,
    ):
        try:
            # Popen returns from the midst of execve(2), before there is an environment to be read.
            assert second.stdin
            assert second.stdout
            second.stdin.write(b"\n")
            second.stdout.readline()
            found = {one.pid for one in identity.marked(mark, variable)}
            assert found == {first.pid, second.pid}
        finally:
            second.kill()


def test_names_that_are_no_utf8(other: Who) -> None:
    entry = made_entry(old=other).model_copy(update={"monitor": "/run/q\udcff"})
    with journal.begun(entry) as book:
        assert journal.read(journal.directory() / f"{entry.name}.json") == entry
        book.finish()


def test_what_is_no_json(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b"\xff")
    with pytest.raises(CannotTellError, match="it is no JSON"):
        journal.read(tmp_path / "a.json")
