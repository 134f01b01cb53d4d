# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab.base.errors import UsageError
from lab.base.layout import CHECKOUT
from lab.source.releases import PinnedFile, load_releases

_FILE = CHECKOUT / "patches" / "releases.toml"


def _changed(tmp_path: Path, old: str, new: str) -> Path:
    text = _FILE.read_text(encoding="utf-8")
    assert old in text
    path = tmp_path / "releases.toml"
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
    return path


def test_the_file_that_is_shipped() -> None:
    releases = load_releases(_FILE)
    assert (releases.old.name, releases.old.version) == ("10.0", "10.0.13")
    assert (releases.new.name, releases.new.version) == ("10.2", "10.2.2")
    new = releases.new.debian
    assert new is not None
    assert new.orig.name == "qemu_10.2.2+ds.orig.tar.xz"
    assert new.orig.sha256.startswith("be05230f")
    assert new.packaging.name.endswith(".debian.tar.xz")


@pytest.mark.parametrize("name", ["10.0", "10.0.13", "old"])
def test_a_release_has_three_names(name: str) -> None:
    assert load_releases(_FILE).get(name).version == "10.0.13"


def test_an_unknown_release_is_answered_with_the_known_ones() -> None:
    with pytest.raises(UsageError) as caught:
        load_releases(_FILE).get("9.1")
    assert "'9.1'" in caught.value.message
    assert "10.0 (10.0.13)" in caught.value.hint


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [
        ('old = "10.0"', 'old = "9.0"', "roles: old = '9.0' is none of the releases"),
        ('old = "10.0"', 'older = "10.0"', "roles.older"),
        ('flavour = "full"', 'flavour = "fool"', "flavour = 'fool' is none of the flavours"),
        ("size = 12462", "size = 0", "releases.10.0.debian.files.0.size"),
        ('sha256 = "a426', 'sha256 = "x426', "releases.10.0.debian.files.0.sha256"),
        ('name = "qemu_10.0.13+ds-0', 'name = "../10.0.13+ds-0', "debian.files.0.name"),
        ('tag = "v10.0.13"', 'tag = "--exec=x"', "releases.10.0.tag"),
        ('tag = "v10.0.13"', 'tga = "v10.0.13"', "releases.10.0.tga"),
        (".orig.tar.xz", ".orig.tar.gz", ".orig.tar.xz, found 0"),
        ('releases = "https', 'releases = "ftp', "upstream.releases"),
    ],
)
def test_a_wrong_key_is_named(tmp_path: Path, old: str, new: str, key: str) -> None:
    path = _changed(tmp_path, old, new)
    with pytest.raises(UsageError) as caught:
        load_releases(path)
    assert key in caught.value.message
    assert str(path) in caught.value.message


def test_not_toml_is_told_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "releases.toml"
    path.write_text("a = 1\nb = \n")
    with pytest.raises(UsageError, match="line 2"):
        load_releases(path)


def test_no_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        load_releases(tmp_path / "releases.toml")


@given(name=st.text(max_size=30))
def test_a_file_name_never_leaves_its_directory(name: str) -> None:
    directory = Path("/cache/downloads")
    entry = {"name": name, "size": 1, "sha256": "0" * 64, "sha1": "0" * 40}
    try:
        pinned = PinnedFile.model_validate(entry)
    except ValueError:
        return
    assert (directory / pinned.name).parent == directory
    assert pinned.name not in (".", "..")
    assert "\n" not in pinned.name
