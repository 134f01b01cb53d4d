# SPDX-License-Identifier: GPL-2.0-or-later
"""The example series, and the one of QEMUs that do wrong, on the release they are made for."""

from __future__ import annotations

from pathlib import Path

import pytest

from lab.base.layout import CHECKOUT, Layout
from lab.review import checks, lint
from lab.review.candidate import Subject
from lab.review.checks import Status
from lab.review.intake import collect
from lab.source import naming
from lab.source.resolve import resolve, stock_tree
from lab.source.series import Series

_LAYOUT = Layout.default()
_BASE = "new"
_EXAMPLES = {path.name: path for path in sorted((CHECKOUT / "tests" / "series").iterdir())}
_ALL = {**_EXAMPLES, "mutants": CHECKOUT / "tests" / "mutants"}


@pytest.mark.parametrize("name", [name for name in _ALL if name != "conflict"])
def test_it_applies_where_it_says(name: str, tmp_path: Path) -> None:
    asked = naming.named(_LAYOUT, _BASE)
    stock = stock_tree(_LAYOUT, resolve(_LAYOUT, asked.release))
    mine = collect(str(_ALL[name]), tmp_path / "series", tmp_path)
    whole = Series(name, (*asked.series.patches, *mine.patches))
    assert lint.applies_exactly(stock, whole, tmp_path) == []


def _subject(name: str, into: Path) -> Subject:
    return Subject(
        layout=_LAYOUT,
        series=collect(str(_ALL[name]), into / "series", into),
        old="old",
        new=_BASE,
        directory=into,
    )


def test_one_that_does_not_apply_is_told_by_its_patch(tmp_path: Path) -> None:
    (found,) = checks.applies(_subject("conflict", tmp_path))
    assert found.status is Status.FAIL
    assert "0001-migration-localhost-content-with-a-smaller-pipe.patch" in found.summary
    assert "localhost-gift.c: hunk #1" in found.details
    assert not (tmp_path / "tree").exists()


@pytest.mark.parametrize("name", ["good", "slow-third"])
def test_checkpatch_has_nothing_to_say(name: str, tmp_path: Path) -> None:
    (found,) = checks.style(_subject(name, tmp_path))
    assert found.status is Status.PASS, found.details
