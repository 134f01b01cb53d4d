# SPDX-License-Identifier: GPL-2.0-or-later
"""Processors for the guest: with a tuna of our own that only writes down what it is asked."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from lab.base.layout import Layout
from lab.host import pinning
from lab.host.pinning import NOT_PINNED, Pins, pinned

OLD_HELP = "Usage: tuna\\n-m, --move    Move selected entities"
NEW_HELP = "commands: isolate, include, move"

Tuna = Callable[[str], Path]


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    (tmp_path / "cache").mkdir()
    return Layout(tmp_path, tmp_path / "cache", tmp_path / "out")


@pytest.fixture
def irqs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two interrupts of our own."""
    directory = tmp_path / "irq"
    for number in (4, 30):
        (directory / str(number)).mkdir(parents=True)
        (directory / str(number) / "smp_affinity_list").write_text("0-3\n")
    (directory / "default_smp_affinity").write_text("f\n")
    monkeypatch.setattr(pinning, "_IRQS", directory)
    return directory


@pytest.fixture
def tuna(tmp_path: Path, irqs: Path, monkeypatch: pytest.MonkeyPatch) -> Tuna:
    """Put a tuna on the path that says a text for its help; it notes its calls in a file."""

    def make(text: str) -> Path:
        notes = tmp_path / "calls"
        program = tmp_path / "bin" / "tuna"
        program.parent.mkdir(exist_ok=True)
        program.write_text(
            f'#!/bin/sh\n[ "$1" = --help ] && {{ printf "{text}\\n"; exit; }}\n'
            f'echo "$*" >>{notes}\n'
            f"for irq in {irqs}/*/smp_affinity_list; do echo 0,1 >$irq; done\n"
        )
        program.chmod(0o755)
        monkeypatch.setattr(pinning, "_TUNA_PATH", str(program.parent))
        monkeypatch.setattr(pinning, "_own_threads", lambda: [17])
        monkeypatch.setattr(os, "geteuid", lambda: 0)
        monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {0, 1, 2, 3})
        monkeypatch.setattr(
            os, "sched_setaffinity", lambda thread, cpus: moved.append((thread, cpus))
        )
        return notes

    moved.clear()
    return make


moved: list[tuple[int, list[int]]] = []


def where(irqs: Path) -> set[str]:
    return {file.read_text().strip() for file in irqs.glob("*/smp_affinity_list")}


@pytest.mark.parametrize(
    ("text", "first", "last"), [(OLD_HELP, "", " --move"), (NEW_HELP, "move ", "")]
)
def test_half_of_them_are_the_guests_and_all_is_put_back(
    text: str, first: str, last: str, layout: Layout, tuna: Tuna, irqs: Path
) -> None:
    notes = tuna(text)
    with pinned(layout, wanted=True) as pins:
        assert (pins.guest, pins.others) == ((2, 3), (0, 1))
        assert json.loads((layout.cache / "pinned.json").read_text()) == {"4": "0-3", "30": "0-3"}
        assert where(irqs) == {"0,1"}
    assert notes.read_text().splitlines() == [
        f"{first}--cpus 0,1 --irqs 4,30{last}",
        f"{first}--cpus 0,1 --threads 17{last}",
    ]
    assert where(irqs) == {"0-3"}
    assert moved == [(17, [0, 1, 2, 3])]
    assert not (layout.cache / "pinned.json").exists()
    record = pins.record()
    assert record is not None
    assert (record.guest_cpus, record.other_cpus) == ([2, 3], [0, 1])


def test_they_are_put_back_after_an_error(layout: Layout, tuna: Tuna, irqs: Path) -> None:
    tuna(OLD_HELP)
    with pytest.raises(KeyboardInterrupt), pinned(layout, wanted=True):
        raise KeyboardInterrupt
    assert where(irqs) == {"0-3"}
    assert moved


@pytest.mark.parametrize("wanted", [False, True])
def test_the_next_run_puts_back_what_a_killed_one_left(
    wanted: bool, layout: Layout, tuna: Tuna, irqs: Path
) -> None:
    tuna(OLD_HELP)
    (layout.cache / "pinned.json").write_text('{"4": "1-2", "77": "0"}')
    with pinned(layout, wanted=wanted) as pins:
        assert bool(pins.guest) is wanted
    assert (irqs / "4" / "smp_affinity_list").read_text().strip() == "1-2"
    assert not (layout.cache / "pinned.json").exists()


def test_without_being_asked_nothing_is_touched(layout: Layout, tuna: Tuna) -> None:
    notes = tuna(OLD_HELP)
    with pinned(layout, wanted=False) as pins:
        assert pins == NOT_PINNED
        assert pins.record() is None
    assert not notes.exists()


@pytest.mark.parametrize("reason", ["tuna is not here", "only one processor", "only root"])
def test_why_nothing_is_pinned_is_said(
    reason: str, layout: Layout, tuna: Tuna, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes = tuna(OLD_HELP)
    said: list[str] = []
    monkeypatch.setattr(pinning, "note", said.append)
    if reason == "only root":
        monkeypatch.setattr(os, "geteuid", lambda: 1000)
    elif reason == "only one processor":
        monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {0})
    else:
        monkeypatch.setattr(pinning, "_TUNA_PATH", "/nowhere")
    with pinned(layout, wanted=True) as pins:
        assert pins == NOT_PINNED
    assert len(said) == 1
    assert reason in said[0]
    assert not notes.exists()


def test_threads_are_kept_where_the_guest_belongs() -> None:
    mine = sorted(os.sched_getaffinity(0))
    with subprocess.Popen(["sleep", "100"]) as child:
        try:
            Pins((mine[-1],), tuple(mine[:-1])).keep([child.pid])
            assert os.sched_getaffinity(child.pid) == {mine[-1]}
            NOT_PINNED.keep([child.pid])
            assert os.sched_getaffinity(child.pid) == {mine[-1]}
        finally:
            child.kill()
    Pins((mine[-1],), ()).keep([child.pid])  # it has ended, which is no error
