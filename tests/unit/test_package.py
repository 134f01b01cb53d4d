# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import filecmp
import subprocess
from pathlib import Path

import fake_source
import pytest

from lab.base.errors import CannotTellError, UsageError
from lab.base.files import sha256_of
from lab.source.package import build, missing_to_build, source_package
from lab.source.resolve import Kind, Source
from lab.source.series import STOCK, Series, load_series, patched_tree


@pytest.fixture
def source(tmp_path: Path) -> Source:
    fake = fake_source.make(tmp_path / "theirs")
    files = (fake.orig, fake.packaging)
    hashes = {file.name: sha256_of(file) for file in files}
    return Source("9.9", fake_source.VERSION, Kind.DEBIAN, "test", files, hashes)


@pytest.fixture
def series(tmp_path: Path) -> Series:
    patches = {"1.patch": fake_source.change_text(10), "2.patch": fake_source.change_text(20)}
    return load_series(fake_source.write_series(tmp_path / "patches" / "9.9", patches))


def _same(one: Path, other: Path) -> bool:
    """Whether two directories hold the same files with the same bytes."""
    names = [
        sorted(str(path.relative_to(top)) for path in top.rglob("*") if path.is_file())
        for top in (one, other)
    ]
    return names[0] == names[1] and filecmp.cmpfiles(one, other, names[0], shallow=False)[1:] == (
        [],
        [],
    )


def test_unpacked_it_is_the_patched_tree(source: Source, series: Series, tmp_path: Path) -> None:
    made = source_package(source, series, tmp_path / "made")
    out = tmp_path / "out"
    subprocess.run(["dpkg-source", "-x", str(made.dsc), str(out)], check=True, capture_output=True)
    patched_tree(source, series, tmp_path / "tree")
    for name in ("docs", "emulator.sh", "configure"):
        one, other = out / name, tmp_path / "tree" / name
        assert _same(one, other) if one.is_dir() else one.read_bytes() == other.read_bytes()
    assert "\n20 changed\n" in (out / "docs" / "text").read_text()


def test_its_version_is_between_theirs_and_their_next(
    source: Source, series: Series, tmp_path: Path
) -> None:
    version = source_package(source, series, tmp_path / "made").version
    theirs = f"1:{fake_source.VERSION}+ds-1"
    for later, earlier in ((version, theirs), (f"1:{fake_source.VERSION}+ds-2", version)):
        subprocess.run(["dpkg", "--compare-versions", later, "gt", earlier], check=True)


def test_the_same_series_makes_the_same_package(
    source: Source, series: Series, tmp_path: Path
) -> None:
    one = source_package(source, series, tmp_path / "one")
    other = source_package(source, series, tmp_path / "other")
    assert one.dsc.read_bytes() == other.dsc.read_bytes()


def test_the_entry_is_by_who_made_it(
    source: Source, series: Series, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEBFULLNAME", "Ada")
    monkeypatch.setenv("DEBEMAIL", "ada@example.org")
    made = source_package(source, series, tmp_path / "made", "+site2")
    text = (made.tree / "debian" / "changelog").read_text()
    assert text.startswith("qemu (1:9.9.9+ds-1+site2) unstable; urgency=medium\n\n  * Add")
    assert "\n -- Ada <ada@example.org>  Mon, 06 Jan 2025 10:00:00 +0100\n\nqemu (" in text


@pytest.mark.parametrize("suffix", ["", "pageflip", "+", "+a b", "+a-1", "+a\n"])
def test_a_suffix_that_is_none(source: Source, series: Series, tmp_path: Path, suffix: str) -> None:
    with pytest.raises(UsageError, match="cannot end a version"):
        source_package(source, series, tmp_path / "made", suffix)
    assert not (tmp_path / "made").exists()


def test_what_cannot_be_packed(source: Source, series: Series, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no patches"):
        source_package(source, STOCK, tmp_path / "made")
    upstream = Source("9.9", "9.9.9", Kind.UPSTREAM, "upstream")
    with pytest.raises(CannotTellError, match="no Debian package"):
        source_package(upstream, series, tmp_path / "made")
    (tmp_path / "made").mkdir()
    with pytest.raises(UsageError, match="is there already"):
        source_package(source, series, tmp_path / "made")


def test_a_series_that_does_not_apply_leaves_nothing(source: Source, tmp_path: Path) -> None:
    wrong = {"1.patch": fake_source.change_text(10).replace("-10\n", "-11\n")}
    series = load_series(fake_source.write_series(tmp_path / "patches" / "wrong", wrong))
    with pytest.raises(CannotTellError, match=r"1\.patch"):
        source_package(source, series, tmp_path / "made")
    assert not (tmp_path / "made").exists()


def test_what_building_needs_is_named(source: Source, series: Series, tmp_path: Path) -> None:
    made = source_package(source, series, tmp_path / "made")
    control = made.tree / "debian" / "control"
    text = control.read_text().replace(
        "\nStandards", "\nBuild-Depends: no-such-thing (>= 3)\nStandards"
    )
    control.write_text(text)
    assert missing_to_build(made).startswith("no-such-thing (>= 3)")
    with pytest.raises(CannotTellError, match="no-such-thing"):
        build(made)


def test_what_is_built_has_the_series(source: Source, series: Series, tmp_path: Path) -> None:
    made = source_package(source, series, tmp_path / "made")
    if lacking := missing_to_build(made):
        pytest.skip(f"dpkg-buildpackage itself needs {lacking}")
    (built,) = build(made)
    text = subprocess.run(
        ["dpkg-deb", "--fsys-tarfile", str(built)], check=True, capture_output=True
    ).stdout
    assert b"\n20 changed\n" in text
