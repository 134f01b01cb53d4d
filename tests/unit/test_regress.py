# SPDX-License-Identifier: GPL-2.0-or-later
"""`pageflip regress`: the verb, with everything below it replaced by stand-ins."""

from __future__ import annotations

import argparse
import json
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest

from lab.base.errors import ExitCode, PreconditionError, UsageError
from lab.base.layout import CHECKOUT, Layout
from lab.pair import build, firmware
from lab.review import qtests, regress, vmstate
from lab.review.qtests import QtestOutcome, Setup, TestResult
from lab.review.regress import RegressOptions
from lab.verbs import regress as verb
from lab.vm import binary
from lab.vm.binary import Binary


def parsed(*words: str) -> RegressOptions:
    parser = argparse.ArgumentParser()
    verb.add_arguments(parser)
    return verb.parse(parser.parse_args(words))


def test_the_options_have_defaults() -> None:
    assert parsed() == RegressOptions()
    words = "./pageflip regress --drivers new,old --accel tcg --old old --new new"
    assert parsed().reproduce == words


def test_the_reproducer_asks_for_the_same() -> None:
    wanted = parsed("--tests", "a|b", "--thorough", "--skip-vmstate", "--drivers", "10.0")
    words = wanted.reproduce
    assert wanted.drivers == ("10.0",)
    assert words.endswith("--tests 'a|b' --thorough --skip-vmstate")
    assert "--drivers 10.0 " in words


@pytest.mark.parametrize("words", [("--tests", "("), ("--drivers", ",")])
def test_what_cannot_be_is_told(words: tuple[str, str]) -> None:
    with pytest.raises(UsageError, match=words[0]):
        parsed(*words)


class FakeStand:
    """A stand whose tests come to what is given, in turn."""

    def __init__(self, bench: Setup, results: dict[str, list[TestResult]]) -> None:
        self.bench, self.results, self.ran = bench, results, list[str]()
        self.names = list(results)

    def run(self, test: str) -> TestResult:
        self.ran.append(test)
        results = self.results[test]
        return results.pop(0) if len(results) > 1 else results[0]

    def run_all(self, tests: list[str], title: str) -> dict[str, TestResult]:
        return {test: self.run(test) for test in tests if test in self.names}


class World:
    """What the verb finds: four QEMUs, two drivers, and what the tests come to."""

    def __init__(self, directory: Path) -> None:
        self.layout = Layout(CHECKOUT, directory / "cache", directory / "out")
        self.results: dict[str, dict[str, list[TestResult]]] = {}
        self.stands: dict[str, FakeStand] = {}
        self.hashes: dict[str, str] = {}
        self.dumps: list[tuple[str, str]] = []

    def inspect(self, path: Path, release: str | None = None) -> Binary:
        sha256 = self.hashes.get(str(path), str(path))
        return Binary(path, "1", sha256, release, frozenset(), frozenset(), architecture="x86_64")

    def stand(self, bench: Setup, logs: Path) -> AbstractContextManager[FakeStand]:
        side = f"{logs.parent.name} {logs.name}"
        results = self.results.get(side, {"/a": [OK], "/b": [OK]})
        self.stands[side] = FakeStand(bench, {name: list(one) for name, one in results.items()})
        return nullcontext(self.stands[side])

    def dump(self, qemu: Path, _firmware: Path, machine: str, into: Path) -> Path:
        self.dumps.append((str(qemu), machine))
        into.write_text("{}")
        return into


OK, FAILED = TestResult(QtestOutcome.OK), TestResult(QtestOutcome.FAILED)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    world = World(tmp_path)
    named = lambda _layout, name, *_architecture: SimpleNamespace(qemu=Path("/built") / name)  # noqa: E731
    monkeypatch.setattr(build, "by_name", named)
    monkeypatch.setattr(build, "driver", lambda _layout, name: Path("/driver") / name)
    monkeypatch.setattr(binary, "inspect", world.inspect)
    monkeypatch.setattr(firmware, "prepare", lambda _layout: Path("/firmware"))
    monkeypatch.setattr(regress, "resolve", lambda _layout, release: release.name)
    monkeypatch.setattr(regress, "stock_tree", lambda _layout, source: Path("/tree") / source)
    monkeypatch.setattr(qtests, "stand", world.stand)
    monkeypatch.setattr(vmstate, "dump", world.dump)
    monkeypatch.setattr(vmstate, "check", lambda _tree, source, _destination: "")
    return world


def test_each_driver_runs_the_pairs_it_is_to_run(world: World) -> None:
    report = regress.regress(world.layout, RegressOptions(accel="tcg", thorough=True))
    assert report.exit_code is ExitCode.PASS
    benches = {side: stand.bench for side, stand in world.stands.items()}
    assert list(benches) == [
        f"{release} {side}"
        for release in ("10.2", "10.0")
        for side in ("stock", "patched", "patched-own-driver")
    ]
    for side, bench in benches.items():
        release, which = side.split(" ")
        stock = which == "stock"
        own = which == "patched-own-driver"
        assert bench.driver == Path("/driver") / (release if own else f"stock:{release}")
        assert bench.tree == Path("/tree") / release
        assert bench.old == Path("/built") / ("stock:10.0" if stock else "old")
        assert bench.new == Path("/built") / ("stock:10.2" if stock else "new")
        assert (bench.accel, bench.thorough, bench.firmware) == ("tcg", True, Path("/firmware"))
    assert all(stand.ran == ["/a", "/b"] for stand in world.stands.values())
    assert len(report.comparisons) == 4


def test_what_differs_is_run_again_with_both(world: World) -> None:
    world.results["10.2 stock"] = {"/a": [OK], "/b": [OK, FAILED]}
    world.results["10.2 patched"] = {"/a": [FAILED, OK], "/b": [FAILED, OK]}
    report = regress.regress(world.layout, RegressOptions(drivers=("new",)))
    assert report.exit_code is ExitCode.FAIL
    assert world.stands["10.2 stock"].ran == ["/a", "/b", "/a", "/b"]
    assert world.stands["10.2 patched"].ran == ["/a", "/b", "/a", "/b"]
    assert world.stands["10.2 patched-own-driver"].ran == ["/a", "/b"]
    rows = report.comparisons[0].rows
    assert [row.differs for row in rows] == [False, True]
    assert rows[1].again == (FAILED, OK)  # the stock pair's comes first
    assert not report.comparisons[1].differs


@pytest.mark.parametrize(("result", "code"), [(OK, ExitCode.PASS), (FAILED, ExitCode.FAIL)])
def test_what_the_series_adds_is_run_by_its_own_driver(
    world: World, result: TestResult, code: ExitCode
) -> None:
    world.results["10.2 patched-own-driver"] = {"/a": [OK], "/b": [OK], "/new": [result]}
    report = regress.regress(world.layout, RegressOptions(drivers=("new",)))
    assert report.exit_code is code
    assert world.stands["10.2 stock"].ran == ["/a", "/b"]
    assert report.comparisons[1].added == {"/new": result}
    assert not report.comparisons[0].added


def test_the_series_own_tests_can_be_chosen(world: World) -> None:
    world.results["10.2 patched-own-driver"] = {"/a": [OK], "/new": [OK]}
    wanted = RegressOptions(drivers=("new",), tests="new", skip_vmstate=True)
    report = regress.regress(world.layout, wanted)
    assert report.exit_code is ExitCode.PASS
    assert world.stands["10.2 stock"].ran == []
    assert report.comparisons[1].added == {"/new": OK}


def test_a_test_that_the_series_driver_lost_is_a_difference(world: World) -> None:
    world.results["10.2 patched-own-driver"] = {"/a": [OK]}
    report = regress.regress(world.layout, RegressOptions(drivers=("new",)))
    assert report.exit_code is ExitCode.FAIL
    assert report.comparisons[1].rows[1].patched.outcome is QtestOutcome.ABSENT


def test_only_tests_that_match_are_run(world: World) -> None:
    regress.regress(world.layout, RegressOptions(tests="^/b$"))
    assert all(stand.ran == ["/b"] for stand in world.stands.values())


def test_a_driver_without_a_match_is_passed_over(world: World) -> None:
    world.results["10.0 stock"] = world.results["10.0 patched-own-driver"] = {"/b": [OK]}
    report = regress.regress(world.layout, RegressOptions(tests="/a"))
    assert [one.title for one in report.comparisons] == [
        "migration-test of 10.2, patched pair",
        "migration-test of 10.2 with the series, patched pair",
    ]


def test_no_match_is_wrong_usage(world: World) -> None:
    with pytest.raises(UsageError, match="no test matches 'zzz'") as caught:
        regress.regress(world.layout, RegressOptions(tests="zzz"))
    assert "/a" in caught.value.hint
    assert not world.dumps


def test_all_four_are_dumped_for_both_machines(world: World) -> None:
    report = regress.regress(world.layout, RegressOptions())
    four = ["/built/stock:10.0", "/built/stock:10.2", "/built/old", "/built/new"]
    assert world.dumps == [
        (qemu, machine) for machine in ("pc-q35-10.0", "pc-i440fx-10.0") for qemu in four
    ]
    assert len(report.vmstate) == 6
    assert [one.machine for one in report.vmstate[::3]] == ["pc-q35-10.0", "pc-i440fx-10.0"]


def test_another_device_state_is_a_difference(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = lambda _tree, source, _destination: source.stem  # noqa: E731
    monkeypatch.setattr(vmstate, "check", said)
    report = regress.regress(world.layout, RegressOptions())
    assert report.exit_code is ExitCode.FAIL
    report = regress.regress(world.layout, RegressOptions(skip_vmstate=True))
    assert report.exit_code is ExitCode.PASS
    assert report.vmstate == []


def test_the_run_directory_has_the_record(world: World) -> None:
    report = regress.regress(world.layout, RegressOptions(tests="a"))
    kept = json.loads((report.directory / "regress.json").read_text())
    assert kept == json.loads(json.dumps(report.record()))
    assert kept["reproduce"].endswith("--tests a")
    assert set(kept["qemus"]) == {"stock old", "stock new", "patched old", "patched new"}
    assert "SAME" in (report.directory / "regress.md").read_text()
    stages = sorted(path.name for path in report.directory.glob("?-*.json"))
    assert stages == ["1-build.json", "2-vmstate.json", "3-qtests-10.2.json", "4-qtests-10.0.json"]


def test_stock_beside_stock_is_nothing_to_compare(world: World) -> None:
    world.hashes = {"/built/old": "/built/stock:10.0", "/built/new": "/built/stock:10.2"}
    with pytest.raises(PreconditionError, match="nothing to compare"):
        regress.regress(world.layout, RegressOptions())
    world.hashes.pop("/built/new")
    assert regress.regress(world.layout, RegressOptions()).exit_code is ExitCode.PASS


def test_a_qemu_of_ones_own_is_compared(world: World, tmp_path: Path) -> None:
    mine = str(tmp_path / "qemu-system-x86_64")
    report = regress.regress(world.layout, RegressOptions(new=mine))
    assert report.qemus["patched new"].path == mine
    assert report.qemus["stock new"].path == "/built/stock:10.2"


@pytest.mark.parametrize("wrong", [{"drivers": ("9.9",)}, {"old": "9.9"}, {"new": "stock:9.9"}])
def test_a_release_that_nobody_knows_is_told_first(world: World, wrong: dict[str, str]) -> None:
    with pytest.raises(UsageError, match=r"9\.9"):
        regress.regress(world.layout, RegressOptions(**wrong))  # type: ignore[arg-type]
    assert not world.layout.out.exists()


def test_kvm_must_be_there(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(regress.os, "access", lambda _path, _mode: False)
    with pytest.raises(PreconditionError, match="/dev/kvm"):
        regress.regress(world.layout, RegressOptions(accel="kvm"))
    regress.regress(world.layout, RegressOptions(accel="tcg"))


def test_the_verb_says_its_verdict(
    world: World,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(Layout, "default", lambda: world.layout)
    parser = argparse.ArgumentParser()
    verb.add_arguments(parser)
    assert verb.run(parser.parse_args(["--out", str(tmp_path / "there")])) == 0
    assert "SAME" in capsys.readouterr().out
    assert len(list((tmp_path / "there").iterdir())) == 1
    world.results["10.0 patched"] = {"/a": [FAILED], "/b": [OK]}
    assert verb.run(parser.parse_args([])) == 1
    assert "DIFFERENT" in capsys.readouterr().out
