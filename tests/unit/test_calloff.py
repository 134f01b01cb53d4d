# SPDX-License-Identifier: GPL-2.0-or-later
"""A move that is called off: the guest runs in one QEMU, whenever that comes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, cast

import pytest

from lab import mechanisms
from lab.base import process
from lab.mechanisms import Mechanism
from lab.mechanisms.calloff import call_off, held_back
from lab.vm.qemu import Qemu


class Arriving:
    """A new QEMU's monitor: the guest arrives before the command of that number, if ever."""

    def __init__(self, arrives: int) -> None:
        self.left = arrives
        self.status, self.autostart = "inmigrate", True
        self.ran = False

    def execute(self, command: str) -> dict[str, Any]:
        if not self.left:
            self.arrive()
        self.left -= 1
        if command == "stop":
            if self.status == "inmigrate":
                self.autostart = False
            else:
                self.status = "paused"
        elif command == "cont":
            self.status = "running"
        return {"status": self.status}

    def arrive(self) -> None:
        self.status = "running" if self.autostart else "paused"
        self.ran = self.status == "running"


class Old:
    """An old QEMU's monitor."""

    def __init__(self) -> None:
        self.did: list[str] = []

    def execute(self, command: str) -> None:
        self.did.append(command)


def qemu(monitor: Arriving | Old | None) -> Qemu:
    made = Qemu("one", cast("Any", None), process.Foreign(os.getpid()), Path())
    made.connection = cast("Any", monitor)
    return made


@pytest.mark.parametrize("arrives", [0, 1, 2, 9])
def test_it_never_runs_in_both(arrives: int) -> None:
    """Whenever the guest arrives: what was held back never ran, and what ran goes on."""
    new, old = Arriving(arrives), Old()
    called_off = call_off(mechanisms.Precopy(), qemu(old), qemu(new), "running")
    assert old.did == ["migrate_cancel"] * called_off
    if new.status == "inmigrate":
        new.arrive()
    assert not (called_off and new.ran)
    assert called_off or new.status == "running"
    assert called_off is (arrives > 1)


def test_a_guest_that_arrives_in_between_goes_on() -> None:
    """After the command to stop, before the question: it was held back, and is let go."""
    new = Arriving(1)
    assert not held_back(cast("Any", new))
    assert new.status == "running"


def test_who_cannot_be_asked_is_left_alone() -> None:
    old = Old()
    assert not call_off(mechanisms.CprTransfer(), qemu(old), qemu(None), "running")
    assert old.did == []


@pytest.mark.parametrize(
    ("mechanism", "state"),
    [(mechanisms.Flip(), "running"), (mechanisms.StopCopy(), "running"),
     (mechanisms.Precopy(), "paused")],
)  # fmt: skip
def test_what_does_not_start_by_itself_needs_no_holding_back(
    mechanism: Mechanism, state: str
) -> None:
    old, new = Old(), Arriving(9)
    assert call_off(mechanism, qemu(old), qemu(new), state)
    assert old.did == ["migrate_cancel"]
    assert new.autostart


def test_every_mechanism_that_starts_by_itself_is_known() -> None:
    """Ours commit; upstream's do not."""
    unsafe = {one.name for one in mechanisms.MECHANISMS if one.resumes and not one.commits}
    assert unsafe == {"postcopy", "precopy", "multifd", "cpr-transfer", "cpr-exec", "ignore-shared"}
