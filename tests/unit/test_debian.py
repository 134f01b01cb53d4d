# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import hashlib
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import fake_source
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lab.base import process
from lab.base.errors import CannotTellError
from lab.base.layout import Layout
from lab.pair import firmware
from lab.source import debian
from lab.source import mirror as mirrors
from lab.source.debian import Package
from lab.source.mirror import pick_mirror

_DEBIAN = {"ID": "debian", "VERSION_CODENAME": "trixie", "HOME_URL": "https://www.archive.test/"}
_APT_GET = r"""#!/bin/sh
echo "apt-get $*" >>"$STUB/log"
if [ -e "$STUB/broken" ]; then
    echo "Err:1 something"
    echo "E: Failed to fetch http://mirror.test/x  Could not resolve 'mirror.test'"
    exit 100
fi
case "$*" in
    update*) ;;
    *--print-uris*)
        while [ "${1#-}" != "$1" ] || [ "$1" = install ] || [ "$1" = download ]; do shift; done
        for word; do
            cat "$STUB/pool/$word.line" 2>/dev/null || {
                echo "E: Unable to locate package $word"
                exit 100
            }
        done ;;
    download*)
        for word; do
            name=${word%%=*}
            cp "$STUB"/pool/"${name}"_*.deb . 2>/dev/null || :
        done ;;
    source*) cp "$STUB"/source/* . ;;
esac
"""
_APT_CONFIG = r"""#!/bin/sh
echo 'Acquire::http::Proxy "http://proxy.test:3128";'
echo 'APT::Update::Post-Invoke:: "rm -f /everything";'
"""


@dataclass
class Archive:
    root: Path

    def add(self, name: str, version: str, content: bytes = b"a package") -> Path:
        file = f"{name}_{version.replace(':', '%3a')}_all.deb"
        pool = self.root / "pool"
        (pool / file).write_bytes(content)
        sum_ = hashlib.sha256(content).hexdigest()
        line = f"'http://mirror.test/{file}' {file} {len(content)} SHA256:{sum_}\n"
        (pool / f"{name}.line").write_text(line)
        return pool / file

    def did(self, what: str) -> int:
        log = self.root / "log"
        lines = log.read_text().splitlines() if log.exists() else []
        return sum(line.startswith(f"apt-get {what}") for line in lines)

    def breaks(self) -> None:
        (self.root / "broken").touch()


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Archive:
    root = tmp_path / "stub"
    for name in ("bin", "pool", "source"):
        (root / name).mkdir(parents=True)
    for name, text in (("apt-get", _APT_GET), ("apt-config", _APT_CONFIG)):
        (root / "bin" / name).write_text(text)
        (root / "bin" / name).chmod(0o755)
    keyring = root / "keyring.gpg"
    keyring.touch()
    monkeypatch.setattr(debian, "_KEYRINGS", (root / "no.pgp", keyring))
    monkeypatch.setenv("PATH", f"{root / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("STUB", str(root))
    monkeypatch.setenv("PAGEFLIP_MIRROR", "http://mirror.test/debian")
    return Archive(root)


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return fake_source.layout(tmp_path)


def test_packages_are_fetched_once(layout: Layout, archive: Archive) -> None:
    archive.add("one", "1:2-3")
    archive.add("two", "4")
    found = debian.fetch_packages(layout, "trixie", ["one", "two", "one"])
    assert list(found) == ["one", "two"]
    assert found["one"].name == "one_1%3a2-3_all.deb"
    assert found["one"].read_bytes() == b"a package"
    assert found["one"].is_relative_to(layout.downloads)
    assert (archive.did("update"), archive.did("download")) == (1, 2)  # one lists, one fetches
    assert debian.packages(layout, "trixie", ["one"])["one"].version == "1:2-3"
    assert archive.did("") == 3


def test_what_is_there_needs_no_network(layout: Layout, archive: Archive) -> None:
    archive.add("one", "1")
    found = debian.fetch_packages(layout, "trixie", ["one"])
    archive.breaks()
    assert debian.fetch_packages(layout, "trixie", ["one"]) == found
    with pytest.raises(CannotTellError, match=r"Could not resolve 'mirror\.test'"):
        debian.fetch_packages(layout, "trixie", ["one", "two"])


def test_the_same_package_stays_until_the_cache_goes(layout: Layout, archive: Archive) -> None:
    archive.add("one", "1", b"old")
    debian.fetch_packages(layout, "trixie", ["one"])
    archive.add("one", "2", b"new")
    assert debian.packages(layout, "trixie", ["one"])["one"].version == "1"
    shutil.rmtree(layout.cache)
    assert debian.packages(layout, "trixie", ["one"])["one"].version == "2"


def test_lists_are_read_once_a_day_and_for_each_mirror(
    layout: Layout, archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("one", "two", "three", "four"):
        archive.add(name, "1")
    debian.fetch_packages(layout, "trixie", ["one"])
    debian.fetch_packages(layout, "trixie", ["two"])
    assert archive.did("update") == 1
    old = time.time() - 25 * 3600
    os.utime(layout.apt / "updated", (old, old))
    debian.fetch_packages(layout, "trixie", ["three"])
    assert archive.did("update") == 2
    monkeypatch.setenv("PAGEFLIP_MIRROR", "http://other.test/debian")
    debian.fetch_packages(layout, "trixie", ["four"])
    assert archive.did("update") == 3


def test_many_packages_are_fetched_in_batches(layout: Layout, archive: Archive) -> None:
    names = [f"p{number}" for number in range(45)]
    for name in names:
        archive.add(name, "1", name.encode())
    found = debian.fetch_packages(layout, "bookworm", names)
    assert {name: path.read_bytes().decode() for name, path in found.items()} == dict(
        zip(names, names, strict=True)
    )
    assert archive.did("download") == 1 + 3  # one lists, three fetch


def test_architectures_do_not_mix(layout: Layout, archive: Archive) -> None:
    """And all of a suite's are forgotten together."""
    archive.add("one", "1")
    debian.fetch_packages(layout, "trixie", ["one"])
    archive.add("one", "2")
    debian.fetch_packages(layout, "trixie", ["one"], "arm64")
    versions = [
        debian.packages(layout, "trixie", ["one"], its)["one"].version for its in ("amd64", "arm64")
    ]
    assert versions == ["1", "2"]
    settings = (layout.apt / "trixie-arm64" / "apt.conf").read_text()
    assert 'APT::Architecture "arm64";' in settings
    sources = (layout.apt / "trixie-arm64" / "pageflip.sources").read_text()
    assert "Suites: trixie\n" in sources
    assert "deb-src" not in sources
    archive.add("one", "3")
    debian.forget(layout, "trixie")
    versions = [
        debian.packages(layout, "trixie", ["one"], its)["one"].version for its in ("amd64", "arm64")
    ]
    assert versions == ["3", "3"]


def test_suites_do_not_mix(layout: Layout, archive: Archive) -> None:
    archive.add("one", "1")
    debian.fetch_packages(layout, "trixie", ["one"])
    archive.add("one", "2")
    debian.fetch_packages(layout, "bookworm", ["one"])
    versions = [debian.packages(layout, s, ["one"])["one"].version for s in ("trixie", "bookworm")]
    assert versions == ["1", "2"]
    assert "Suites: bookworm\n" in (layout.apt / "bookworm" / "pageflip.sources").read_text()
    assert "bookworm" not in (layout.apt / "pageflip.sources").read_text()


def test_what_a_system_consists_of_stays(layout: Layout, archive: Archive) -> None:
    for name in ("?essential", "top"):
        archive.add(name, "1")
    pool = archive.root / "pool"
    (pool / "top.line").write_text(
        "".join(
            f"'http://mirror.test/{name}_1_all.deb' {name}_1%3a2-3_all.deb 7 MD5Sum:00\n"
            for name in ("top", "libc6", "g++-12")
        )
    )
    assert debian.closure(layout, "bookworm", ["top"]) == ["g++-12", "libc6", "top"]
    archive.breaks()
    assert debian.closure(layout, "bookworm", ["top"]) == ["g++-12", "libc6", "top"]
    with pytest.raises(CannotTellError, match="what other of bookworm need"):
        debian.closure(layout, "bookworm", ["other"])


def test_a_bad_package_in_the_cache_is_fetched_again(
    layout: Layout, archive: Archive, capsys: pytest.CaptureFixture[str]
) -> None:
    archive.add("one", "1")
    path = debian.fetch_packages(layout, "trixie", ["one"])["one"]
    path.write_bytes(b"A package")
    again = debian.fetch_packages(layout, "trixie", ["one"])["one"]
    assert again.read_bytes() == b"a package"
    assert "refused" in capsys.readouterr().err


def test_a_package_that_is_not_what_apt_said_is_refused(layout: Layout, archive: Archive) -> None:
    archive.add("one", "1").write_bytes(b"other")
    with pytest.raises(CannotTellError, match="refused"):
        debian.fetch_packages(layout, "trixie", ["one"])
    assert not (layout.apt / "packages-trixie.json").exists()


def test_an_unknown_package_is_told(layout: Layout, archive: Archive) -> None:
    with pytest.raises(CannotTellError, match="Unable to locate package nonesuch"):
        debian.fetch_packages(layout, "trixie", ["nonesuch"])
    assert archive.did("download") == 1


def test_the_root_is_ours_and_takes_only_the_way_out(layout: Layout, archive: Archive) -> None:
    archive.add("one", "1")
    debian.fetch_packages(layout, "trixie", ["one"])
    settings = (layout.apt / "apt.conf").read_text()
    assert 'Acquire::http::Proxy "http://proxy.test:3128";' in settings
    assert "Post-Invoke" not in settings
    for key in ("Dir::State", "Dir::Cache", "Dir::State::lists", "Dir::Etc::sourcelist"):
        assert f'{key} "{layout.apt}' in settings
    sources = (layout.apt / "pageflip.sources").read_text()
    assert sources.count("URIs: http://mirror.test/debian\n") == 2
    assert sources.count(f"Signed-By: {archive.root / 'keyring.gpg'}\n") == 2
    assert "Types: deb deb-src\nSuites: trixie\n" in sources


def test_real_apt_reads_the_root(layout: Layout, archive: Archive) -> None:
    archive.add("one", "1")
    debian.fetch_packages(layout, "trixie", ["one"])
    real = shutil.which("apt-config", path="/usr/bin")
    if real is None:
        pytest.skip("no apt here")
    dump = process.run([real, "dump"], env={"APT_CONFIG": str(layout.apt / "apt.conf")}).stdout
    assert f'Dir::State::lists "{layout.apt}/lists";' in dump
    assert "rm -f /everything" not in dump
    assert 'Dir::Etc::parts "/dev/null";' in dump


def test_without_the_keys_nothing_is_fetched(
    layout: Layout, archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(debian, "_KEYRINGS", ())
    with pytest.raises(CannotTellError, match="keys") as caught:
        debian.fetch_packages(layout, "trixie", ["one"])
    assert "debian-archive-keyring" in caught.value.hint
    assert archive.did("") == 0


def test_a_source_package(layout: Layout, archive: Archive, tmp_path: Path) -> None:
    fake = fake_source.make(archive.root / "source" / "x")
    for path in fake.directory.iterdir():
        path.rename(archive.root / "source" / path.name)
    fake.directory.rmdir()
    into = tmp_path / "into"
    into.mkdir()
    assert fake.release.debian
    found = debian.fetch_source(layout, fake.release.debian, into)
    assert set(found) == {file.name for file in fake.release.debian.files}
    log = (archive.root / "log").read_text()
    assert "--download-only" in log
    assert log.rstrip().endswith("qemu=1:9.9.9+ds-1")


def test_firmware_is_collected_from_the_packages(layout: Layout, archive: Archive) -> None:
    if not shutil.which("dpkg-deb"):
        pytest.skip("no dpkg here")
    files = {
        "seabios": ("usr/share/seabios", ["bios-256k.bin", "vgabios-isavga.bin"]),
        "ipxe-qemu": ("usr/lib/ipxe/qemu", ["efi-virtio.rom"]),
        "qemu-system-data": ("usr/share/qemu", ["kvmvapic.bin", "skiboot.lid"]),
    }
    for name, (directory, names) in files.items():
        root = archive.root / name
        (root / "DEBIAN").mkdir(parents=True)
        (root / "DEBIAN" / "control").write_text(
            f"Package: {name}\nVersion: 1\nArchitecture: all\nMaintainer: x <x@y>\nDescription: x\n"
        )
        (root / directory).mkdir(parents=True)
        for one in names:
            (root / directory / one).write_text(one)
        if name == "seabios":
            (root / directory / "vgabios.bin").symlink_to("vgabios-isavga.bin")
        deb = archive.root / "made.deb"
        process.run(["dpkg-deb", "--root-owner-group", "--build", root, deb])
        archive.add(name, "1", deb.read_bytes())
    found = firmware.prepare(layout)
    assert {path.name for path in found.iterdir()} == {
        "bios-256k.bin",
        "vgabios-isavga.bin",
        "vgabios.bin",
        "efi-virtio.rom",
        "kvmvapic.bin",
    }
    assert (found / "vgabios.bin").read_text() == "vgabios-isavga.bin"
    archive.breaks()
    assert firmware.prepare(layout) == found


def test_firmware_of_an_upstream_source_serves_where_debians_cannot_be_had(
    layout: Layout, archive: Archive, tmp_path: Path
) -> None:
    archive.breaks()
    with pytest.raises(CannotTellError, match=r"mirror\.test"):
        firmware.prepare(layout)
    (tmp_path / "pc-bios").mkdir()
    (tmp_path / "pc-bios" / "bios-256k.bin").write_text("bios")
    firmware.keep_upstream(layout, tmp_path)
    assert (firmware.prepare(layout) / "bios-256k.bin").read_text() == "bios"


_LISTED = """\
https://third.test/apt/ trixie main origin=Third
http://cd.test/x trixie main
http://sec.test/debian-security/ trixie-security main origin=Debian
http://mirror.test/debian/ trixie-updates main origin=Debian
http://other.test/debian/ trixie contrib origin=Debian
http://mirror.test/debian/ trixie main origin=Debian
"""


def test_the_mirror_is_the_one_that_this_machine_uses() -> None:
    assert pick_mirror(_LISTED, _DEBIAN) == "http://mirror.test/debian"


@pytest.mark.parametrize("origin", ["", "$(ORIGIN)"])
def test_before_the_first_update_debian_itself_is_believed(origin: str) -> None:
    listed = f"http://mirror.test/debian trixie main origin={origin}\n"
    assert pick_mirror(listed, _DEBIAN) == "http://mirror.test/debian"
    assert pick_mirror(listed, {**_DEBIAN, "ID": "ubuntu"}) is None


def test_no_mirror_says_how_to_name_one(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    assert archive
    monkeypatch.delenv("PAGEFLIP_MIRROR")
    with pytest.raises(CannotTellError) as caught:
        mirrors.mirror()
    assert "PAGEFLIP_MIRROR" in caught.value.hint


def test_where_the_snapshot_archive_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PAGEFLIP_SNAPSHOT", raising=False)
    assert mirrors.snapshot_base(_DEBIAN) == "https://snapshot.archive.test"
    for host in ({}, {**_DEBIAN, "ID": "ubuntu"}, {"ID": "debian"}):
        with pytest.raises(CannotTellError, match="does not say"):
            mirrors.snapshot_base(host)
    monkeypatch.setenv("PAGEFLIP_SNAPSHOT", "http://here.test/")
    assert mirrors.snapshot_base({}) == "http://here.test"


@given(st.text())
@example('ID=debian\nHOME_URL="https://x/"\n')
def test_os_release_is_read_whatever_is_in_it(text: str) -> None:
    found = mirrors.os_release(text)
    assert all(key and "=" not in key for key in found)


@given(st.text())
def test_what_apt_lists_is_read_whatever_it_is(text: str) -> None:
    assert debian.parse_uris(text) == []
    assert pick_mirror(text, {}) is None


_NAME = st.from_regex(r"[a-z][a-z0-9.+-]{1,20}", fullmatch=True)
_VERSION = st.from_regex(r"([0-9]:)?[0-9][0-9A-Za-z.+~-]{0,20}", fullmatch=True)


@given(_NAME, _VERSION, st.integers(1, 10**12), st.binary())
def test_uris_are_read_back(name: str, version: str, size: int, content: bytes) -> None:
    sum_ = hashlib.sha256(content).hexdigest()
    file = f"{name}_{version.replace(':', '%3a')}_amd64.deb"
    line = f"'http://mirror.test/pool/{file}' {file} {size} SHA256:{sum_}"
    assert debian.parse_uris(f"noise\n{line}\n") == [Package(name, version, file, size, sum_)]
