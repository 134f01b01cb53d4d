# SPDX-License-Identifier: GPL-2.0-or-later
"""A bench on the screen and as Markdown, and the page that documents every key of bench.json."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import fake_bench
import pytest
from fake_bench import Runner
from rich.console import Console
from test_screen import keys

from lab import bench
from lab.base.errors import CannotTellError, PreconditionError
from lab.base.layout import CHECKOUT
from lab.mechanisms import MECHANISMS
from lab.options import UpgradeOptions
from lab.report import tables as benchreport
from lab.results.figures import Bench


def done(tmp_path: Path, *words: str, **more: Any) -> Bench:
    session = bench.begin(fake_bench.layout(tmp_path), fake_bench.request(*words), Runner(**more))
    bench.carry_out(session)
    return session.bench


def shown(what: Bench, width: int = 140) -> str:
    console = Console(
        file=io.StringIO(), width=width, highlight=False, force_terminal=True, color_system=None
    )
    benchreport.show(what, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def row(lines: list[str], name: str) -> list[str]:
    """Return the cells of the first row that begins with `name`."""
    line = next(line for line in lines if line.startswith(f"| `{name}`"))
    return [cell.strip() for cell in line.split("|")[1:-1]]


ASKED = ("--mechanisms", "gift,precopy", "--ram", "1G", "--repeats", "3")
SPEED = {"gift": 1.25, "precopy": 100.0}


def test_the_table_of_a_size(tmp_path: Path) -> None:
    lines = list(benchreport.markdown(done(tmp_path, *ASKED, ms=SPEED)))
    assert "## 1024 MiB of RAM, 768 MiB filled" in lines
    # The counted runs take 2, 3 and 4 times their ms.
    assert row(lines, "gift") == [
        "`gift`", "3", *["3.75 [2.50, 5.00]"] * 3, "7.50 [5.00, 10.0]", "1.02 [1.02, 1.02]",
        "1.03 [1.03, 1.03]", "220 [220, 220]", "97% [97%, 97%]",
        "0.013 [0.013, 0.013]", "0.013 [0.013, 0.013]",
    ]  # fmt: skip
    assert row(lines, "precopy")[5] == "600 [400, 800]"
    heading = next(line for line in lines if line.startswith("| mechanism"))
    assert "total / precopy" in heading
    tables = [line for line in lines if line.startswith("|")]
    assert not [line for line in tables if line.startswith("|  ")]


def test_every_figure_has_its_range(tmp_path: Path) -> None:
    lines = list(benchreport.markdown(done(tmp_path, *ASKED, ms=SPEED)))
    details = lines[lines.index("<details><summary>Every figure</summary>") :]
    assert row(details, "gift") == [
        "`gift`", "pause ms, STOP to RESUME", "3", "3.75", "[2.50, 5.00]", "5.00", "2.50", "5.00",
        "0.013", "[0.013, 0.013]",
    ]  # fmt: skip
    body = [line for line in details if line.startswith("| `")]
    assert len(body) == 2 * len(benchreport.TITLES)


def test_one_run_has_no_interval(tmp_path: Path) -> None:
    lines = list(benchreport.markdown(done(tmp_path, *ASKED[:-1], "1", ms=SPEED)))
    assert row(lines, "gift")[2:6] == ["2.50", "2.50", "2.50", "5.00"]
    assert "of one round after a warm-up; ratios are to precopy" in "\n".join(lines)


def test_several_sizes_are_compared_for_each_mechanism(tmp_path: Path) -> None:
    one = list(benchreport.markdown(done(tmp_path, *ASKED)))
    assert "## Pause and total against RAM size" not in one
    words = ("--mechanisms", "gift,precopy", "--ram", "1G,2G", "--repeats", "1")
    lines = list(benchreport.markdown(done(tmp_path, *words, ms=SPEED)))
    growth = lines[lines.index("## Pause and total against RAM size") :]
    assert growth[2] == "### `gift`"
    assert growth[6:8] == [
        "| 1024 | 2.50 | 2.50 | 2.50 | 5.00 | 220 |",
        "| 2048 | 2.50 | 2.50 | 2.50 | 5.00 | 220 |",
    ]
    assert "### `precopy`" in growth


def test_several_rates_have_tables_of_their_own(tmp_path: Path) -> None:
    words = ("--mechanisms", "gift,precopy", "--ram", "1G", "--repeats", "1")
    what = done(tmp_path, *words, "--dirty-rate", "0,50M", ms=SPEED)
    lines = list(benchreport.markdown(what))
    assert [line for line in lines if line.startswith("## ")] == [
        "## 1024 MiB of RAM, 768 MiB filled, 0 MiB/s rewritten",
        "## 1024 MiB of RAM, 768 MiB filled, 50 MiB/s rewritten",
        "## Pause and total against dirty rate",
    ]
    growth = lines[lines.index("## Pause and total against dirty rate") :]
    assert growth[4].startswith("| rewritten MiB/s | pause ms, STOP")
    assert growth[6:8] == [
        "| 0 | 2.50 | 2.50 | 2.50 | 5.00 | 220 |",
        "| 50 | 2.50 | 2.50 | 2.50 | 5.00 | 220 |",
    ]
    assert "50 MiB/s rewritten" in " ".join(shown(what).split())
    both = done(tmp_path / "2", *words[:3], "1G,2G", *words[4:], "--dirty-rate", "0,1500K")
    lines = list(benchreport.markdown(both))
    growth = lines[lines.index("## Pause and total against RAM size and dirty rate") :]
    assert growth[4].startswith("| RAM MiB | rewritten MiB/s |")
    assert [line[:16] for line in growth[6:10]] == [
        "| 1024 | 0 | 200", "| 1024 | 1.46484", "| 2048 | 0 | 200", "| 2048 | 1.46484"
    ]  # fmt: skip


def test_one_rate_is_not_mentioned(tmp_path: Path) -> None:
    what = done(tmp_path, *ASKED, "--dirty-rate", "50M")
    assert "rewritten" not in shown(what)
    assert "rewritten" not in "\n".join(benchreport.markdown(what))


def test_where_something_failed_has_the_rate(tmp_path: Path) -> None:
    def trouble(number: int, _options: UpgradeOptions) -> dict[str, Any] | None:
        return {"outcome": "lost", "reasons": ["bad pages: 1"]} if number == 2 else None

    words = ("--mechanisms", "gift,copy", "--ram", "1G", "--repeats", "1", "--dirty-rate", "0,50M")
    said = "\n".join(benchreport.remarks(done(tmp_path, *words, trouble=trouble)))
    assert "gift, 1024 MiB, 50 MiB/s rewritten, round 0: bad pages: 1" in said


def test_what_a_reader_must_know(tmp_path: Path) -> None:
    def trouble(number: int, options: UpgradeOptions) -> dict[str, Any] | None:
        if options.mechanism == "copy":
            raise PreconditionError("the old QEMU has no command\nlocalhost-migrate")
        if number == 3:
            raise CannotTellError("boot: not done after 90 s")
        return {"outcome": "lost", "reasons": ["bad pages: 1"]} if number == 4 else None

    what = done(tmp_path, "--mechanisms", "gift,copy,precopy", "--repeats", "3", trouble=trouble)
    text = "\n".join(benchreport.markdown(what))
    for words in (
        "accelerator TCG",
        "--mechanisms gift,copy,precopy --ram",
        "- old: QEMU 10.2.2, ",
        "- new: QEMU 10.2.2, ",
        "- host: ",
        "17.4 ms (median), 17.4 ms (largest)",
        "- not possible: copy, 2048 MiB: the old QEMU has no command localhost-migrate",
        "- inconclusive: gift, 2048 MiB, round 1: boot: not done after 90 s",
        "round 1: bad pages: 1 (run-4)",
        "the interval is their range",
        "| 2, 1 failed |",
        "- not finished",
    ):
        assert words in text, words
    assert "bad pages: 1" in shown(what)
    whole = "\n".join(benchreport.markdown(done(tmp_path / "2", *ASKED[:-1], "6")))
    assert "the interval is their range" not in whole
    assert "not finished" not in whole


def test_a_warm_up_alone_makes_no_table(tmp_path: Path) -> None:
    def interrupt(number: int, _options: UpgradeOptions) -> None:
        if number == 2:
            raise KeyboardInterrupt

    where, request = fake_bench.layout(tmp_path), fake_bench.request(*ASKED)
    session = bench.begin(where, request, Runner(trouble=interrupt))
    with pytest.raises(KeyboardInterrupt):
        bench.carry_out(session)
    assert not [line for line in benchreport.markdown(session.bench) if line.startswith("|")]


def test_nothing_measured_is_said_without_a_table(tmp_path: Path) -> None:
    def lacking(_number: int, _options: UpgradeOptions) -> None:
        raise PreconditionError("not enough memory")

    what = done(tmp_path, *ASKED, trouble=lacking)
    assert "not possible: gift, 1024 MiB: not enough memory" in shown(what)
    assert not [line for line in benchreport.markdown(what) if line.startswith("|")]


@pytest.mark.parametrize("width", [80, 240])
def test_the_screen_has_intervals_where_there_is_room(tmp_path: Path, width: int) -> None:
    words = ("--mechanisms", "all", "--ram", "1G", "--repeats", "3")
    text = shown(done(tmp_path, *words, ms={"cpr-transfer": 23.0, **SPEED}), width)
    tables = [
        part.splitlines() for part in text.split("\n\n") if part.startswith("1024 MiB of RAM")
    ]
    # Nothing is cut off, to the last letter of the last column.
    names = [name for table in tables for name in table[1].split()]
    assert names == [mechanism.name for mechanism in MECHANISMS]
    assert all(table[2].split() == ["runs", *["3"] * len(table[1].split())] for table in tables)
    assert "…" not in text
    assert max(len(line) for table in tables for line in table) <= width
    totals = [line for table in tables for line in table if line.startswith("total ms")]
    assert {"7.50", "600"} <= {cell for line in totals for cell in line.split()}
    assert ("[5.00, 10.0]" in text) is (width == 240)
    assert (len(tables) == 1) is (width == 240)


def test_the_same_reason_at_two_sizes_is_said_once(tmp_path: Path) -> None:
    def lacking(_number: int, options: UpgradeOptions) -> None:
        if options.mechanism == "gift":
            raise PreconditionError("no command")

    text = shown(done(tmp_path, "--mechanisms", "gift,copy", "--ram", "1G,2G", trouble=lacking))
    assert text.count("no command") == 1
    assert "gift, 1024, 2048 MiB: no command" in text


@pytest.mark.parametrize(
    ("value", "text"),
    [(4780.4, "4780"), (175.2, "175"), (52.34, "52.3"), (1.0217, "1.02"), (0.0366, "0.037"),
     (0.0, "0.000"), (0.9996, "1.00"), (9.996, "10.0"), (99.96, "100")],
)  # fmt: skip
def test_three_digits(value: float, text: str) -> None:
    assert benchreport.digits(value) == text


def test_a_run_in_one_line(tmp_path: Path) -> None:
    run = done(tmp_path, *ASKED, ms=SPEED).runs[0]
    assert benchreport.one_line(run) == (
        "pause 1.25 ms STOP to RESUME, 1.25 ms outside, 1.25 ms inside; total 2.50 ms"
    )
    broken = run.model_copy(update={"faults": ["bad pages: 1"]})
    assert benchreport.one_line(broken) == "FAILED: bad pages: 1"


def test_the_page_documents_every_key() -> None:
    page = (CHECKOUT / "docs" / "measuring.md").read_text(encoding="utf-8")
    documented_elsewhere = ("host.", "old.", "new.")
    wanted = [key for key in keys(Bench) if not key.startswith(documented_elsewhere)]
    missing = [key for key in wanted if f"`{key}`" not in page]
    assert not missing, f"docs/measuring.md says nothing of {missing}"
