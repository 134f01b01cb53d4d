# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether a guest would load is found out beforehand, where it is lost if it does not."""

from __future__ import annotations

import dataclasses
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from test_cmdline import OLD

from lab import pipeline
from lab.base.errors import PreconditionError
from lab.measure.downtime import Window
from lab.mechanisms import MECHANISMS, Mechanism, foresight
from lab.mechanisms.move import Move
from lab.model import Outcome
from lab.vm.cmdline import Machine, Nic


def stage(mechanism: Mechanism) -> Any:
    pair = SimpleNamespace(
        old=SimpleNamespace(version="10.0.13"),
        new=SimpleNamespace(version="11.1.3", path=Path("/new/qemu")),
        new_firmware=Path("/new/firmware"),
    )
    return SimpleNamespace(pair=pair, mechanism=mechanism)


@pytest.mark.parametrize("mechanism", MECHANISMS, ids=lambda one: one.name)
def test_only_a_way_without_a_way_back_is_tried_out(
    mechanism: Mechanism, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[Path, Path]] = []

    def refusal(machine: Machine, qemu: Path, firmware: Path) -> str:
        assert machine is OLD
        asked.append((qemu, firmware))
        return "VQ 0 vring.num 1024 exceeds allocated max 128"

    monkeypatch.setattr(foresight, "refusal", refusal)
    if mechanism.rolls_back:
        pipeline.foresee(stage(mechanism), OLD)
        assert asked == []
        return
    with pytest.raises(PreconditionError, match=r"would lose the guest.*vring\.num 1024"):
        pipeline.foresee(stage(mechanism), OLD)
    assert asked == [(Path("/new/qemu"), Path("/new/firmware"))]
    monkeypatch.setattr(foresight, "refusal", lambda *_how: "")
    pipeline.foresee(stage(mechanism), OLD)


def test_the_two_have_nothing_of_the_guests_own(tmp_path: Path) -> None:
    guest = dataclasses.replace(OLD, nics=(Nic(7), Nic(8, "52:54:00:00:00:01")), devices=("sga",))
    alone = foresight.alone(guest, tmp_path)
    assert alone.descriptors == ()
    assert alone.sockets.parent == tmp_path
    words, theirs = alone.argv(), guest.argv()

    def devices(words: list[str]) -> list[str]:
        return [words[n + 1] for n, word in enumerate(words) if word == "-device"]

    bare = [",".join(p for p in d.split(",") if "netdev=" not in p) for d in devices(theirs)]
    assert devices(words) == bare
    assert not [word for word in words if "tap" in word or "/s/old" in word]


@pytest.mark.parametrize(
    ("outcome", "failure", "said"),
    [
        (Outcome.UPGRADED, "", ""),
        (Outcome.ROLLED_BACK, "load of migration failed", "load of migration failed"),
        (Outcome.LOST, "", "neither QEMU has it"),
    ],
)
def test_what_the_two_come_to(
    outcome: Outcome, failure: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[Machine] = []

    class Starter:
        def start(self, name: str, machine: Machine) -> Any:
            started.append(machine)
            return SimpleNamespace(name=name, monitor=SimpleNamespace(execute=self.execute))

        def connect(self, _vm: Any) -> None:
            """Nothing to connect to."""

        def execute(self, command: str) -> None:
            assert command == "stop"

    @contextmanager
    def factory(_directory: Path, _group: None) -> Any:
        yield Starter()

    def move(_start: Any, old: Any, new: Any, *_how: Any, state: str) -> Move[Any]:
        assert (old.name, new.name, state) == ("old", "new", "paused")
        return Move(cast("Any", new), Window(0, 1), outcome, failure)

    monkeypatch.setattr(foresight, "factory", factory)
    monkeypatch.setattr(foresight, "move", move)
    assert foresight.refusal(OLD, Path("/new/qemu"), Path("/fw")) == said
    old, new = started
    assert (old.qemu, new.qemu, new.firmware) == (OLD.qemu, Path("/new/qemu"), Path("/fw"))
    assert new.incoming == ("defer",)
    assert (old.machine_type, old.ram_bytes) == (new.machine_type, new.ram_bytes)
