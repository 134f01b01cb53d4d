# SPDX-License-Identifier: GPL-2.0-or-later
"""What is done about an upgrade that was left half done, for all that two QEMUs can say."""

from __future__ import annotations

from itertools import product

import pytest
from fakes import made_entry

from lab.live.decision import Action, Has, decide, new_has, old_has
from lab.live.journal import LiveStep

A, H = Action, Has

#: What both say, and what is done then: at first, and when there was time enough.
TABLE: dict[tuple[Has, Has], tuple[Action, Action]] = {
    (H.RUNS, H.GONE): (A.STAY, A.STAY),
    (H.RUNS, H.WAITS): (A.STAY, A.STAY),
    (H.RUNS, H.STANDS): (A.STAY, A.STAY),
    (H.RUNS, H.SILENT): (A.WAIT, A.STAY),
    (H.RUNS, H.RUNS): (A.BOTH, A.BOTH),
    (H.STANDS, H.GONE): (A.RUN_OLD, A.RUN_OLD),
    (H.STANDS, H.WAITS): (A.RUN_OLD, A.RUN_OLD),
    (H.STANDS, H.STANDS): (A.RUN_OLD, A.RUN_OLD),
    (H.STANDS, H.SILENT): (A.WAIT, A.UNKNOWN),
    (H.STANDS, H.RUNS): (A.WAIT, A.MOVED),
    (H.GIVES, H.GONE): (A.CANCEL, A.UNKNOWN),
    (H.GIVES, H.WAITS): (A.CANCEL, A.UNKNOWN),
    (H.GIVES, H.STANDS): (A.CANCEL, A.UNKNOWN),
    (H.GIVES, H.SILENT): (A.CANCEL, A.UNKNOWN),
    (H.GIVES, H.RUNS): (A.WAIT, A.UNKNOWN),
    (H.PAST, H.GONE): (A.WAIT, A.UNKNOWN),
    (H.PAST, H.WAITS): (A.WAIT, A.UNKNOWN),
    (H.PAST, H.STANDS): (A.WAIT, A.UNKNOWN),
    (H.PAST, H.SILENT): (A.WAIT, A.UNKNOWN),
    (H.PAST, H.RUNS): (A.WAIT, A.UNKNOWN),
    (H.GAVE, H.GONE): (A.NOBODY, A.NOBODY),
    (H.GAVE, H.WAITS): (A.WAIT, A.NOBODY),
    (H.GAVE, H.STANDS): (A.RUN_NEW, A.RUN_NEW),
    (H.GAVE, H.SILENT): (A.WAIT, A.UNKNOWN),
    (H.GAVE, H.RUNS): (A.MOVED, A.MOVED),
    (H.GONE, H.GONE): (A.NOBODY, A.NOBODY),
    (H.GONE, H.WAITS): (A.WAIT, A.NOBODY),
    (H.GONE, H.STANDS): (A.RUN_NEW, A.RUN_NEW),
    (H.GONE, H.SILENT): (A.WAIT, A.UNKNOWN),
    (H.GONE, H.RUNS): (A.MOVED, A.MOVED),
    (H.SILENT, H.GONE): (A.WAIT, A.UNKNOWN),
    (H.SILENT, H.WAITS): (A.WAIT, A.UNKNOWN),
    (H.SILENT, H.STANDS): (A.WAIT, A.UNKNOWN),
    (H.SILENT, H.SILENT): (A.WAIT, A.UNKNOWN),
    (H.SILENT, H.RUNS): (A.WAIT, A.UNKNOWN),
}
NEW = (H.GONE, H.WAITS, H.STANDS, H.SILENT, H.RUNS)


def test_the_table_is_complete() -> None:
    assert set(TABLE) == set(product(Has, NEW)) - {(H.WAITS, new) for new in NEW}


@pytest.mark.parametrize("pair", TABLE, ids=lambda pair: f"{pair[0].name}-{pair[1].name}")
def test_what_is_done(pair: tuple[Has, Has]) -> None:
    for late, expected in zip((False, True), TABLE[pair], strict=True):
        assert decide(*pair, ran=True, back=False, late=late) is expected


@pytest.mark.parametrize("pair", TABLE, ids=lambda pair: f"{pair[0].name}-{pair[1].name}")
def test_a_guest_that_was_paused_stays_paused(pair: tuple[Has, Has]) -> None:
    """It is never told to run, and ends up in the same QEMU."""
    same = {A.RUN_OLD: A.STAY, A.RUN_NEW: A.MOVED}
    for late, expected in zip((False, True), TABLE[pair], strict=True):
        got = decide(*pair, ran=False, back=False, late=late)
        assert got is same.get(expected, expected)


@pytest.mark.parametrize("pair", TABLE, ids=lambda pair: f"{pair[0].name}-{pair[1].name}")
def test_only_what_the_new_qemu_cannot_have_run_goes_back(pair: tuple[Has, Has]) -> None:
    for late, expected in zip((False, True), TABLE[pair], strict=True):
        goes = pair[0] is H.GAVE and expected is A.NOBODY
        got = decide(*pair, ran=True, back=True, late=late)
        assert got is (A.RUN_OLD if goes else expected)


#: What a QEMU becomes by an action, with the guest of `RUNS` where it is allowed to be.
OLD = (H.GONE, H.SILENT, H.RUNS, H.STANDS, H.GIVES, H.PAST, H.GAVE)


@pytest.mark.parametrize(("old", "new"), list(product(OLD, NEW)))
@pytest.mark.parametrize(("ran", "back"), list(product((True, False), repeat=2)))
def test_each_ends_and_never_with_more_or_fewer_than_it_could(
    old: Has, new: Has, ran: bool, back: bool
) -> None:
    """Carry the actions out: what is ended never runs the guest, and it ends in a few looks."""
    could = H.RUNS in {old, new} or H.STANDS in {old, new} or (back and old is H.GAVE)
    late = False
    for _ in range(6):
        action = decide(old, new, ran=ran, back=back, late=late)
        if action is A.WAIT:
            late = True
        elif action is A.CANCEL:
            old = H.RUNS
        elif action is A.RUN_OLD:
            assert new is not H.RUNS
            old, new = H.RUNS, H.GONE
        elif action is A.RUN_NEW:
            assert old in {H.GAVE, H.GONE}
            new = H.RUNS
        else:
            break
    else:
        pytest.fail(f"no end: {old}, {new}")
    if action is A.STAY:
        assert old is H.RUNS or (old is H.STANDS and not ran)
        assert new is not H.RUNS
    if action is A.MOVED:
        assert new is H.RUNS or (new is H.STANDS and not ran)
        assert old is not H.RUNS
    if action is A.NOBODY:
        assert not could


def test_what_qemu_says() -> None:
    assert old_has("running", "none") is H.RUNS
    assert old_has("running", "completed") is H.RUNS  # it has come from another one itself
    assert old_has("running", "failed") is H.RUNS
    for status in ("active", "setup", "device", "pre-switchover", "cancelling"):
        assert old_has("running", status) is H.GIVES
        assert old_has("paused", status) is H.GIVES
    assert old_has("finish-migrate", "active") is H.GIVES
    assert old_has("finish-migrate", "postcopy-active") is H.PAST
    assert old_has("postmigrate", "completed") is H.GAVE
    assert old_has("postmigrate", "postcopy-paused") is H.PAST
    assert old_has("paused", "cancelled") is H.STANDS
    assert old_has("guest-panicked", "none") is H.RUNS  # it is not continued
    assert new_has("inmigrate", "active") is H.WAITS
    assert new_has("paused", "active") is H.WAITS
    assert new_has("paused", "failed") is H.WAITS
    assert new_has("paused", "completed") is H.STANDS
    assert new_has("running", "postcopy-active") is H.RUNS
    assert new_has("io-error", "completed") is H.RUNS


@pytest.mark.parametrize("step", LiveStep)
@pytest.mark.parametrize("stops", [True, False])
def test_the_step_says_whether_the_new_qemu_may_have_run_it(step: LiveStep, stops: bool) -> None:
    """Until it is told to, where it has to be told; a mechanism that resumes by itself may have."""
    found = made_entry().model_copy(update={"step": step, "stops": stops})
    assert found.back is (stops and step in {"planned", "starting", "moving"})
