# SPDX-License-Identifier: GPL-2.0-or-later
"""The guest with a disk: what it is made with, what is on it, and what is wrong with it."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from test_cmdline import OLD, successor
from test_images import KERNEL, Mirror

from lab.base.errors import PreconditionError
from lab.base.layout import CHECKOUT, Layout
from lab.guest import disk, images, rootfs
from lab.workloads.scripted import told

SBIN = "/usr/sbin:/sbin"


def test_what_is_missing_is_named_with_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "debian"
    source.mkdir()
    (source / "packages.txt").write_text("# none\nsh  sh  there\nnosuch  no-such-program  absent\n")
    with pytest.raises(PreconditionError) as error:
        rootfs.require(source)
    assert "guest debian cannot be made here without nosuch" in error.value.message
    assert error.value.hint == "apt-get install nosuch"
    (source / "packages.txt").write_text("sh  sh  there\n")
    rootfs.require(source)


def test_programs_in_sbin_are_found_by_who_has_it_not_on_the_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    source = tmp_path / "debian"
    source.mkdir()
    (source / "packages.txt").write_text("util-linux  blkid  something in sbin\n")
    if not shutil.which("blkid", path=SBIN):
        pytest.skip("no blkid")
    rootfs.require(source)


def test_versions_are_in_the_files_names() -> None:
    debs = {"dbus": Path("/d/dbus_1.14-1_amd64.deb"), "perl": Path("/d/perl_1%3a5-2_all.deb")}
    assert rootfs.versions(debs) == {"dbus": "1.14-1", "perl": "1:5-2"}


def test_the_index_lists_every_package_with_its_checksum(tmp_path: Path) -> None:
    if not shutil.which("dpkg-deb"):
        pytest.skip("no dpkg-deb")
    (tmp_path / "mirror").mkdir()
    mirror = Mirror(tmp_path / "mirror")
    for name in ("one", "two"):
        mirror.add(name, {"etc/x": b"x"})
    rootfs._repository(tmp_path / "repo", "trixie", mirror.fetch(None, "trixie", ["one", "two"]))  # type: ignore[arg-type]
    index = (tmp_path / "repo" / "Packages").read_text()
    first, second = index.split("\n\n")
    assert first.startswith("Package: one\n")
    assert second.startswith("Package: two\n")
    listed = subprocess.run(
        ["sha256sum", tmp_path / "repo" / "two.deb"], capture_output=True, text=True, check=True
    )
    assert f"Filename: ./two.deb\nSize: {(tmp_path / 'repo' / 'two.deb').stat().st_size}" in second
    assert f"SHA256: {listed.stdout.split()[0]}" in second


def test_an_image_has_the_disk_and_its_packages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compile_once: Callable[..., None]
) -> None:
    for tool in ("dpkg-deb", "cpio", "cc"):
        if not shutil.which(tool):
            pytest.skip(f"no {tool}")
    (tmp_path / "mirror").mkdir()
    mirror = Mirror(tmp_path / "mirror")
    mirror.add("linux-image-cloud-amd64", {}, depends=KERNEL)
    tree = {"boot/vmlinuz-9": b"kernel", "usr/lib/modules/9/modules.builtin": b""}
    mirror.add(KERNEL, tree)
    mirror.add("busybox-static", {"usr/bin/busybox": b"busybox"})
    for version in ("1", "2"):
        mirror.add("dbus", {"etc/x": version.encode()})
        shutil.copy(mirror.directory / "dbus.deb", mirror.directory / f"dbus_{version}_all.deb")
    checkout = tmp_path / "checkout"
    shutil.copytree(CHECKOUT / "guests", checkout / "guests")
    (checkout / "guests/debian/packages.txt").write_text("")
    (checkout / "guests/guests.toml").write_text(
        '[debian]\ndescription = "x"\nsuite = "trixie"\nkernel = "linux-image-cloud-amd64"\n'
        'packages = ["busybox-static"]\nmodules = []\nappend = "quiet"\n'
        '[debian.files]\n"bin/busybox" = "usr/bin/busybox"\n'
        '[debian.system]\npackages = ["dbus"]\nsize_mib = 64\nepoch = 1\n'
    )
    layout = Layout(checkout, tmp_path / "cache", tmp_path / "out")
    version = "1"

    def fetch(layout: Layout, suite: str, names: list[str]) -> dict[str, Path]:
        found = mirror.fetch(layout, suite, names)
        return {
            name: path.with_name(f"dbus_{version}_all.deb") if name == "dbus" else path
            for name, path in found.items()
        }

    def make(_source, system, suite, debs, agent, target) -> None:  # type: ignore[no-untyped-def]
        assert (system.size_mib, suite, list(debs)) == (64, "trixie", ["dbus"])
        assert agent.is_file()
        target.write_bytes(debs["dbus"].read_bytes())

    monkeypatch.setattr(images, "compile_agent", compile_once)
    monkeypatch.setattr(rootfs, "build", make)
    monkeypatch.setattr(rootfs, "tools", lambda: ["tool 1"])

    def build() -> images.GuestImage:
        return images.build(
            "debian",
            layout,
            lambda _text: None,
            fetch=fetch,
            closure=lambda _layout, _suite, names: names,
        )

    image = build()
    assert image.disk is not None
    assert image.packages["dbus"] == "1"
    assert build() == image
    image.disk.write_bytes(b"damaged")
    again = build()
    assert again == image
    assert again.disk is not None
    assert again.disk.read_bytes() != b"damaged"
    version = "2"
    assert build().key != image.key


def test_a_disk_is_on_the_command_line_of_both() -> None:
    old = dataclasses.replace(OLD, disk=Path("/s/disk.qcow2"))
    words = old.argv()
    assert '"filename": "/s/disk.qcow2"' in words[words.index("-blockdev") + 1]
    assert "virtio-blk-pci,drive=disk" in words
    assert any("org.qemu.guest_agent.0" in word for word in words)
    assert "-blockdev" not in OLD.argv()
    new = successor(disk=old.disk).argv()
    assert new[new.index("-blockdev") + 1] == words[words.index("-blockdev") + 1]


def test_a_console_is_the_terminal() -> None:
    words = dataclasses.replace(OLD, console=True).argv()
    assert words[words.index("-serial") + 1] == "mon:stdio"


def test_a_damaged_file_system_is_seen_from_outside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for tool in ("mke2fs", "debugfs", "e2fsck", "qemu-img"):
        if not shutil.which(tool, path=f"{SBIN}:/usr/bin:/bin"):
            pytest.skip(f"no {tool}")
    monkeypatch.setenv("PATH", "/usr/bin:/bin")  # an ordinary user's
    raw, base = tmp_path / "raw", tmp_path / "base"
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "file").write_text("x")

    def do(*words: str | Path) -> None:
        subprocess.run(words, check=True, capture_output=True)

    mke2fs, debugfs = (shutil.which(one, path=SBIN) or "" for one in ("mke2fs", "debugfs"))
    do(mke2fs, "-q", "-t", "ext4", "-d", tree, raw, "8M")
    do("qemu-img", "convert", "-O", "qcow2", raw, base)
    assert disk.overlay(None, tmp_path) is None
    made = disk.overlay(base, tmp_path)
    assert made is not None
    assert disk.damage(made) == []
    do(debugfs, "-w", "-R", "sif /file links_count 5", raw)
    do("qemu-img", "convert", "-O", "qcow2", raw, made)
    (found,) = disk.damage(made)
    assert found.startswith("e2fsck: ")
    made.write_bytes(b"no qcow2")
    (found,) = disk.damage(made)
    assert found.startswith("qemu-img check: ")


def test_what_a_script_in_the_guest_tells() -> None:
    figures, problems = told("figure rows 5\nnoise\nproblem  two words \nfigure odd\nproblem\n")
    assert figures == {"rows": 5}
    assert problems == ["two words", ""]
