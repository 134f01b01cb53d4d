# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import hashlib
import os
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fake_source
import pytest

from lab.base.errors import CannotTellError, RefusedError, UsageError
from lab.base.layout import Layout
from lab.source import debian, fetch
from lab.source.gnupatch import PatchError
from lab.source.resolve import Kind, Source, resolve, unpack

_NOWHERE = "http://127.0.0.1:1"


@pytest.fixture
def layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Layout:
    """A layout of our own, and a world in which nothing can be reached."""
    monkeypatch.delenv("PAGEFLIP_SOURCES", raising=False)
    monkeypatch.setenv("PAGEFLIP_SNAPSHOT", _NOWHERE)

    def unreachable(*_: object) -> dict[str, Path]:
        raise CannotTellError("the mirror cannot be reached")

    monkeypatch.setattr(debian, "fetch_source", unreachable)
    return fake_source.layout(tmp_path)


@pytest.fixture
def fake(tmp_path: Path) -> fake_source.FakeSource:
    return fake_source.make(tmp_path / "theirs")


def _resolve(layout: Layout, fake: fake_source.FakeSource, url: str = _NOWHERE) -> Source:
    return resolve(layout, fake.release, url)


def _flip_one_byte(path: Path) -> str:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    return hashlib.sha256(content).hexdigest()


def _left_in(directory: Path) -> list[str]:
    if not directory.exists():
        return []
    return [path.name for path in directory.rglob("*") if path.is_file() and path.suffix != ".lock"]


def test_a_directory_of_the_users_then_the_cache(
    layout: Layout, fake: fake_source.FakeSource, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PAGEFLIP_SOURCES", str(fake.directory))
    first = _resolve(layout, fake)
    assert first.kind is Kind.DEBIAN
    assert first.origin == f"PAGEFLIP_SOURCES={fake.directory}"
    assert first.record()["sha256"] == {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in (fake.orig, fake.packaging)
    }
    monkeypatch.delenv("PAGEFLIP_SOURCES")
    second = _resolve(layout, fake)
    assert second.origin == "cache"
    assert second.key == first.key
    unpack(second, tmp_path / "tree")
    assert "# line two, by Debian" in (tmp_path / "tree" / "emulator.sh").read_text()
    assert (tmp_path / "tree" / "debian" / "patches" / "series").is_file()


@pytest.mark.parametrize("which", ["orig", "packaging"])
def test_one_byte_flipped_is_refused_by_name_with_both_hashes(
    layout: Layout, fake: fake_source.FakeSource, monkeypatch: pytest.MonkeyPatch, which: str
) -> None:
    monkeypatch.setenv("PAGEFLIP_SOURCES", str(fake.directory))
    path: Path = getattr(fake, which)
    expected = hashlib.sha256(path.read_bytes()).hexdigest()
    found = _flip_one_byte(path)
    with pytest.raises(RefusedError) as caught:
        _resolve(layout, fake)
    for words in (str(path), expected, found):
        assert words in caught.value.message
    assert caught.value.exit_code == 3
    assert path.name not in _left_in(layout.cache)
    assert not layout.trees.exists()


def test_a_bad_file_in_the_cache_is_named_removed_and_fetched_again(
    layout: Layout,
    fake: fake_source.FakeSource,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("PAGEFLIP_SOURCES", str(fake.directory))
    kept = next(path for path in _resolve(layout, fake).files if ".orig." in path.name)
    found = _flip_one_byte(kept)
    again = _resolve(layout, fake)
    assert again.origin.startswith("PAGEFLIP_SOURCES")
    said = capsys.readouterr().err
    assert str(kept) in said
    assert found in said
    assert hashlib.sha256(kept.read_bytes()).hexdigest() in said
    _flip_one_byte(kept)
    monkeypatch.delenv("PAGEFLIP_SOURCES")
    with pytest.raises(CannotTellError, match="nowhere to be had"):
        _resolve(layout, fake)
    assert not kept.exists()


def test_when_nobody_has_it_every_place_and_its_reason_is_told(
    layout: Layout, fake: fake_source.FakeSource
) -> None:
    with pytest.raises(CannotTellError) as caught:
        _resolve(layout, fake)
    lines = caught.value.message.splitlines()[1:]
    assert [line.split(":")[0].strip() for line in lines] == [
        "cache",
        "a directory of yours",
        "submodule",
        "Debian source package",
        "Debian's snapshot archive",
        "upstream tarball",
    ]
    assert "the mirror cannot be reached" in lines[3]
    assert "Connection refused" in lines[4]
    assert "not known here" in lines[5]
    assert "PAGEFLIP_SOURCES" in caught.value.hint


def test_a_directory_that_is_not_there_is_wrong_usage(
    layout: Layout, fake: fake_source.FakeSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PAGEFLIP_SOURCES", "/nowhere")
    with pytest.raises(UsageError, match="/nowhere"):
        _resolve(layout, fake)


def test_the_debian_package_is_checked_against_what_was_pinned(
    layout: Layout,
    fake: fake_source.FakeSource,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def served(_layout: Layout, package: object, into: Path) -> dict[str, Path]:
        assert package == fake.release.debian
        return {path.name: path for path in fake.directory.iterdir()}

    monkeypatch.setattr(debian, "fetch_source", served)
    _flip_one_byte(fake.packaging)
    with pytest.raises(CannotTellError, match="nowhere to be had"):
        _resolve(layout, fake)
    assert "refused" in capsys.readouterr().err
    fake_again = fake_source.make(fake.directory.with_name("again"))
    for path in fake_again.directory.iterdir():
        path.replace(fake.directory / path.name)
    assert _resolve(layout, fake).origin == "Debian sid"


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    root = tmp_path / "www"
    (root / "file").mkdir(parents=True)
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(root)))
    thread = threading.Thread(target=httpd.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{httpd.server_port}", root
    httpd.shutdown()
    thread.join()
    httpd.server_close()


def _publish(root: Path, path: Path) -> Path:
    target = root / "file" / hashlib.sha1(path.read_bytes()).hexdigest()
    target.write_bytes(path.read_bytes())
    return target


def test_the_snapshot_archive_serves_by_hash(
    layout: Layout,
    fake: fake_source.FakeSource,
    server: tuple[str, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    base, root = server
    monkeypatch.setenv("PAGEFLIP_SNAPSHOT", base)
    for path in (fake.orig, fake.packaging):
        _publish(root, path)
    source = _resolve(layout, fake)
    assert source.origin == "Debian's snapshot archive"
    assert [path.read_bytes() for path in source.files] == [
        path.read_bytes() for path in (fake.orig, fake.packaging)
    ]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda content: content[:-1], "ended after"),
        (lambda content: content + b"x", "longer than"),
        (lambda content: content[:-1] + bytes([content[-1] ^ 1]), "refused"),
    ],
)
def test_what_the_snapshot_archive_serves_is_not_believed(
    layout: Layout,
    fake: fake_source.FakeSource,
    server: tuple[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    change: object,
    said: str,
) -> None:
    base, root = server
    monkeypatch.setenv("PAGEFLIP_SNAPSHOT", base)
    served = _publish(root, fake.orig)
    served.write_bytes(change(served.read_bytes()))  # type: ignore[operator]
    with pytest.raises(CannotTellError, match=said):
        _resolve(layout, fake)
    assert fake.orig.name not in _left_in(layout.cache)


def test_upstreams_tarball(tmp_path: Path, layout: Layout, server: tuple[str, Path]) -> None:
    base, root = server
    tarball = root / "qemu-9.9.9.tar.xz"
    fake_source.tarball(tarball, {"qemu-9.9.9/VERSION": "9.9.9\n"})
    pinned = {"name": tarball.name, "sha256": hashlib.sha256(tarball.read_bytes()).hexdigest()}
    source = resolve(layout, fake_source.release(upstream=pinned), base)
    assert (source.kind, source.origin) == (Kind.UPSTREAM, "upstream")
    unpack(source, tmp_path / "tree")
    assert (tmp_path / "tree" / "VERSION").read_text() == "9.9.9\n"


def _git(directory: Path, *words: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    env = {**os.environ, "GIT_CONFIG_GLOBAL": "/dev/null"}
    argv = ["git", "-C", str(directory), *identity, *words]
    return subprocess.run(argv, check=True, capture_output=True, text=True, env=env).stdout.strip()


@pytest.fixture
def submodule(layout: Layout) -> str:
    """A populated submodule whose tag is one commit behind; return the tag's commit."""
    repository = layout.checkout / "qemu"
    repository.mkdir(parents=True)
    _git(repository, "init", "-q")
    (repository / "VERSION").write_text("9.9.9\n")
    _git(repository, "add", ".")
    _git(repository, "commit", "-qm", "release")
    _git(repository, "tag", "-m", "release", "v9.9.9")
    (repository / "VERSION").write_text("9.9.50\n")
    _git(repository, "commit", "-qam", "later")
    return _git(repository, "rev-parse", "v9.9.9^{commit}")


def test_the_submodules_tag_is_taken_and_not_its_work_tree(
    tmp_path: Path, layout: Layout, submodule: str
) -> None:
    source = resolve(layout, fake_source.release(), _NOWHERE)
    assert (source.kind, source.commit) == (Kind.SUBMODULE, submodule)
    unpack(source, tmp_path / "tree")
    assert (tmp_path / "tree" / "VERSION").read_text() == "9.9.9\n"


def test_a_tag_that_was_moved_is_refused(layout: Layout, submodule: str) -> None:
    wanted = "0" * 40
    with pytest.raises(RefusedError) as caught:
        resolve(layout, fake_source.release(commit=wanted), _NOWHERE)
    assert wanted in caught.value.message
    assert submodule in caught.value.message


def test_a_submodule_without_the_tag_says_how_to_get_it(layout: Layout, submodule: str) -> None:
    assert submodule
    with pytest.raises(CannotTellError, match=r"no tag v9\.9\.8 .git -C qemu fetch --tags"):
        resolve(layout, fake_source.release(tag="v9.9.8"), _NOWHERE)


def test_a_debian_patch_that_fails_leaves_no_tree(
    tmp_path: Path, layout: Layout, fake: fake_source.FakeSource
) -> None:
    broken = tmp_path / "broken.debian.tar.xz"
    patch = fake_source.DEBIAN_PATCH.replace("-# line two\n", "-# line 2\n")
    files = {"debian/patches/series": "one.patch\n", "debian/patches/one.patch": patch}
    fake_source.tarball(broken, files)
    source = Source("9.9", "9.9.9", Kind.DEBIAN, "test", (fake.orig, broken))
    with pytest.raises(PatchError, match=r"one\.patch(.|\n)*emulator\.sh: hunk #1"):
        unpack(source, tmp_path / "trees" / "tree")
    assert _left_in(tmp_path / "trees") == []


def test_the_key_is_of_the_contents_not_of_the_place(tmp_path: Path) -> None:
    one = Source("9.9", "9.9.9", Kind.DEBIAN, "cache", sha256={"a": "1", "b": "2"})
    assert replace(one, origin="upstream", files=(tmp_path,)).key == one.key
    assert replace(one, sha256={"b": "2", "a": "1"}).key == one.key
    assert replace(one, sha256={"a": "1", "b": "3"}).key != one.key
    assert replace(one, kind=Kind.UPSTREAM).key != one.key


def test_a_file_that_cannot_be_fetched_leaves_nothing(layout: Layout) -> None:
    debian_files = fake_source.make(layout.checkout / "x").release.debian
    assert debian_files is not None
    for url in (f"{_NOWHERE}/file", "file:///etc/passwd", "nonsense"):
        with pytest.raises(CannotTellError, match="cannot download"):
            fetch.download(layout, url, debian_files.orig)
    assert _left_in(layout.cache) == []
