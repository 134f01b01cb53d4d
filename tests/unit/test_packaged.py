# SPDX-License-Identifier: GPL-2.0-or-later
"""A distribution's QEMU, made of this machine's own /bin/echo, loader and libc."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import fake_source
import pytest

from lab.base.errors import CannotTellError, UsageError
from lab.base.layout import CHECKOUT, Layout
from lab.pair import packaged
from lab.pair.packaged import Unpacked
from lab.source import debian, fetch, naming
from lab.source.debian import Package
from lab.source.naming import Packaged

_ASKED = Packaged("debian:13", "trixie", {"x86_64": ("qemu-system-x86",)})
_LIBRARIES = "usr/lib/x86_64-linux-gnu"
Prepare = Callable[[], Unpacked]


def _deb(layout: Layout, name: str, root: Path) -> Package:
    (root / "DEBIAN").mkdir()
    (root / "DEBIAN" / "control").write_text(
        f"Package: {name}\nVersion: 1:9\nArchitecture: all\nMaintainer: A <a@b>\nDescription: x\n"
    )
    made = root.parent / f"{name}.deb"
    argv = ["dpkg-deb", "--build", "-Znone", "--root-owner-group", root, made]
    subprocess.run(argv, check=True, capture_output=True)
    one = Package(name, "1:9", f"{name}_1%3a9_all.deb", 1, fetch.sha256_of(made))
    fetch.keep(layout, made, one)
    return one


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return fake_source.layout(tmp_path)


@pytest.fixture
def prepare(layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Prepare:
    for tool in ("dpkg-deb", "patchelf"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not here")
    qemu, libc = tmp_path / "qemu", tmp_path / "libc"
    for path in (qemu / "usr/bin", qemu / "usr/share/qemu/keymaps", libc / _LIBRARIES):
        path.mkdir(parents=True)
    shutil.copy("/bin/echo", qemu / "usr/bin/qemu-system-x86_64")
    (qemu / "usr/share/qemu/bios-256k.bin").write_text("bios")
    (qemu / "usr/share/qemu/keymaps/en-us").write_text("keys")
    for name in ("ld-linux-x86-64.so.2", "libc.so.6"):
        shutil.copy(Path("/lib/x86_64-linux-gnu", name).resolve(), libc / _LIBRARIES / name)
    found = {
        name: _deb(layout, name, root)
        for name, root in (("qemu-system-x86", qemu), ("libc6", libc))
    }
    monkeypatch.setattr(debian, "closure", lambda *_, **__: list(found))
    monkeypatch.setattr(debian, "packages", lambda *_: found)
    monkeypatch.setattr(debian, "known", lambda *_: found)
    return lambda: packaged.prepare(layout, _ASKED)


def test_it_runs_with_its_own_loader_and_libraries(prepare: Prepare, layout: Layout) -> None:
    made = prepare()
    assert (made.version, made.packages["libc6"]) == ("1:9", "1:9")
    done = subprocess.run([made.qemu, "hello"], capture_output=True, text=True, check=True)
    assert done.stdout == "hello\n"
    traced = {**os.environ, "LD_TRACE_LOADED_OBJECTS": "1"}
    loaded = subprocess.run(
        [made.qemu], env=traced, capture_output=True, text=True, check=True
    ).stdout
    libraries = [line for line in loaded.splitlines() if "/" in line]
    assert len(libraries) == 2
    assert all(f"{layout.packaged}/" in line for line in libraries), loaded
    assert made.sha256 == fetch.sha256_of(Path("/bin/echo"))
    assert (made.firmware / "bios-256k.bin").read_text() == "bios"
    assert (made.firmware / "keymaps/en-us").read_text() == "keys"


def test_it_is_unpacked_once_and_again_where_it_was_damaged_or_moved(
    prepare: Prepare, layout: Layout, tmp_path: Path
) -> None:
    assert packaged.existing(layout, _ASKED) is None
    made = prepare()
    assert packaged.existing(layout, _ASKED) == made
    before = made.qemu.stat().st_mtime_ns
    assert prepare() == made
    assert made.qemu.stat().st_mtime_ns == before
    os.truncate(made.qemu, 3)
    assert prepare() == made
    subprocess.run([made.qemu], check=True, stdout=subprocess.DEVNULL)
    directory = made.firmware.parent
    directory.rename(tmp_path / "away")
    layout.packaged.mkdir(exist_ok=True)
    shutil.copytree(tmp_path / "away", layout.packaged / "elsewhere", symlinks=True)
    (layout.packaged / "elsewhere").rename(directory)
    assert prepare() == made  # by its marker it is where it was made
    (directory / "unpacked.json").write_text(
        (directory / "unpacked.json").read_text().replace(str(directory), "/another/cache")
    )
    assert packaged.existing(layout, _ASKED) is None
    assert prepare() == made


def test_without_patchelf_it_is_refused(prepare: Prepare, monkeypatch: pytest.MonkeyPatch) -> None:
    real = shutil.which
    monkeypatch.setattr(shutil, "which", lambda name: None if name == "patchelf" else real(name))
    with pytest.raises(CannotTellError) as caught:
        prepare()
    assert caught.value.hint == "apt-get install patchelf"


def test_a_distribution_is_named_by_its_suite() -> None:
    layout = Layout(CHECKOUT, CHECKOUT, CHECKOUT)
    found = naming.packaged(layout, "debian:12-backports")
    assert found is not None
    assert (found.name, found.suite) == ("debian:12-backports", "bookworm-backports")
    assert found.packages["x86_64"] == ("qemu-system-x86",)
    assert naming.packaged(layout, "stock:old") is None
    assert naming.pinned(layout, "debian:sid") == "debian:sid"
    assert not naming.is_built(layout, "debian:sid")
    with pytest.raises(UsageError) as caught:
        naming.check(layout, "debian:4")
    assert "debian:12, debian:12-backports, debian:13" in caught.value.hint
