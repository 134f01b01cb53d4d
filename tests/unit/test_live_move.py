# SPDX-License-Identifier: GPL-2.0-or-later
"""The upgrade of QEMUs of somebody else's: which are begun, and what is asked of whom."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from lab import cli
from lab.base import process
from lab.base.errors import PreconditionError, UsageError
from lab.base.layout import Layout
from lab.live import look, move, planning, start
from lab.live.move import Mover
from lab.live.moved import Moved
from lab.live.planning import Plan
from lab.live.start import CommandLine
from lab.model import Outcome
from lab.verbs import upgrade
from lab.vm.qemu import Qemu


def moved(pid: int, outcome: Outcome = Outcome.UPGRADED, failure: str = "") -> Moved:
    return Moved(
        pid=pid, new_pid=pid + 1, outcome=outcome, failure=failure, mechanism="flip",
        old_version="1", new_version="2", monitor="/run/q", pause_ms=5.0, total_ms=9.0,
        memory_ratio=None, run_directory="/out",
    )  # fmt: skip


class Movers(Mover):
    """Moves nothing; the second one does not move, or cannot be talked to."""

    def __init__(self, second: Outcome | PreconditionError) -> None:
        super().__init__(cast("Layout", None))
        self.second = second
        self.begun: list[int] = []

    def one(self, plan: Plan) -> Moved:
        number = cast("int", plan)
        self.begun.append(number)
        if number != 2:
            return moved(number)
        if isinstance(self.second, PreconditionError):
            raise self.second
        return moved(number, self.second, "so it is")


PLANS = cast("list[Plan]", [1, 2, 3])


def test_the_one_that_does_not_move_is_the_last(capsys: pytest.CaptureFixture[str]) -> None:
    mover = Movers(Outcome.ROLLED_BACK)
    assert [one.pid for one in mover.all(PLANS, 1)] == [1, 2]
    assert mover.begun == [1, 2]
    said = capsys.readouterr().err
    assert "process 1, QEMU 1, is process 2, QEMU 2, by flip, stood still for 5.0 ms" in said
    assert "process 2 was not upgraded; its guest keeps running there" in said
    mover = Movers(Outcome.UPGRADED)
    assert [one.pid for one in mover.all(PLANS, 2)] == [1, 2, 3]


def test_who_cannot_be_talked_to_is_the_last() -> None:
    mover = Movers(PreconditionError("no answer"))
    with pytest.raises(PreconditionError):
        mover.all(PLANS, 1)
    assert mover.begun == [1, 2]


@pytest.mark.parametrize("stopped", [False, True])
def test_what_is_interrupted_while_it_is_rehearsed_is_not_begun(
    monkeypatch: pytest.MonkeyPatch, stopped: bool
) -> None:
    mover = Mover(cast("Layout", None))
    begun: list[str] = []

    def one(plan: str) -> Moved:
        begun.append(plan)
        if stopped:
            mover._stop.set()  # Ctrl-C, or another guest that did not move
        return moved(1, Outcome.REHEARSED)

    monkeypatch.setattr(mover, "_one", one)
    monkeypatch.setattr(planning, "rehearsal", lambda plan: f"rehearse {plan}")
    mover.one(cast("Plan", "it"))
    assert begun == ["rehearse it", "it"][: 1 if stopped else 2]


@pytest.mark.parametrize("outcome", [Outcome.LOST, Outcome.DOUBLED])
def test_a_loss_is_called_one(outcome: Outcome, capsys: pytest.CaptureFixture[str]) -> None:
    Movers(outcome).all(PLANS, 1)
    said = capsys.readouterr().err
    assert ("BOTH run the guest" if outcome is Outcome.DOUBLED else "nobody runs its guest") in said


def given(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    upgrade.add_arguments(parser)
    return parser.parse_args(["--pid", "1", *words])


def test_options_of_the_labs_own_guests_do_not_fit() -> None:
    upgrade._check_options(given("--new", "/q", "--mechanism", "gift", "--json", "--dry-run"))
    with pytest.raises(UsageError, match="--ram is for guests of the lab's own"):
        upgrade._check_options(given("--ram", "1G"))
    with pytest.raises(UsageError, match="one is the fewest"):
        upgrade._check_options(given("--at-once", "0"))
    with pytest.raises(UsageError, match="one millisecond is the least"):
        upgrade._check_options(given("--patience", "0"))


def test_a_command_line_with_where_the_guest_comes_from(tmp_path: Path) -> None:
    command = CommandLine(("/q", "-m", "1G"), tmp_path, tmp_path / "q", (), ("defer", "x"))
    assert command.argv() == ["/q", "-m", "1G", "-incoming", "defer", "-incoming", "x"]


def test_the_new_qemu_is_the_same_users(monkeypatch: pytest.MonkeyPatch) -> None:
    assert start.as_user(os.getpid()) == []
    monkeypatch.setattr(start, "owner", lambda _pid: (4711, 4712))
    words = start.as_user(os.getpid(), "--pdeathsig", "KILL")
    assert words[:7] == ["setpriv", "--pdeathsig", "KILL", "--reuid", "4711", "--regid", "4712"]
    assert words[-1] == "--"


def test_new_files_have_the_old_ones_permissions(tmp_path: Path) -> None:
    for umask in (0o27, 0o77):
        made, log = tmp_path / f"{umask}", tmp_path / "log"
        with process.lent(["touch", made], log=log, cwd=tmp_path, umask=umask) as lent:
            assert lent.process.wait(10) == 0
        assert made.stat().st_mode & 0o777 == 0o666 & ~umask
    mine = os.umask(0o35)
    try:
        assert start.umask(os.getpid()) == 0o35
    finally:
        os.umask(mine)


def test_what_is_kept_outlives_the_block(tmp_path: Path) -> None:
    for keep in (True, False):
        with process.lent(["sleep", "60"], log=tmp_path / "log", cwd=tmp_path, umask=0) as lent:
            if keep:
                lent.keep()
        assert (lent.process.poll() is None) is keep
        process.end(lent.process)


class Found:
    """What preflight found of one."""

    pid, state = 7, "running"


def test_why_one_cannot_be_upgraded(monkeypatch: pytest.MonkeyPatch, state: Path) -> None:
    def way(name: str, *reasons: str) -> Any:
        return argparse.Namespace(mechanism=name, reasons=list(reasons))

    seen = argparse.Namespace(ways=[way("flip", "blocked: x"), way("gift")], best="gift")
    monkeypatch.setattr(planning.look, "look", lambda *_: Found())
    monkeypatch.setattr(planning.look, "find", lambda _what: (os.getpid(), Path("/run/q")))
    monkeypatch.setattr(planning.preflight, "examine", lambda *_, **__: seen)
    monkeypatch.setattr(planning.preflight, "successor", lambda *_: None)
    new = cast("Any", argparse.Namespace(path="/new"))
    assert planning.plan("7", new, "auto").mechanism.name == "gift"
    with pytest.raises(PreconditionError, match="cannot be upgraded by flip: blocked: x"):
        planning.plan("7", new, "flip")
    with pytest.raises(UsageError):
        planning.plan("7", new, "walk")
    seen.ways.append(way("cpr-exec"))
    with pytest.raises(PreconditionError, match="for guests of the lab's own"):
        planning.plan("7", new, "cpr-exec")


@pytest.fixture
def running(sockets: Path) -> Iterator[tuple[str, str]]:
    """A process that is called like a QEMU, and its socket."""
    path = str(sockets / "qmp")
    code = (
        "import socket, sys, time; one = socket.socket(socket.AF_UNIX); "
        "one.bind(sys.argv[1]); one.listen(); print(flush=True); time.sleep(100)"
    )
    argv = ["qemu-fake", "-c", code, path, "-qmp", f"unix:{path},server=on"]
    with subprocess.Popen(argv, executable=sys.executable, stdout=subprocess.PIPE) as child:
        try:
            assert child.stdout
            child.stdout.readline()
            yield str(child.pid), path
        finally:
            child.kill()


@pytest.mark.parametrize(
    ("name", "architecture"),
    [
        ("/usr/bin/qemu-system-aarch64", "aarch64"),
        ("qemu-system-x86_64", "x86_64"),
        ("/usr/libexec/qemu-kvm", "x86_64"),
        ("/home/qemu-system-x86_64/qemu-system-aarch64", "aarch64"),
    ],
)
def test_what_a_qemu_emulates_is_in_its_name(name: str, architecture: str) -> None:
    # It says when it is there: before, /proc may still have what started it.
    argv = [name, "-c", "print(flush=True); input()"]
    with subprocess.Popen(
        argv, executable=sys.executable, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout
        child.stdout.readline()
        assert look.emulated_by(child.pid) == architecture


def test_a_process_is_named_once(
    running: tuple[str, str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """By whatever name, and before anything is built or started."""
    monkeypatch.setattr(upgrade.binary, "binary_of", None)
    monkeypatch.setattr(planning, "plan", None)
    pid, socket = running
    for twice in ([pid, pid], [pid, socket], [socket, f"0{pid}"]):
        assert cli.main(["upgrade", "--new", "10.2", "--pid", *twice]) == 2
        said = capfd.readouterr().err
        assert f"--pid {' '.join(twice)}: both are process {pid}" in said
        assert "name each QEMU once" in said


@pytest.mark.parametrize("verb", [["upgrade", "--pid"], ["preflight"]])
@pytest.mark.parametrize("name", ["10.2", "stock:old", "new", "/usr/bin/qemu"])
def test_the_new_qemu_has_the_same_names_everywhere(
    verb: list[str],
    name: str,
    running: tuple[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    def built(_layout: Layout, asked: str, _architecture: str) -> None:
        raise UsageError(f"to be built: {asked}")

    def inspected(path: Path, _release: str = "") -> None:
        raise UsageError(f"to be inspected: {path}")

    monkeypatch.setattr(upgrade.binary.build, "by_name", built)
    monkeypatch.setattr(upgrade.binary, "inspect", inspected)
    assert cli.main([*verb, running[0], "--new", name]) == 2
    expected = "inspected" if "/" in name else "built"
    assert f"pageflip: to be {expected}: {name}\n" in capfd.readouterr().err


@pytest.mark.parametrize("verb", [["upgrade", "--pid"], ["preflight"]])
def test_who_is_not_there_is_told_before_anything_is_built(
    verb: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(upgrade.binary, "binary_of", None)
    assert cli.main([*verb, "999999999", "--new", "10.2"]) == 2
    assert "there is no process 999999999" in capfd.readouterr().err


def test_an_old_qemu_that_does_not_end_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    """By what it was held by when the upgrade began: its number may be another's by now."""
    monkeypatch.setattr(move, "_QUIT_S", 0.05)
    with subprocess.Popen(["sleep", "100"]) as child, subprocess.Popen(["sleep", "100"]) as other:
        old = Qemu("old", cast("Any", None), process.Foreign(child.pid), Path())
        monkeypatch.setattr(Qemu, "pid", other.pid)
        old.connection = cast("Any", argparse.Namespace(execute=lambda _command: None))
        try:
            move._quit(old)
            assert child.wait(10) == -signal.SIGKILL
            assert other.poll() is None
        finally:
            child.kill()
            other.kill()
