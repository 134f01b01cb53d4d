# SPDX-License-Identifier: GPL-2.0-or-later
"""The run state in QEMU's log, as each release of the pair writes it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab.vm import tracelog

OLD = "29391@1795451194.760759:runstate_set current_run_state 6 (prelaunch) new_state 9 (running)\n"
NEW = (
    "2026-11-23T16:26:36.356566Z runstate_set current_run_state 7 (inmigrate) "
    "new_state 9 (running)\n"
)
SHUTDOWN = NEW.replace("7 (inmigrate)", "9 (running)").replace(
    "new_state 9 (running)", "new_state 11 (shutdown)"
)


def test_both_formats_are_seconds_since_the_epoch() -> None:
    events = list(tracelog.resumes(f"+ qemu -S\n{OLD}qemu: warning\n{NEW}{SHUTDOWN}"))
    assert [event.name for event in events] == ["RESUME", "RESUME"]
    assert events[0].at == pytest.approx(1795451194.760759, abs=1e-6)
    assert events[1].at == pytest.approx(1795451196.356566, abs=1e-6)
    assert events[1].data == {"from": "inmigrate"}


def test_what_qemu_said_besides() -> None:
    assert tracelog.words(f"one\n{OLD}two\n") == ["one", "two"]


STEPS = (
    "29391@1795451194.760000:vmstate_downtime_checkpoint src-vm-stopped\n"
    "2026-11-23T16:26:36.350000Z vmstate_downtime_checkpoint dst-precopy-bh-enter\n"
    "2026-11-23T16:26:36.356500Z vmstate_downtime_checkpoint dst-precopy-bh-enter\n"
)


def test_steps_of_a_migration_have_their_last_time() -> None:
    found = tracelog.checkpoints(f"+ qemu\n{OLD}{STEPS}{NEW}")
    assert found == pytest.approx(
        {"src-vm-stopped": 1795451194.76, "dst-precopy-bh-enter": 1795451196.3565}, abs=1e-6
    )
    assert tracelog.words(f"one\n{STEPS}two\n") == ["one", "two"]


@given(st.text())
def test_any_text_can_be_read(text: str) -> None:
    assert all(event.name == "RESUME" for event in tracelog.resumes(text))
