# SPDX-License-Identifier: GPL-2.0-or-later
"""What the user sees while waiting, with and without a terminal."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from lab.base import progress


@pytest.fixture(params=[True, False], ids=["terminal", "plain"])
def screen(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Console:
    made = Console(
        file=io.StringIO(), force_terminal=request.param, width=100, highlight=False, no_color=True
    )
    monkeypatch.setattr(progress, "console", made)
    return made


def said(screen: Console) -> str:
    assert isinstance(screen.file, io.StringIO)
    return screen.file.getvalue()


def test_a_step_alone_is_always_told(screen: Console) -> None:
    with progress.step("boil") as tick:
        tick(3, 4)
    assert "boil" in said(screen)
    assert "3/4" in said(screen)


def test_steps_within_are_told_on_a_terminal_only_and_go_when_they_end(screen: Console) -> None:
    with progress.overall("dinner") as told:
        told(2, 5, "soon")
        with progress.step("boil") as tick:
            tick(3, 4)
        seen = said(screen)
        with progress.step("fry"):
            pass
    assert ("boil" in said(screen)) is screen.is_terminal
    assert ("2/5  soon" in said(screen)) is screen.is_terminal
    assert "boil" not in said(screen)[len(seen) :]


def test_an_overall_display_within_another_goes_when_it_ends(screen: Console) -> None:
    with progress.overall("week"):
        with progress.overall("dinner") as told:
            told(2, 5, "soon")
        seen = said(screen)
        with progress.step("fry"):
            pass
    assert "dinner" not in said(screen)[len(seen) :]


def test_the_display_ends_with_its_block(screen: Console) -> None:
    with pytest.raises(KeyError), progress.overall("dinner"), progress.step("boil"):
        raise KeyError
    with progress.step("fry"):
        pass
    assert "fry" in said(screen)


def test_what_is_noted_once_is_noted_once(screen: Console) -> None:
    progress.note_once.cache_clear()
    progress.note_once("no salt")
    progress.note_once("no salt")
    assert said(screen).count("no salt") == 1
