# SPDX-License-Identifier: GPL-2.0-or-later
"""Errors become exit codes in one place, and say what to do."""

from __future__ import annotations

import errno
import os
import pstats
import signal
import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest

from lab import cli
from lab.base.errors import CannotTellError, UsageError


@pytest.fixture
def verb(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], int]], int]:
    """Run the command line with a verb of our own."""

    def call(action: Callable[[], int], *options: str) -> int:
        module = types.ModuleType("lab.fake_verb")
        module.add_arguments = lambda _parser: None  # type: ignore[attr-defined]
        module.run = lambda _options: action()  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "lab.fake_verb", module)
        monkeypatch.setitem(cli.VERBS, "fake", ("lab.fake_verb", "fake"))
        return cli.main([*options, "fake"])

    return call


def raises(error: BaseException) -> Callable[[], int]:
    def action() -> int:
        raise error

    return action


@pytest.mark.parametrize(
    ("error", "code", "word"),
    [
        (UsageError("no such guest", hint="one of: tiny"), 2, "one of: tiny"),
        (CannotTellError("no compiler"), 3, "no compiler"),
        (ZeroDivisionError("oops"), 3, "bug in the lab"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_exit_codes(
    verb: Callable[[Callable[[], int]], int],
    error: BaseException,
    code: int,
    word: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert verb(raises(error)) == code
    captured = capsys.readouterr()
    assert word in captured.err
    assert captured.out == ""


def test_a_verdict_is_passed_on(verb: Callable[[Callable[[], int]], int]) -> None:
    assert verb(lambda: 1) == 1


def test_sigterm_unwinds_like_ctrl_c(verb: Callable[[Callable[[], int]], int]) -> None:
    cleaned = []

    def action() -> int:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            signal.pause()
        finally:
            cleaned.append(True)
        return 0

    assert verb(action) == 130
    assert cleaned


@pytest.mark.parametrize("words", [[], ["nonsense"], ["upgrade", "--accel", "abacus"]])
def test_wrong_usage_is_2(words: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(words)
    assert caught.value.code == 2


def test_a_profile_is_written_whatever_becomes_of_the_verb(
    verb: Callable[..., int], tmp_path: Path
) -> None:
    for action, code in ((lambda: 1, 1), (raises(CannotTellError("no")), 3)):
        profile = tmp_path / f"profile-{code}"
        assert verb(action, "--profile", str(profile)) == code
        assert pstats.Stats(str(profile)).total_calls > 0  # type: ignore[attr-defined]


def test_a_profile_that_cannot_be_written(
    verb: Callable[..., int], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert verb(lambda: 0, "--profile", str(tmp_path / "nowhere" / "x")) == 2
    assert "cannot write" in capfd.readouterr().err


def test_a_full_disk_is_no_bug(verb: Callable[..., int], capfd: pytest.CaptureFixture[str]) -> None:
    full = OSError(errno.ENOSPC, "No space left on device", "/run/x")
    assert verb(raises(full)) == 3
    said = capfd.readouterr().err
    assert "the disk is full" in said
    assert "bug" not in said
    assert verb(raises(OSError(errno.EIO, "I/O error"))) == 3
    assert "bug in the lab" in capfd.readouterr().err
