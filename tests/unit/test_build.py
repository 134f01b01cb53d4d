# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import fake_source
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab.base.errors import CannotTellError, PreconditionError
from lab.base.layout import CHECKOUT, Layout
from lab.pair import build, recipe
from lab.pair.build import Built
from lab.source import fetch
from lab.source import series as patches
from lab.source.gnupatch import PatchError
from lab.source.resolve import Kind, Source
from lab.source.series import STOCK, Series
from lab.verbs import build as builds

_QEMU = "qemu-system-x86_64"
Make = Callable[..., Built]


@pytest.fixture
def fake(tmp_path: Path) -> fake_source.FakeSource:
    return fake_source.make(tmp_path / "theirs")


@pytest.fixture
def source(fake: fake_source.FakeSource) -> Source:
    sums = {path.name: fetch.sha256_of(path) for path in (fake.orig, fake.packaging)}
    return Source("9.9", "9.9.9", Kind.DEBIAN, "test", (fake.orig, fake.packaging), sums)


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return fake_source.layout(tmp_path)


@pytest.fixture
def done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file in which the fake build tells what it did."""
    monkeypatch.setenv("FAKE_LOG", str(tmp_path / "done"))
    return tmp_path / "done"


@pytest.fixture
def make(layout: Layout, fake: fake_source.FakeSource, source: Source, done: Path) -> Make:
    assert done

    def make(series: Series = STOCK, where: Layout = layout) -> Built:
        return build.build(where, fake.release, source, series, fake_source.OPTIONS)

    return make


def _done(done: Path) -> list[str]:
    return done.read_text().split() if done.exists() else []


def test_a_build_is_made_once(make: Make, done: Path, layout: Layout) -> None:
    built = make()
    assert _done(done) == ["configure", _QEMU, "qemu-img"]
    assert built.sha256 == fetch.sha256_of(built.qemu)
    assert (built.release, built.version, built.series) == ("9.9", "9.9.9", "stock")
    assert built.source["kind"] == "debian"
    assert "line two, by Debian" in built.qemu.read_text()
    # What is only needed to build is gone; what says how it was built is there.
    directory = built.qemu.parent
    kept = {path.name for path in directory.iterdir()}
    assert kept == {_QEMU, "qemu-img", "built.json", "build.log"}
    assert "--fake" in (directory / "build.log").read_text()
    assert make() == built
    assert _done(done) == ["configure", _QEMU, "qemu-img"]
    assert build.existing(layout) == [built]


def test_a_finished_build_is_found_at_once(make: Make) -> None:
    make()
    start = time.monotonic()
    make()
    assert time.monotonic() - start < 0.5  # 20 ms where nothing else runs


def test_a_series_is_another_build(make: Make, done: Path, tmp_path: Path) -> None:
    emulator = fake_source.hunk(
        "emulator.sh",
        8,
        ["# line eight"],
        'echo "QEMU emulator version 9.9.9"',
        'echo "QEMU emulator version 9.9.9 (ours)"',
        ["# line ten"],
    )
    text = fake_source.mail("ours", "", emulator)
    series = patches.load_series(
        fake_source.write_series(tmp_path / "9.9", {"0001-ours.patch": text})
    )
    stock, ours = make(), make(series)
    assert "(ours)" in ours.qemu.read_text()
    assert "(ours)" not in stock.qemu.read_text()
    assert stock.key != ours.key
    assert stock.sha256 != ours.sha256
    assert _done(done).count("configure") == 2


def test_a_series_that_is_edited_meanwhile(
    make: Make, layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = fake_source.mail("x", "", fake_source.change_text(20))
    series = patches.load_series(fake_source.write_series(tmp_path / "9.9", {"0001-x.patch": text}))
    apply = patches.patched_tree

    def apply_and_edit(source: Source, series: Series, tree: Path) -> list[str]:
        notes = list(apply(source, series, tree))
        edited = fake_source.mail("x", "", fake_source.change_text(21))
        series.patches[0].write_text(edited, encoding="utf-8")
        return notes

    monkeypatch.setattr(recipe, "patched_tree", apply_and_edit)
    with pytest.raises(CannotTellError, match="the series changed during the build"):
        make(series)
    assert not list(layout.builds.glob("*/src"))


def test_a_patch_that_does_not_apply_leaves_nothing(
    make: Make, done: Path, layout: Layout, tmp_path: Path
) -> None:
    text = fake_source.mail("x", "", fake_source.change_text(20).replace("-20", "-twenty"))
    series = patches.load_series(fake_source.write_series(tmp_path / "9.9", {"0001-x.patch": text}))
    with pytest.raises(PatchError, match=r"0001-x\.patch(.|\n)*docs/text: hunk #1"):
        make(series)
    assert _done(done) == []
    assert [path.name for path in layout.builds.iterdir() if path.suffix != ".lock"] == []


def test_the_key_has_all_that_goes_in(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    from lab.pair import toolchain

    before = make()
    found = toolchain.find()
    other = replace(found, identity=(*found.identity, "libfoo 2"))
    monkeypatch.setattr(toolchain, "find", lambda _: other)
    assert make().key != before.key


def test_what_cannot_do_without_a_library_is_not_begun(
    make: Make, monkeypatch: pytest.MonkeyPatch, done: Path
) -> None:
    needed = {
        "libraries": {"baz=system": ("libbaz-dev",)},
        "needed": ("baz=system",),
        "architecture": "z80",
    }
    options = fake_source.OPTIONS.model_copy(update=needed)
    monkeypatch.setattr(fake_source, "OPTIONS", options)
    with pytest.raises(PreconditionError, match="cannot be built for guests of z80") as caught:
        make()
    assert "without baz: apt-get install libbaz-dev" in caught.value.message
    assert _done(done) == []


def test_a_feature_whose_library_is_missing_is_left_out_and_named(
    make: Make, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], layout: Layout
) -> None:
    without = make()
    assert without.left_out == {}
    libraries = {"there": ("libc6-dev",), "baz=system": ("libc6-dev", "libbaz-dev")}
    more = fake_source.OPTIONS.model_copy(update={"libraries": libraries, "flavour": "more"})
    monkeypatch.setattr(fake_source, "OPTIONS", more)
    built = make()
    assert built.key != without.key
    assert (built.flavour, built.left_out) == ("more", {"baz=system": ["libbaz-dev"]})
    said = capsys.readouterr().err
    assert "(stock, more) is built without baz: apt-get install libbaz-dev" in said
    log = (built.qemu.parent / "build.log").read_text()
    assert "--enable-there" in log
    assert "baz" not in log
    assert make() == built
    assert capsys.readouterr().err == ""  # said when it is made
    assert {one.flavour for one in build.existing(layout)} == {"plain", "more"}


def test_the_same_bytes_in_another_place(make: Make, tmp_path: Path) -> None:
    one, two = make(), make(where=fake_source.layout(tmp_path / "elsewhere"))
    assert one.qemu != two.qemu
    assert (one.key, one.sha256) == (two.key, two.sha256)


def test_configure_is_given_nothing_of_this_machine_but_its_tools(
    make: Make, layout: Layout
) -> None:
    log = (make().qemu.parent / "build.log").read_text()
    configure = next(line for line in log.splitlines() if line.startswith("+ sh ../src/configure"))
    words = configure.split()[3:]
    assert f"--python={sys.executable}" in words
    assert {"--prefix=/usr", "--fake", "--disable-download"} <= set(words)
    assert str(layout.cache) not in configure


@pytest.mark.parametrize("damage", ["truncate", "remove", "marker"])
def test_a_damaged_build_is_made_again(make: Make, done: Path, damage: str) -> None:
    built = make()
    if damage == "truncate":
        os.truncate(built.qemu, 3)
    elif damage == "remove":
        built.qemu_img.unlink()
    else:
        (built.qemu.parent / "built.json").write_text("{")
    assert make() == built
    assert _done(done).count("configure") == 2
    assert fetch.sha256_of(built.qemu) == built.sha256


def test_the_compilers_words_are_shown(
    make: Make, layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_ERROR", "error: no such thing")
    with pytest.raises(CannotTellError) as caught:
        make()
    assert "emulator.c:7:3: error: no such thing" in caught.value.message
    assert "QEMU 9.9.9 (stock, plain) does not compile" in caught.value.message
    log = Path(re.search(r"all of it: (\S+)\)", caught.value.message)[1])  # type: ignore[index]
    assert "error: no such thing" in log.read_text()
    assert build.existing(layout) == []


def test_a_full_disk_is_called_one(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_ERROR", "fatal error: x.o: No space left on device")
    with pytest.raises(CannotTellError, match=r"the disk that holds .* is full") as caught:
        make()
    assert "XDG_CACHE_HOME" in caught.value.hint


def test_a_nearly_full_disk_is_told_before_anything_starts(
    make: Make, done: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage("/")._replace(free=1 << 20)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(CannotTellError, match="is full"):
        make()
    assert _done(done) == []


def test_no_compiler_is_told_before_anything_starts(
    make: Make, layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CC", "no-such-compiler")
    with pytest.raises(CannotTellError, match="no compiler: no-such-compiler") as caught:
        make()
    assert caught.value.exit_code == 3
    assert "apt-get install gcc" in caught.value.hint
    assert not layout.cache.exists()


def test_what_is_built_must_be_what_was_asked_for(
    make: Make, fake: fake_source.FakeSource, layout: Layout, source: Source
) -> None:
    other = fake.release.model_copy(update={"version": "9.9.10"})
    with pytest.raises(CannotTellError, match=r"reports another version: .* 9\.9\.9"):
        build.build(layout, other, source, STOCK, fake_source.OPTIONS)


def test_two_at_once_build_once(make: Make, done: Path) -> None:
    built: list[Built] = []
    threads = [threading.Thread(target=lambda: built.append(make())) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(built) == 3
    assert len(set(map(str, built))) == 1
    assert _done(done) == ["configure", _QEMU, "qemu-img"]


_BUILD = """
import signal
import sys
from pathlib import Path
# Whoever runs the tests with nohup has interrupts ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.path[:0] = {path!r}
import fake_source
from lab.pair import build
from lab.source import resolve, series
from lab.source.releases import Release
root = Path({root!r})
release = fake_source.make(root / "again").release
fake = release.debian
files = (root / "theirs" / fake.orig.name, root / "theirs" / fake.packaging.name)
sums = {{file.name: file.sha256 for file in (fake.orig, fake.packaging)}}
source = resolve.Source("9.9", "9.9.9", resolve.Kind.DEBIAN, "test", files, sums)
build.build(fake_source.layout(root), release, source, series.STOCK, fake_source.OPTIONS)
"""


def _wait_until(true: Callable[[], object]) -> None:
    until = time.monotonic() + 30
    while not true():
        assert time.monotonic() < until, "it has not come about"
        time.sleep(0.01)


def _runs(pid: int) -> bool:
    """Whether the process is there, and not only its entry that nobody has read yet."""
    try:
        return " (sleep) Z " not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_build_is_taken_up_where_it_was_left(
    make: Make, tmp_path: Path, layout: Layout, done: Path, signum: signal.Signals
) -> None:
    block = tmp_path / "block"
    script = _BUILD.format(path=[str(CHECKOUT), str(Path(__file__).parent)], root=str(tmp_path))
    lab = subprocess.Popen(
        [sys.executable, "-c", script],
        env={**os.environ, "FAKE_BLOCK": str(block)},
        stderr=subprocess.DEVNULL,
    )
    _wait_until(lambda: block.exists() and block.read_text().strip())
    compiler = int(block.read_text())
    lab.send_signal(signum)
    assert lab.wait(20) != 0
    assert build.existing(layout) == []
    if signum == signal.SIGINT:
        _wait_until(lambda: not _runs(compiler))
    else:  # nobody was left to end it: it is not the lab's child
        os.kill(compiler, signal.SIGKILL)
    assert _done(done) == ["configure", _QEMU, "qemu-img"]
    make()
    assert _done(done) == ["configure", _QEMU, "qemu-img", "qemu-img"]


def test_a_build_that_another_checkout_began_is_configured_again(
    make: Make, done: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """QEMU's build directory runs the Python that configured it, which may be gone."""
    with monkeypatch.context() as broken:
        broken.setenv("FAKE_ERROR", "error: no")
        with pytest.raises(CannotTellError):
            make()
    other = tmp_path / "other" / "python"
    other.parent.mkdir()
    other.symlink_to(sys.executable)
    before = _done(done)
    monkeypatch.setattr(sys, "executable", str(other))
    make()
    assert _done(done)[len(before) :] == ["configure", _QEMU, "qemu-img"]


@given(st.text())
def test_telling_lines_are_lines_of_the_output(output: str) -> None:
    shown = [line[4:] for line in recipe.telling(output).splitlines()]
    assert len(shown) <= 12
    assert all(line in output for line in shown)


def test_the_verb_links_and_records(
    make: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    built = make()
    monkeypatch.setattr(build, "by_name", lambda _layout, name, *_: {"new": built}[name])
    output = tmp_path / "out put"
    options = argparse.Namespace(what=["new"], guest="tiny", output=output)
    assert builds.run(options) == 0
    assert builds.run(options) == 0
    assert (output / "qemu-new" / _QEMU).resolve() == built.qemu
    assert json.loads((output / "qemu-new.json").read_text())["sha256"] == built.sha256
    assert f"new qemu {built.qemu}" in capsys.readouterr().out


def test_a_driver_is_made_once_and_apart_from_the_qemu_it_belongs_to(
    make: Make,
    layout: Layout,
    fake: fake_source.FakeSource,
    source: Source,
    done: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    named = (fake.release, source, STOCK, fake_source.OPTIONS)
    monkeypatch.setattr(build, "_named", lambda _layout, _name: named)
    qemu = make()
    program = build.driver(layout, "stock:9.9")
    assert _done(done) == [
        "configure",
        _QEMU,
        "qemu-img",
        "configure",
        "tests/qtest/migration-test",
    ]
    assert program.parent != qemu.qemu.parent
    assert {path.name for path in program.parent.iterdir()} == {"migration-test", "build.log"}
    assert build.driver(layout, "stock:9.9") == program
    assert _done(done).count("configure") == 2
    assert build.existing(layout) == [qemu]
