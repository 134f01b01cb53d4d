# SPDX-License-Identifier: GPL-2.0-or-later
"""The chart of pauses against dirty rate and RAM: to scale, and of what was measured."""

from __future__ import annotations

import math
from pathlib import Path
from xml.etree import ElementTree

import fake_bench
import pytest
from fake_bench import Runner

from lab import bench, cli
from lab.base.errors import UsageError
from lab.report import chart
from lab.results.figures import Bench

#: The n-th run takes n times that (ms), the first one is not counted: medians of 30 and 300.
SPEED = {"gift": 10.0, "precopy": 100.0}
ASKED = ("--mechanisms", "gift,precopy", "--repeats", "3")
RATES, SIZES = ("--dirty-rate", "0,50M,200M"), ("--ram", "1G,2G,8G")


def made(tmp_path: Path, *words: str) -> tuple[Bench, Path]:
    asked = fake_bench.request(*ASKED, *words)
    session = bench.begin(fake_bench.layout(tmp_path), asked, Runner(SPEED))
    bench.carry_out(session)
    return session.bench, session.directory


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """Return a bench of several rates and several sizes."""
    return made(tmp_path_factory.mktemp("both"), *RATES, *SIZES)[0]


def drawn(done: Bench) -> ElementTree.Element:
    return ElementTree.fromstring(chart.draw(done))


def dots(panel: ElementTree.Element, number: int) -> list[tuple[float, float]]:
    """Return where the medians of a mechanism are."""
    return [
        (float(one.get("cx", "")), float(one.get("cy", "")))
        for one in panel.findall("{*}circle")
        if one.get("class") == f"mark-{number}"
    ]


def levels(panel: ElementTree.Element) -> dict[float, float]:
    """Return where the marks of the vertical axis are, by their ms."""
    return {
        float(one.text or ""): float(one.get("y", "")) - 6
        for one in panel.findall("{*}text")
        if one.get("class") == "end quiet"
    }


def words(root: ElementTree.Element) -> str:
    return " ".join(" ".join(root.itertext()).split())


def test_a_panel_for_each_part_of_the_load(both: Bench) -> None:
    root = drawn(both)
    against_rate, against_ram = root.findall("{*}g")
    assert "rewritten, MiB/s (guest RAM, GiB: 8)" in words(against_rate)
    assert "guest RAM, GiB (rewritten, MiB/s: 200)" in words(against_ram)
    for panel in (against_rate, against_ram):
        assert len(dots(panel, 1)) == len(dots(panel, 2)) == 3


@pytest.mark.parametrize(("asked", "unit"), [(RATES, "rewritten"), (SIZES, "guest RAM")])
def test_one_panel_is_enough(tmp_path: Path, asked: tuple[str, ...], unit: str) -> None:
    root = drawn(made(tmp_path, *asked)[0])
    (panel,) = root.findall("{*}g")
    assert unit in words(panel)
    assert max(x for x, _ in dots(panel, 1)) > 780  # as wide as two


def test_it_is_to_scale(both: Bench) -> None:
    against_rate, against_ram = drawn(both).findall("{*}g")
    (none, y), (some, _), (most, _) = dots(against_rate, 1)
    assert (some - none) / (most - none) == pytest.approx(0.25, abs=0.01)  # 0, 50 and 200
    (one, _), (two, _), (eight, _) = dots(against_ram, 1)
    assert (two - one) / (eight - one) == pytest.approx(1 / 3, abs=0.01)  # logarithmic
    marks = sorted(levels(against_rate).items())
    (low, bottom), (high, top) = marks[0], marks[-1]
    share = math.log(30 / low) / math.log(high / low)
    assert y == pytest.approx(bottom + share * (top - bottom), abs=0.3)
    other = dots(against_rate, 2)[0][1]
    decade = math.log(10) / math.log(high / low) * (bottom - top)
    assert y - other == pytest.approx(decade, abs=0.3)


def test_the_range_of_the_runs(tmp_path: Path) -> None:
    (panel,) = drawn(made(tmp_path, *RATES)[0]).findall("{*}g")
    (x, y) = dots(panel, 1)[0]
    line = next(one for one in panel.findall("{*}line") if "range" in one.get("class", ""))
    assert float(line.get("x1", "")) == float(line.get("x2", "")) == x
    # 20, 30 and 40 ms
    up, down = y - float(line.get("y1", "")), float(line.get("y2", "")) - y
    assert up / down == pytest.approx(math.log(40 / 30) / math.log(30 / 20), abs=0.02)


def test_all_is_in_the_frame(both: Bench) -> None:
    root = drawn(both)
    width, height = float(root.get("width", "")), float(root.get("height", ""))
    for kind, *keys in (("circle", "cx", "cy"), ("text", "x", "y")):
        for one in root.findall(f".//{{*}}{kind}"):
            x, y = (float(one.get(key, "")) for key in keys)
            assert 0 < x < width
            assert 0 < y < height
    said = words(root)
    assert "gift precopy" in said
    assert both.old
    assert f"QEMU {both.old.version} to 10.2.2 under TCG" in said


def test_nothing_to_draw_against(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nothing to draw"):
        chart.draw(made(tmp_path)[0])


def test_a_mechanism_without_a_figure_has_no_line(tmp_path: Path) -> None:
    done, _ = made(tmp_path, *RATES)
    rows = [row for row in done.summary if row.mechanism == "gift"]
    (panel,) = drawn(done.model_copy(update={"summary": rows})).findall("{*}g")
    assert len(dots(panel, 1)) == 3
    assert not dots(panel, 2)


def test_what_cannot_be_told_apart_is_refused(tmp_path: Path) -> None:
    done, _ = made(tmp_path, *RATES)
    request = done.request.model_copy(update={"mechanisms": tuple("abcdef")})
    with pytest.raises(UsageError, match="6 mechanisms"):
        chart.draw(done.model_copy(update={"request": request}))


def test_the_verb(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done, directory = made(tmp_path, *RATES)
    capsys.readouterr()
    assert cli.main(["report", str(directory), "--chart"]) == 0
    written = Path(capsys.readouterr().out.strip())
    assert written == directory / "chart.svg"
    assert written.read_text(encoding="utf-8") == chart.draw(done)
    assert cli.main(["report", str(tmp_path), "--chart"]) == 2
    assert "there is no bench.json" in capsys.readouterr().err
