# SPDX-License-Identifier: GPL-2.0-or-later
"""The page: everything in one file, whatever was measured, and nothing of it as markup."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import fake_bench
import made_bench
import pytest

from lab import bench, cli
from lab.measure.timeline import Timeline
from lab.model import Result, Sample
from lab.report import charts, page, write
from lab.results.figures import Bench

SAMPLE = Path(__file__).with_name("result.json")
LINE = Timeline(
    end_ms=150.0,
    stop_ms=90.0,
    resume_ms=100.0,
    old_beats_ms=[float(ms) for ms in range(-1000, 90)],
    new_beats_ms=[float(ms) for ms in range(110, 1150)],
    samples=[
        Sample(at_ms=ms, old_pss_bytes=2**30, new_pss_bytes=2**20, skew_bytes=0)
        for ms in (0.0, 50.0, 100.0)
    ],
)


class Reader(HTMLParser):
    """Collects what is shown, what would be fetched, and tags that were left open."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.fetched: list[str] = []
        self.open: list[str] = []
        self.feed(text.replace("<wbr>", ""))
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in {"meta", "link", "br", "img"}:
            self.open.append(tag)
        self.fetched += [value or "" for name, value in attrs if name in {"src", "href"}]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in {"script", "style"}:
            self.words.append(data)

    @property
    def said(self) -> str:
        return " ".join(" ".join(self.words).split())


def made(tmp_path: Path, *words: str) -> tuple[Bench, Path]:
    session = bench.begin(
        fake_bench.layout(tmp_path),
        fake_bench.request(*words),
        fake_bench.Runner({"gift": 20.0}),
    )
    bench.carry_out(session)
    return session.bench, session.directory


def test_a_bench_in_one_file(tmp_path: Path) -> None:
    words = ("--mechanisms", "gift,precopy", "--ram", "512M,1G", "--repeats", "3")
    done, directory = made(tmp_path, *words)
    typical = [run.run_directory for run in page.typical(done)]
    assert len(typical) == 2
    text = page.of_bench(done, dict.fromkeys(typical, LINE))
    found = Reader(text)
    assert not found.open
    assert not found.fetched  # works without a network
    assert "Every guest was intact after all 16 upgrades." in found.said
    assert (
        "512 MiB: gift's pause as seen from outside is shorter than precopy's: 0.200" in found.said
    )
    for words_shown in ("512 MiB of RAM", "1024 MiB of RAM", "Pause against RAM", "One run: gift"):
        assert words_shown in found.said
    assert done.command in found.said
    # Two sizes of four charts, the one of all sizes, two timelines.
    assert len(re.findall(r"Plotly\.newPlot", text[text.index("</head>") :])) == 11
    assert (directory / "report.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")


def test_a_bench_of_several_rates(tmp_path: Path) -> None:
    words = ("--mechanisms", "gift,precopy", "--ram", "512M,1G", "--repeats", "1")
    done, _ = made(tmp_path, *words, "--dirty-rate", "0,50M")
    typical = [run.run_directory for run in page.typical(done)]
    assert len(typical) == 2
    assert {run.load for run in done.runs if run.run_directory in typical} == {(2**30, 50 * 2**20)}
    text = page.of_bench(done, dict.fromkeys(typical, LINE))
    said = Reader(text).said
    for words_shown in (
        "1024 MiB of RAM, 768 MiB filled, 0 MiB/s rewritten",
        "Pause against RAM",
        "Pause against dirty rate",
        "One run: gift, 1024 MiB, 50 MiB/s rewritten, round 1",
    ):
        assert words_shown in said
    assert re.search(r"Pause as seen from outside, rewritten, MiB\\?\S{1,6}s: 50", text)
    assert "Pause as seen from outside, guest RAM, GiB: 0.5" in text
    chart, _ = charts.scaling(done, "dirty_rate")
    assert [list(line.x) for line in chart.data] == [[0, 50]] * 2
    # Four loads of four charts, two of each scaling, two timelines.
    assert len(re.findall(r"Plotly\.newPlot", text[text.index("</head>") :])) == 22


def test_an_upgrade_in_one_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "result.json").write_text(SAMPLE.read_text())
    kept = {"timeline": LINE.model_dump(mode="json")}
    (tmp_path / "6-measure.json").write_text(json.dumps(kept))
    assert cli.main(["report", str(tmp_path)]) == 0
    written = Path(capsys.readouterr().out.strip())
    found = Reader(written.read_text(encoding="utf-8"))
    assert (
        "PASS: gift moved the guest from one QEMU 10.2.2 to another, and it arrived intact."
        in found.said
    )
    assert "The guest paused for 182 ms from STOP to RESUME" in found.said
    assert "Timeline" in found.said
    assert "Phases" in found.said
    assert "./pageflip upgrade" in found.said


def test_an_upgrade_of_an_older_version_has_no_timeline(tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text(SAMPLE.read_text())
    (tmp_path / "6-measure.json").write_text("{}")
    found = Reader(write.write_run(tmp_path).read_text(encoding="utf-8"))
    assert "Timeline" not in found.said


def test_the_state_of_a_bench_has_a_colour(tmp_path: Path) -> None:
    whole = made_bench.of_pauses({"flip": [9.0, 5.0], "precopy": [9.0, 5.0]})
    failed = [run.model_copy(update={"faults": ["bad pages: 1"]}) for run in whole.runs]
    for done, state in (
        (whole, "pass"),
        (made_bench.of_runs(failed, ["flip", "precopy"]), "fail"),
        (made_bench.of_pauses({"flip": [9.0], "precopy": [9.0]}), "open"),
    ):
        text = page.of_bench(done, {})
        assert f'<p class="verdict {state}">' in text
        assert f".{state} {{ color: var(" in text
        assert not Reader(text).open


def test_a_row_of_a_table_can_be_read_by_itself() -> None:
    """On a narrow screen, where it stands without the heading."""
    text = page.of_bench(made_bench.of_pauses({"flip": [9.0, 5.0], "precopy": [9.0, 5.0]}), {})
    heading = re.findall(r"<th>(.*?)</th>", text)
    assert "total ms" in heading
    assert re.findall(r'<td data-name="(.*?)">', text) == heading * 2


def test_long_names_may_be_broken_where_they_are_put_together() -> None:
    name = "flip@10.0::a<b/x+y"
    text = page.of_bench(made_bench.of_pauses({name: [9.0, 5.0], "precopy": [9.0, 5.0]}), {})
    broken = "flip<wbr>@10.0<wbr>::a&lt;b<wbr>/x<wbr>+y"
    assert f'<td data-name="mechanism">{broken}</td>' in text
    assert f'<p class="sentence">{broken}&#39;s pause' in text
    assert f"--mechanisms &#39;{broken},<wbr>precopy&#39; --ram" in text


def test_what_qemu_says_is_no_markup() -> None:
    result = Result.model_validate_json(SAMPLE.read_text()).model_copy(
        update={"reasons": ["<script>alert(1)</script>"], "notes": ["a < b & c"]}
    )
    text = page.of_run(result, None)
    assert "<script>alert(1)</script>" not in text
    assert "&lt;script&gt;alert(1)" in text
    assert "a < b & c" in Reader(text).said


def test_nothing_to_make_a_page_of(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["report", str(tmp_path)]) == 2
    assert "no bench.json" in capfd.readouterr().err
