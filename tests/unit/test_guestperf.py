# SPDX-License-Identifier: GPL-2.0-or-later
"""Reports for QEMU's own guestperf: their shape.  That its reader takes them: tests/patches."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from test_page import LINE, SAMPLE, made

from lab import cli
from lab.measure.timeline import CpuTime, StatusChange
from lab.model import Outcome, Result
from lab.report import guestperf

RESULT = Result.model_validate_json(SAMPLE.read_text(encoding="utf-8"))
LIVE = LINE.model_copy(
    update={
        "began_s": 1000.0,
        "steps": [
            StatusChange(at_ms=1.0, status="setup"),
            StatusChange(at_ms=2.0, status="active"),
            StatusChange(at_ms=149.0, status="completed"),
        ],
        "cpu": [CpuTime(at_ms=-1200.0, used_ms=5000.0), CpuTime(at_ms=150.0, used_ms=6000.0)],
    }
)
INFO = {"status": "completed", "total-time": 148, "ram": {"transferred": 4096, "mbps": 1.5}}
MACHINE = {"kernel": "/boot/k", "initrd": None}


def told(**changed: Any) -> dict[str, Any]:
    result = RESULT.model_copy(update=changed)
    return guestperf.report(result, LIVE, "gift@x", MACHINE, INFO)


def test_what_was_seen_is_told_and_nothing_else() -> None:
    found = told(ram_bytes=2**28, mechanism="postcopy")
    assert found["hardware"]["mem"] == 0.25
    assert (found["scenario"]["name"], found["scenario"]["post_copy"]) == ("gift@x", True)
    assert not told()["scenario"]["post_copy"]
    assert found["result"] == {"success": True}
    assert told(outcome=Outcome.ROLLED_BACK)["result"] == {"success": False}
    assert (found["kernel"], found["initrd"], found["vcpu_timings"]) == ("/boot/k", "", [])
    history = found["progress_history"]
    assert [(one["status"], one["now"]) for one in history] == [
        ("setup", 1000.001), ("active", 1000.002), ("completed", 1000.149),
    ]  # fmt: skip
    assert [one["ram"]["transferred_bytes"] for one in history] == [0, 0, 4096]
    assert [one["duration"] for one in history] == [0, 0, 148]
    assert found["qemu_timings"][0] == {"tid": 0, "timestamp": 998.8, "value": 5000.0}


def test_heartbeats_are_timed_from_one_to_the_next_across_the_upgrade() -> None:
    timings = told()["guest_timings"]
    assert len(timings) == len(LINE.old_beats_ms) + len(LINE.new_beats_ms) - 1
    longest = max(timings, key=lambda record: float(record["value"]))
    assert longest == {"tid": 1, "timestamp": 1000.11, "value": 21.0}
    assert {record["tid"] for record in timings} == {0, 1}


def test_heartbeats_are_in_order_whoever_they_come_from() -> None:
    line = LIVE.model_copy(update={"old_beats_ms": [1.0, 2.0, 5.0], "new_beats_ms": [4.0, 7.0]})
    timings = guestperf.report(RESULT, line, "", MACHINE, INFO)["guest_timings"]
    assert [(record["tid"], record["value"]) for record in timings] == [
        (0, 1.0), (1, 2.0), (0, 1.0), (1, 2.0),
    ]  # fmt: skip


def test_a_status_that_no_event_told_is_told_all_the_same() -> None:
    line = LIVE.model_copy(update={"steps": LIVE.steps[:2]})
    history = guestperf.report(RESULT, line, "", MACHINE, INFO)["progress_history"]
    assert [one["status"] for one in history] == ["setup", "active", "completed"]
    assert history[-1]["now"] == 1000.15


def run_directory(directory: Path) -> Path:
    """Make what an upgrade leaves behind, as far as it is read here."""
    directory.mkdir(exist_ok=True)
    (directory / "result.json").write_text(SAMPLE.read_text(encoding="utf-8"))
    for name, kept in (
        ("4-run", {"machine": MACHINE}),
        ("5-upgrade", {"query_migrate": INFO}),
        ("6-measure", {"timeline": LIVE.model_dump(mode="json")}),
    ):
        (directory / f"{name}.json").write_text(json.dumps(kept))
    return directory


def test_the_verb_writes_one_for_an_upgrade(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = run_directory(tmp_path)
    assert cli.main(["report", str(directory), "--guestperf"]) == 0
    written = Path(capsys.readouterr().out.strip())
    assert json.loads(written.read_text(encoding="utf-8")) == json.loads(
        json.dumps(guestperf.report(RESULT, LIVE, RESULT.mechanism, MACHINE, INFO))
    )
    assert not (directory / "report.html").exists()


def test_the_verb_writes_one_for_each_typical_run_of_a_bench(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done, directory = made(tmp_path, "--mechanisms", "gift,copy", "--repeats", "1")
    for run in done.runs:
        run_directory(directory / run.run_directory)
    capsys.readouterr()
    assert cli.main(["report", str(directory), "--guestperf"]) == 0
    written = [Path(line) for line in capsys.readouterr().out.split()]
    names = [json.loads(file.read_text(encoding="utf-8"))["scenario"]["name"] for file in written]
    assert names == ["gift", "copy"]


def test_runs_that_are_gone_cannot_be_told(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    _, directory = made(tmp_path, "--mechanisms", "gift", "--repeats", "1")
    assert cli.main(["report", str(directory), "--guestperf"]) == 2
    assert "run-1/result.json" in capfd.readouterr().err.replace("\n", "")


@pytest.mark.parametrize("missing", ["6-measure.json", "result.json"])
def test_what_was_not_written_down_cannot_be_told(
    missing: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (run_directory(tmp_path) / missing).unlink()
    assert cli.main(["report", str(tmp_path), "--guestperf"]) == 2
    assert str(tmp_path) in capfd.readouterr().err
