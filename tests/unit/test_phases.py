# SPDX-License-Identifier: GPL-2.0-or-later
"""The phases of an upgrade by QEMU's own trace events."""

from __future__ import annotations

import pytest

from lab.measure import phases
from lab.model import Phases

OLD = {"src-downtime-start": 1.0, "src-vm-stopped": 1.002, "src-non-iterable-saved": 1.005}
NEW = {"dst-precopy-bh-enter": 1.015, "dst-precopy-bh-vm-started": 1.056}
POSTCOPY = {"dst-postcopy-bh-enter": 1.006, "dst-postcopy-bh-vm-started": 1.007}


def ms(told: Phases) -> dict[str, float]:
    return {name: value for name, value in told.model_dump().items() if value is not None}


def test_the_steps_of_both_qemus_are_one_line() -> None:
    reached = phases.steps(OLD, NEW)
    found = ms(phases.complete(Phases(new_start=70.0), reached))
    wanted = {"new_start": 70.0, "stop": 2.0, "save": 3.0, "load": 10.0, "resume": 41.0}
    assert found == pytest.approx(wanted)


def test_what_the_mechanism_tells_is_left() -> None:
    found = phases.complete(Phases(save=9.0), phases.steps(OLD, NEW))
    assert found.save == 9.0
    assert found.resume == pytest.approx(41.0)


def test_postcopy_has_steps_of_its_own() -> None:
    found = phases.complete(Phases(), phases.steps(OLD, {**NEW, **POSTCOPY}))
    assert (found.load, found.resume) == (pytest.approx(1.0), pytest.approx(1.0))


def test_what_is_not_known_is_null() -> None:
    assert ms(phases.complete(Phases(), {})) == {}
    # An old QEMU that was itself upgraded to once has the steps of that upgrade as well.
    assert phases.steps(NEW, OLD) == {}
    earlier = phases.steps(OLD, {"dst-precopy-bh-enter": 0.5, "dst-precopy-bh-vm-started": 0.51})
    assert "load" not in ms(phases.complete(Phases(), earlier))
