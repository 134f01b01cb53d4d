# SPDX-License-Identifier: GPL-2.0-or-later
"""Benches held against each other: noise raises no alarm, a slower binary does."""

from __future__ import annotations

import json
from pathlib import Path

import fake_bench
import pytest

from lab import bench, cli
from lab.base.errors import ExitCode, UsageError
from lab.report import write
from lab.report.changes import Gate
from lab.results import gate
from lab.results.figures import Bench
from lab.results.gate import alarms, changes, condition, differences

WORDS = ("--mechanisms", "gift,precopy", "--ram", "512M", "--repeats", "5")


@pytest.fixture(autouse=True)
def no_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing it takes longer than everything that is tested here; test_page.py looks at it."""
    monkeypatch.setattr(write, "write_bench", lambda _bench, _directory: None)


def made(
    tmp_path: Path, *words: str, ms: dict[str, float] | None = None, gift: float = 100.0
) -> Bench:
    """Return a bench whose n-th run of a mechanism takes n times its ms."""
    session = bench.begin(
        fake_bench.layout(tmp_path),
        fake_bench.request(*(words or WORDS)),
        fake_bench.Runner(ms or {"gift": gift}),
    )
    bench.carry_out(session)
    return session.bench


@pytest.mark.parametrize(
    ("text", "figure", "statistic", "limit", "relative"),
    [
        ("gift.pause_ms.qmp.median > +10%", "pause_qmp_ms", "median", 0.1, True),
        ("gift.pause_qmp_ms>+10%", "pause_qmp_ms", "median", 0.1, True),
        ("gift.total_ms.p95 < -5.5%", "total_ms", "p95", -0.055, True),
        ("*.memory_ratio > 1.1", "memory_ratio", "median", 1.1, False),
        ("gift@10.2+a/b.c.pause_ms.outside.ratio > 1.5", "pause_outside_ms", "ratio", 1.5, False),
    ],
)
def test_conditions(text: str, figure: str, statistic: str, limit: float, relative: bool) -> None:
    found = condition(text)
    assert (found.figure, found.statistic, found.relative) == (figure, statistic, relative)
    assert found.limit == pytest.approx(limit)
    assert found.above is (">" in text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "gift",
        "gift.pause_ms.qmp",
        "gift.nothing > 1",
        "gift.pause_qmp_ms.mode > 1",
        "gift.pause_qmp_ms > 10%",  # a change, or a value?
        "gift.pause_qmp_ms > +10",
        "gift.pause_qmp_ms = 1",
        "gift.pause_qmp_ms.ratio > +1%",
    ],
)
def test_what_is_no_condition(text: str) -> None:
    with pytest.raises(UsageError):
        condition(text)


def test_the_same_raises_no_alarm(tmp_path: Path) -> None:
    first, second = made(tmp_path / "a", gift=20), made(tmp_path / "b", gift=20)
    assert not list(alarms([condition("*.pause_ms.qmp > +1%")], first, second))
    assert not any(change.change and change.change.shown for change in changes(first, second))
    assert not list(differences(first, second))


def test_what_is_slower_raises_one(tmp_path: Path) -> None:
    first, second = made(tmp_path / "a", gift=20), made(tmp_path / "b", gift=200)
    found = list(alarms([condition("*.pause_ms.qmp > +10%")], first, second))
    assert len(found) == 1
    assert "gift, 512 MiB: pause_qmp_ms is 800, and was 80" in found[0]
    assert not list(alarms([condition("gift.pause_ms.qmp < -10%")], first, second))
    assert list(alarms([condition("gift.pause_ms.qmp < -10%")], second, first))


def test_a_change_within_the_noise_raises_none(tmp_path: Path) -> None:
    first, second = made(tmp_path / "a", gift=20), made(tmp_path / "b", gift=30)
    assert second.summary[0].figures["pause_qmp_ms"].median == pytest.approx(120)
    assert not list(alarms([condition("gift.pause_ms.qmp > +10%")], first, second))


def test_a_value_needs_no_baseline(tmp_path: Path) -> None:
    only = made(tmp_path, gift=20)
    assert list(alarms([condition("gift.pause_ms.qmp > 79")], None, only))
    assert not list(alarms([condition("gift.pause_ms.qmp > 81")], None, only))


@pytest.mark.parametrize(
    ("text", "baseline"),
    [
        ("gift.pause_ms.qmp > +1%", False),
        ("flip.pause_ms.qmp > 1", True),
        ("flip.pause_ms.qmp > +1%", True),
    ],
)
def test_a_gate_that_cannot_close_is_refused(text: str, baseline: bool, tmp_path: Path) -> None:
    only = made(tmp_path)
    with pytest.raises(UsageError):
        list(alarms([condition(text)], only if baseline else None, only))


def test_what_else_differs_is_said(tmp_path: Path) -> None:
    first = made(tmp_path / "a")
    second = made(tmp_path / "b", *WORDS, "--dirty-rate", "50M")
    assert list(differences(first, second)) == ["--dirty-rate was 0, and is 50M"]


def test_rates_are_kept_apart(tmp_path: Path) -> None:
    words = ("--mechanisms", "gift,precopy", "--ram", "512M", "--repeats", "5")
    both, one = (
        made(tmp_path / name, *words, "--dirty-rate", rate, gift=20)
        for name, rate in (("a", "0,50M"), ("b", "50M"))
    )
    said = list(alarms([condition("gift.pause_ms.qmp > 1")], None, both))
    assert [text.partition(": ")[2].partition(" is ")[0] for text in said] == [
        "gift, 512 MiB, 0 MiB/s rewritten: pause_qmp_ms",
        "gift, 512 MiB, 50 MiB/s rewritten: pause_qmp_ms",
    ]
    assert {change.dirty_rate for change in changes(both, one)} == {50 * 2**20}
    assert not changes(made(tmp_path / "c", *words, gift=20), one)


@pytest.mark.parametrize(("rates", "shown"), [("0", False), ("0,50M", True)])
def test_the_rate_is_shown_where_there_are_several(
    rates: str, shown: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "a.json"
    file.write_text(made(tmp_path, *WORDS, "--dirty-rate", rates).model_dump_json())
    capsys.readouterr()
    cli.main(["compare", str(file), str(file)])
    assert ("MiB/s" in capsys.readouterr().out) is shown


@pytest.mark.parametrize(("ms", "code"), [(20, ExitCode.PASS), (400, ExitCode.FAIL)])
def test_the_verb_and_the_bench_say_so_to_the_shell(
    ms: float, code: ExitCode, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = []
    for name, value in (("a", 20.0), ("b", ms)):
        done = made(tmp_path / name, gift=value)
        files.append(tmp_path / f"{name}.json")
        files[-1].write_text(done.model_dump_json())
    text = "gift.pause_ms.qmp > +50%"
    words = ["compare", str(files[0]), str(files[1]), "--fail-if", text]
    assert cli.main(words) == code
    said = capsys.readouterr().out
    assert ("FAIL" in said) is (code is ExitCode.FAIL)
    assert ("higher" in said) is (code is ExitCode.FAIL)
    assert cli.main([*words, "--json"]) == code
    kept = json.loads(capsys.readouterr().out)
    assert {entry["mechanism"] for entry in kept} == {"gift", "precopy"}
    session = bench.begin(
        fake_bench.layout(tmp_path), fake_bench.request(*WORDS), fake_bench.Runner({"gift": ms})
    )
    closing = Gate((condition(text),), Bench.model_validate_json(files[0].read_text()))
    assert bench.carry_out(session, closing) == code


def test_files_that_are_none(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.json").write_text("{}")
    for name in ("x.json", "nothing.json"):
        assert cli.main(["compare", str(tmp_path / name), str(tmp_path / name)]) == 2
        assert name in capfd.readouterr().err
    assert gate.condition("*.total_ms > 1").mechanism == "*"


def test_one_binary_beside_another_in_the_same_rounds(tmp_path: Path) -> None:
    """A/A raises no alarm; a new QEMU that is three times slower does."""
    other = "gift@10.2+slow"
    words = ("--mechanisms", f"gift,{other}", "--ram", "512M", "--repeats", "5")
    for ms, met in ((20.0, False), (60.0, True)):
        done = made(tmp_path / str(ms), *words, "--reference", "gift", ms={"gift": 20.0, other: ms})
        assert done.others.keys() == {"10.2+slow"}
        found = list(alarms([condition("*.pause_ms.qmp.ratio > 1.2")], None, done))
        assert bool(found) is met
        if met:
            assert f"{other}, 512 MiB: pause_qmp_ms is 3 times the reference's [3, 3]" in found[0]
