# SPDX-License-Identifier: GPL-2.0-or-later
"""Where a series goes, and what that is called."""

from __future__ import annotations

from pathlib import Path

import pytest

from lab.base.errors import UsageError
from lab.base.layout import CHECKOUT, Layout
from lab.results.rounds import split
from lab.review.candidate import End, Subject, end_name
from lab.source.series import Series

LAYOUT = Layout(CHECKOUT, CHECKOUT, CHECKOUT)
MINE = Path("/a b/s")


def subject(side: End, old: str = "stock:10.0", new: str = "10.2") -> Subject:
    series = Series("s", (MINE / "0001-x.patch", MINE / "0002-y.patch"))
    return Subject(LAYOUT, series, old, new, MINE, side)


@pytest.mark.parametrize(
    ("side", "bases", "pair"),
    [
        (End.NEW, ["10.2"], ("stock:10.0", "10.2+/a b/s")),
        (End.OLD, ["stock:10.0"], ("stock:10.0+/a b/s", "10.2")),
        (End.BOTH, ["stock:10.0", "10.2"], ("stock:10.0+/a b/s", "10.2+/a b/s")),
    ],
)
def test_the_series_goes_on_the_side_that_is_asked_for(
    side: End, bases: list[str], pair: tuple[str, str]
) -> None:
    mine = subject(side)
    assert [base.name for base in mine.bases] == bases
    assert mine.pair == pair
    mechanism, old, new = split(mine.label("flip"))
    assert (mechanism, old or mine.old, new or mine.new) == ("flip", *pair)


def test_checks_of_two_bases_are_told_apart() -> None:
    for side, tools in (
        (End.OLD, ["apply"]),
        (End.BOTH, ["apply on stock:10.0", "apply on 10.2"]),
    ):
        mine = subject(side)
        assert [mine.tool("apply", base) for base in mine.bases] == tools


def test_the_same_release_at_both_ends_has_the_series_at_the_right_one() -> None:
    assert subject(End.OLD, "10.2", "10.2").pair == ("10.2+/a b/s", "10.2")
    assert subject(End.NEW, "10.2", "10.2").pair == ("10.2", "10.2+/a b/s")


@pytest.mark.parametrize(
    ("name", "patched", "stock", "called"),
    [
        ("new", True, False, "new"),
        ("new", True, True, "stock:new"),
        ("stock:new", True, True, "stock:new"),
        ("new", False, True, "new"),
        ("/q/qemu", False, True, "/q/qemu"),
    ],
)
def test_an_end_of_the_upgrade(name: str, patched: bool, stock: bool, called: str) -> None:
    assert end_name(LAYOUT, name, patched=patched, stock=stock) == called


@pytest.mark.parametrize(
    ("name", "patched"),
    [("/q/qemu", True), ("10.2+tests/series/good", True), ("9.9", True), ("9.9", False)],
)
def test_what_a_series_cannot_be_put_on(name: str, patched: bool) -> None:
    with pytest.raises(UsageError):
        end_name(LAYOUT, name, patched=patched, stock=False)
