# SPDX-License-Identifier: GPL-2.0-or-later
"""Our Avocado tests, run with a pair: what is asked of avocado, and what its report says."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from lab.base import process
from lab.base.errors import CannotTellError, UsageError
from lab.base.layout import CHECKOUT
from lab.review import suite
from lab.review.suite import Ran

REPORT = """<?xml version="1.0"?><testsuite>
<testcase classname="U" name="tests/x.py:U.test_a"/>
<testcase classname="U" name="tests/x.py:U.test_b"><failure message="no"/></testcase>
<testcase classname="U" name="tests/x.py:U.test_c"><skipped/></testcase>
<testcase classname="U" name="tests/x.py:U.test_d"><error/></testcase>
</testsuite>"""


def test_the_pair_is_what_the_tests_are_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[list[str]] = []

    def avocado(argv: list[str | Path], **more: Any) -> subprocess.CompletedProcess[str]:
        asked.append([str(word) for word in argv])
        assert more["env"] == {"PYTHONPATH": str(CHECKOUT)}
        more["on_line"](" (2/4) tests/x.py:U.test_b: STARTED")
        Path(argv[argv.index("--xunit") + 1]).write_text(REPORT)
        return subprocess.CompletedProcess(argv, 1, "", "")

    monkeypatch.setattr(process, "run", avocado)
    into = tmp_path / "here"
    found = suite.run("title", suite.tagged("quick"), ("10.0+/a b", "10.2"), "tcg", into)
    assert found == Ran(1, 1, ("tests/x.py:U.test_b", "tests/x.py:U.test_d"))
    text = " ".join(asked[0])
    assert "avocado run -t quick tests/avocado -p old=10.0+/a b -p new=10.2 -p accel=tcg" in text


@pytest.mark.parametrize("text", [None, "<testsuite", "<testsuite/>"])
def test_no_report_is_no_verdict(text: str | None, tmp_path: Path) -> None:
    report = tmp_path / "results.xml"
    if text is not None:
        report.write_text(text)
    with pytest.raises(CannotTellError, match="avocado ran no test"):
        suite.read(report)


def test_tags_that_no_test_has_are_wrong_usage() -> None:
    suite.known("quick,baseline")
    with pytest.raises(UsageError, match="no test has them"):
        suite.known("quickly")
