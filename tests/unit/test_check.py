# SPDX-License-Identifier: GPL-2.0-or-later
"""`pageflip check`: every step runs, every test is counted, a missing report is a failure."""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from pathlib import Path

import pytest

from lab.base.errors import UsageError
from lab.base.layout import CHECKOUT
from lab.verbs import check
from lab.verbs.check import Counts, Step

REPORT = """<testsuites><testsuite>
<testcase name="a"/><testcase name="b"><failure/></testcase>
<testcase name="c"><skipped/></testcase><testcase name="d"><error/></testcase>
</testsuite></testsuites>"""


def test_an_xunit_report_is_counted(tmp_path: Path) -> None:
    report = tmp_path / "report.xml"
    report.write_text(REPORT)
    counts = Counts()
    counts.add(report)
    assert (counts.passed, counts.failed, counts.skipped) == (1, 2, 1)


@pytest.mark.parametrize("text", [None, "<testsuites>"])
def test_a_report_that_is_not_there_or_torn_is_a_failure(tmp_path: Path, text: str | None) -> None:
    report = tmp_path / "report.xml"
    if text is not None:
        report.write_text(text)
    counts = Counts()
    counts.add(report)
    assert (counts.passed, counts.failed) == (0, 1)


def checked(monkeypatch: pytest.MonkeyPatch, known: tuple[Step, ...], **options: object) -> int:
    monkeypatch.setattr(check, "STEPS", known)
    return check.run(argparse.Namespace(**{"steps": [], "quick": False, "all": False, **options}))


def test_all_steps_run_whatever_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    mark = tmp_path / "mark"
    steps = (Step("bad", ("false",)), Step("good", ("touch", str(mark))))
    assert checked(monkeypatch, steps) == 1
    assert mark.exists()
    assert capsys.readouterr().out == "1 passed, 1 failed, 0 skipped\n"


def test_a_step_without_its_report_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A runner that exits with 0 and has run nothing must not read as a pass."""
    assert checked(monkeypatch, (Step("empty", ("true",), xunit="--xunit"),)) == 1
    assert capsys.readouterr().out == "0 passed, 1 failed, 0 skipped\n"


def test_quick_leaves_out_what_needs_a_qemu(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    steps = (Step("fast", ("true",)), Step("slow", ("false",), slow=True))
    assert checked(monkeypatch, steps, quick=True) == 0
    assert capsys.readouterr().out == "1 passed, 0 failed, 0 skipped\n"


def test_what_takes_longest_is_run_when_all_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    mark = tmp_path / "mark"
    script = 'echo "$@" >"$0"'
    step = Step("avocado", ("sh", "-c", script, str(mark), "all"), shorter=("but", "some"))
    assert checked(monkeypatch, (step,)) == 0
    assert mark.read_text() == "all but some\n"
    assert checked(monkeypatch, (step,), all=True) == 0
    assert mark.read_text() == "all\n"


def listed(tags: str) -> set[str]:
    argv = [sys.executable, "-m", "avocado", "list", f"-t={tags}", "tests/avocado"]
    done = subprocess.run(argv, cwd=CHECKOUT, capture_output=True, text=True, check=True)
    return {line.split()[1] for line in done.stdout.splitlines() if ":" in line}


def test_every_real_upgrade_is_one_of_meson_s_suites_and_checks() -> None:
    """A test with another tag, or none, would be run by --all only, or by no suite."""
    (step,) = (step for step in check.STEPS if step.shorter)
    (word,) = step.shorter
    default = listed(word.partition("=")[2])
    text = (CHECKOUT / "meson.build").read_text()
    found = re.search(r"^  tags = \{(.*)\}$", text, re.MULTILINE)
    assert found
    filters = dict(re.findall(r"'(\w+)': '([\w,-]+)'", found[1]))
    quick, medium, thorough = (listed(filters[tag]) for tag in ("quick", "medium", "thorough"))
    assert quick | medium == default
    assert not quick & medium
    assert thorough
    every = (CHECKOUT / "tests" / "avocado").glob("test_*.py")
    count = sum(
        len(re.findall(r"^    def test\w*\(", one.read_text(), re.MULTILINE)) for one in every
    )
    assert len(default) + len(thorough) == count


def test_an_unknown_step_lists_the_known(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError) as caught:
        checked(monkeypatch, (Step("unit", ("true",)),), steps=["unti"])
    assert "unit" in caught.value.hint
