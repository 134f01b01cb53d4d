# SPDX-License-Identifier: GPL-2.0-or-later
"""The series as they are in the repository.

They are checked against the releases' real sources, which are fetched when the cache has them not.
That every patch compiles is another matter of an hour: ./pageflip patches lint --build.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from lab.base.layout import Layout
from lab.review import lint
from lab.source.releases import load_releases
from lab.source.resolve import resolve, stock_tree
from lab.source.series import Series, load_series

_LAYOUT = Layout.default()
_RELEASES = load_releases(_LAYOUT.patches / "releases.toml")


@pytest.fixture(scope="module", params=sorted(_RELEASES.releases))
def series(request: pytest.FixtureRequest) -> Series:
    found = load_series(_LAYOUT.patches / request.param)
    if not found.patches:
        pytest.skip(f"no patches for {request.param} yet")
    return found


@pytest.fixture(scope="module")
def base(series: Series) -> Path:
    return stock_tree(_LAYOUT, resolve(_LAYOUT, _RELEASES.get(series.name)))


def test_it_applies_without_fuzz_and_where_it_says(
    series: Series, base: Path, tmp_path: Path
) -> None:
    assert lint.applies_exactly(base, series, tmp_path) == []


def test_its_round_trip_is_exact(series: Series, base: Path, tmp_path: Path) -> None:
    assert lint.round_trips(base, series, tmp_path) == []


def test_it_is_in_qemus_style(series: Series, base: Path) -> None:
    assert lint.style(base, series) == []


def test_every_patch_says_whose_it_is(series: Series) -> None:
    assert [line for patch in series.patches for line in lint.texts(patch)] == []


def test_no_patch_lies_beside_it(series: Series) -> None:
    assert lint.unlisted(_LAYOUT.patches / series.name, series) == []


def test_all_releases_have_the_same() -> None:
    several = [load_series(_LAYOUT.patches / name) for name in sorted(_RELEASES.releases)]
    assert lint.same_slugs(several) == []
