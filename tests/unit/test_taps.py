# SPDX-License-Identifier: GPL-2.0-or-later
"""Taps that stand in for a guest's own."""

from __future__ import annotations

import os
import select
from pathlib import Path

import needs
import pytest

from lab.base.errors import PreconditionError
from lab.transplant.taps import StandIns, number_in, tap_of
from lab.workloads import netns


def test_what_is_no_tap_stays_what_it_is() -> None:
    ours, theirs = os.pipe()
    with Path("/dev/null").open("rb") as null:
        assert [tap_of(one) for one in (ours, theirs, null.fileno())] == [None] * 3
        made = StandIns([ours, null.fileno()], os.getpid())
        assert (made.instead, made.places, made.real) == ({}, {}, {})
        made.remove()
        made.close()
        with pytest.raises(PreconditionError, match="cannot be told"):
            number_in(os.getpid(), null.fileno())
    os.close(ours)
    os.close(theirs)


@pytest.mark.skipif(
    os.geteuid() != 0 or needs.network() != "", reason="root, and a network of the test's own"
)
def test_a_tap_has_another_of_its_kind_in_its_place(tmp_path: Path) -> None:
    with netns.segment(tmp_path / "log") as lan:
        real, again = lan.tap(), lan.tap()
        made = StandIns([real, again], os.getpid())
        try:
            assert made.places.keys() == made.instead.keys() == {real, again}
            for one in (real, again):
                assert tap_of(made.instead[one]) == tap_of(one)
                assert made.real[made.places[one]] == one
            # One that waits for a packet there is told to look again.
            waits = select.poll()
            waits.register(made.instead[real], select.POLLIN)
            assert waits.poll(0) == []
            made.remove()
            assert waits.poll(5000) == [(made.instead[real], select.POLLERR)]
            assert tap_of(real)
        finally:
            made.close()
