# SPDX-License-Identifier: GPL-2.0-or-later
"""Guest images, from small packages made here: the same ingredients give the same bits."""

from __future__ import annotations

import lzma
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import needs
import pytest

from lab.base.errors import CannotTellError, PreconditionError, UsageError
from lab.base.layout import CHECKOUT, Layout
from lab.guest import compiler
from lab.guest import images as guest

KERNEL = "linux-image-9.9.9+deb99-cloud-amd64"
TREE = "usr/lib/modules/9.9.9"
TOML = """
[tiny]
description = "a guest of the tests"
suite = "trixie"
kernel = "linux-image-cloud-amd64"
packages = ["busybox-static"]
modules = ["virtio_pci", "virtio_net"]
append = "quiet"

[tiny.files]
"bin/busybox" = "usr/bin/busybox"
"""


def _module(*needs: str) -> bytes:
    return b"\x7fELF\0license=GPL\0depends=" + ",".join(needs).encode() + b"\0name=x\0"


class Mirror:
    """A directory of .deb files; fetches from it as lab.source.debian would."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def add(self, name: str, files: dict[str, bytes], depends: str = "") -> None:
        tree = self.directory / f"{name}.tree"
        shutil.rmtree(tree, ignore_errors=True)
        for path, content in files.items():
            (tree / path).parent.mkdir(parents=True, exist_ok=True)
            (tree / path).write_bytes(content)
        control = tree / "DEBIAN" / "control"
        control.parent.mkdir(parents=True)
        control.write_text(
            f"Package: {name}\nVersion: 9-1\nArchitecture: amd64\n"
            f"Maintainer: nobody <nobody@example.org>\nDescription: x\n"
            + (f"Depends: {depends}\n" if depends else "")
        )
        control.parent.chmod(0o755)
        target = self.directory / f"{name}.deb"
        subprocess.run(
            ["dpkg-deb", "-Znone", "--root-owner-group", "--build", tree, target],
            check=True,
            stdout=subprocess.DEVNULL,
        )

    def fetch(self, layout: Layout, suite: str, names: Sequence[str]) -> dict[str, Path]:
        assert suite == "trixie"
        return {name: self.directory / f"{name}.deb" for name in names}


@pytest.fixture
def mirror(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compile_once: Callable[..., None]
) -> Mirror:
    for tool in ("dpkg-deb", "cpio"):
        if not shutil.which(tool):
            pytest.skip(f"no {tool}")
    if reason := needs.static_c():
        pytest.skip(reason)
    monkeypatch.setattr(guest, "compile_agent", compile_once)
    directory = tmp_path / "mirror"
    directory.mkdir()
    made = Mirror(directory)
    made.add("linux-image-cloud-amd64", {}, depends=f"{KERNEL} (= 9-1)")
    made.add(
        KERNEL,
        {
            "boot/vmlinuz-9.9.9": b"kernel",
            f"{TREE}/modules.builtin": b"kernel/drivers/virtio/virtio-pci.ko\n",
            f"{TREE}/kernel/net/virtio_net.ko.xz": lzma.compress(_module("net-failover")),
            f"{TREE}/kernel/net/net_failover.ko.xz": lzma.compress(_module("failover")),
            f"{TREE}/kernel/net/failover.ko": _module(),
            f"{TREE}/kernel/net/dummy.ko": _module(),
        },
    )
    made.add("busybox-static", {"usr/bin/busybox": b"busybox"})
    return made


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    checkout = tmp_path / "checkout"
    shutil.copytree(CHECKOUT / "guests", checkout / "guests")
    (checkout / "guests" / "guests.toml").write_text(TOML)
    return Layout(checkout, tmp_path / "cache", tmp_path / "out")


def _build(layout: Layout, mirror: Mirror) -> guest.GuestImage:
    return guest.build("tiny", layout, lambda _text: None, fetch=mirror.fetch)


def _initrd(image: guest.GuestImage) -> Path:
    assert image.initrd is not None
    return image.initrd


def _members(image: guest.GuestImage) -> list[str]:
    with _initrd(image).open("rb") as archive:
        listed = subprocess.run(
            ["cpio", "--list", "--quiet"], stdin=archive, check=True, capture_output=True, text=True
        )
    return listed.stdout.split()


def _extract(image: guest.GuestImage, into: Path) -> None:
    into.mkdir()
    with _initrd(image).open("rb") as archive:
        subprocess.run(["cpio", "--extract", "--quiet"], stdin=archive, check=True, cwd=into)


def test_image_has_what_the_guest_asks_for(layout: Layout, mirror: Mirror, tmp_path: Path) -> None:
    image = _build(layout, mirror)
    assert (image.name, image.append) == ("tiny", "quiet")
    assert image.kernel.read_bytes() == b"kernel"
    assert image.packages == {KERNEL: "9-1", "busybox-static": "9-1"}, "no metapackage in it"
    assert _members(image) == [
        "bin",
        "bin/agent",
        "bin/busybox",
        "init",
        "modules",
        "modules/failover.ko",
        "modules/list",
        "modules/net_failover.ko",
        "modules/virtio_net.ko",
    ]
    root = tmp_path / "root"
    _extract(image, root)
    assert (root / "modules/list").read_text().split() == [
        "failover.ko",
        "net_failover.ko",
        "virtio_net.ko",
    ], "each after what it needs"
    assert (root / "modules/net_failover.ko").read_bytes() == _module("failover")
    assert os.access(root / "init", os.X_OK)
    assert str(tmp_path).encode() not in _initrd(image).read_bytes()


_OTHER = """
[other]
description = "a guest of another architecture"
architecture = "aarch64"
board = "virt"
cpu = "cortex-a72"
sources = "tiny"
suite = "trixie"
kernel = "linux-image-cloud-amd64"
packages = ["busybox-static"]
libraries = ["libc6-dev"]
modules = []
append = "quiet"

[other.files]
"bin/busybox" = "usr/bin/busybox"
"""


def test_a_guest_of_another_architecture_is_made_of_its_packages(
    layout: Layout, mirror: Mirror, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the agent is compiled by that compiler, with their libraries."""
    (layout.guests / "guests.toml").write_text(TOML + _OTHER)
    mirror.add("libc6-dev", {"usr/include/stdio.h": b""})
    fetched, compiled = [], []

    def fetch(layout: Layout, suite: str, names: list[str], architecture: str) -> dict[str, Path]:
        fetched.append((architecture, *names))
        return mirror.fetch(layout, suite, names)

    def compile_agent(_source: Path, target: Path, *, compiler: str, extra: list[str]) -> None:
        sysroot = Path(extra[0].removeprefix("--sysroot="))
        assert f"-B{sysroot}/usr/lib/aarch64-linux-gnu" in extra
        assert (sysroot / "usr" / "include" / "stdio.h").is_file()
        compiled.append(compiler)
        target.write_bytes(b"agent")

    monkeypatch.setattr(guest, "compile_agent", compile_agent)
    monkeypatch.setattr(compiler, "version", lambda name: f"{name} 1.0")
    real, there = shutil.which, ["aarch64-linux-gnu-gcc"]

    def which(name: str, **how: str) -> str | None:
        return next(iter(there), None) if name.endswith("-gcc") else real(name, **how)

    monkeypatch.setattr(compiler.shutil, "which", which)
    image = guest.build("other", layout, lambda _text: None, fetch=fetch)
    assert image.cpu == "cortex-a72"
    assert compiled == ["aarch64-linux-gnu-gcc"]
    wanted = ("linux-image-cloud-amd64", "busybox-static", "libc6-dev")
    assert fetched == [("arm64", *wanted), ("arm64", KERNEL)]
    assert guest.plain(layout) == ["tiny"], "it takes more than packages.txt must have"

    monkeypatch.setattr(
        compiler.shutil, "which", lambda name: None if "gcc" in name else real(name)
    )
    with pytest.raises(PreconditionError, match="no compiler for guests of aarch64") as caught:
        guest.build("other", layout, lambda _text: None, fetch=fetch)
    assert caught.value.hint == "apt-get install gcc-aarch64-linux-gnu"


def test_same_ingredients_same_bits(
    layout: Layout, mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()  # the compiler's bits are what it is about
    first = _build(layout, mirror)
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(layout.checkout, elsewhere)
    for path in elsewhere.rglob("*"):
        os.utime(path, (1, 1))
    before = os.umask(0o077)
    try:
        second = _build(Layout(elsewhere, tmp_path / "cache2", tmp_path), mirror)
    finally:
        os.umask(before)
    assert first.key == second.key
    assert first.sha256s == second.sha256s
    assert _initrd(first).read_bytes() == _initrd(second).read_bytes()
    assert first.initrd != second.initrd


def test_second_build_comes_from_the_cache(layout: Layout, mirror: Mirror) -> None:
    first = _build(layout, mirror)
    inode = _initrd(first).stat().st_ino
    assert _build(layout, mirror) == first
    assert _initrd(first).stat().st_ino == inode


def test_damaged_image_is_built_again(layout: Layout, mirror: Mirror) -> None:
    image = _build(layout, mirror)
    _initrd(image).write_bytes(b"cut short")
    again = _build(layout, mirror)
    assert again == image
    assert "init" in _members(again)


@pytest.mark.parametrize("change", ["agent", "init", "append", "package", "kernel"])
def test_key_changes_with_every_ingredient(layout: Layout, mirror: Mirror, change: str) -> None:
    before = _build(layout, mirror)
    match change:
        case "agent":
            with (layout.guests / "agent" / "main.c").open("a") as file:
                file.write("/* changed */\n")
        case "init":
            with (layout.guests / "tiny" / "init").open("a") as file:
                file.write("# changed\n")
        case "append":
            (layout.guests / "guests.toml").write_text(TOML.replace("quiet", "loud"))
        case "package":
            mirror.add("busybox-static", {"usr/bin/busybox": b"another"})
        case "kernel":
            mirror.add(
                KERNEL,
                {
                    "boot/vmlinuz-9.9.9": b"other",
                    f"{TREE}/modules.builtin": b"virtio_net.ko virtio_pci.ko",
                },
            )
    assert _build(layout, mirror).key != before.key


def test_concurrent_builds_make_one_image(layout: Layout, mirror: Mirror) -> None:
    with ThreadPoolExecutor(3) as pool:
        images = list(pool.map(lambda _: _build(layout, mirror), range(3)))
    assert images[0] == images[1] == images[2]
    assert {path.name for path in layout.images.iterdir()} == {
        images[0].key,
        f"{images[0].key}.lock",
    }, "nothing half made is left"


def test_what_is_not_there_is_named(layout: Layout, mirror: Mirror) -> None:
    with pytest.raises(UsageError, match="no guest 'big'"):
        guest.build("big", layout, lambda _text: None, fetch=mirror.fetch)
    toml = layout.guests / "guests.toml"
    toml.write_text(TOML.replace("virtio_net", "virtio_warp"))
    with pytest.raises(CannotTellError, match="no module virtio_warp"):
        _build(layout, mirror)
    toml.write_text(TOML.replace("usr/bin/busybox", "usr/bin/nothing"))
    with pytest.raises(CannotTellError, match="usr/bin/nothing"):
        _build(layout, mirror)
    assert not [path for path in layout.images.iterdir() if path.suffix != ".lock"]


def test_unknown_key_is_named(layout: Layout, mirror: Mirror) -> None:
    (layout.guests / "guests.toml").write_text(TOML.replace("append", "apend"))
    with pytest.raises(UsageError, match=r"tiny\.linux\.apend"):
        _build(layout, mirror)


def test_agent_that_does_not_compile_says_so(layout: Layout, mirror: Mirror) -> None:
    (layout.guests / "agent" / "main.c").write_text("int main(void) { return nothing; }\n")
    with pytest.raises(CannotTellError, match="nothing"):
        _build(layout, mirror)


def test_the_guests_we_ship_are_well_formed() -> None:
    layout = Layout(CHECKOUT, Path("unused"), Path("unused"))
    for name, one in guest.load_guests(layout).items():
        assert one.description
        assert one.smallest_ram_mib > one.reserve_mib
        if isinstance(one, guest.LinuxGuest):
            assert os.access(layout.guests / (one.sources or name) / "init", os.X_OK)
        else:
            assert all((layout.guests / source).is_file() for source in one.shared)


def test_init_is_clean_shell() -> None:
    init = CHECKOUT / "guests" / "tiny" / "init"
    subprocess.run(["sh", "-n", init], check=True)


def test_meson_builds_every_guest() -> None:
    default = Layout.default()
    text = (default.checkout / "meson.build").read_text()
    listed = re.findall(r"guest_names \+?= (.*)", text)
    names = re.findall(r"'([\w-]+)'", " ".join(listed))
    assert sorted(names) == sorted(guest.load_guests(default))
