# SPDX-License-Identifier: GPL-2.0-or-later
"""What a run leaves behind."""

from __future__ import annotations

import os
import shutil
import tarfile
from pathlib import Path

import pytest

from lab.base import progress
from lab.base.record import BUNDLE, Lines, Record, Spare
from lab.model import Result, VerdictKind

SAMPLE = Path(__file__).with_name("result.json")


@pytest.mark.parametrize("kind", list(VerdictKind))
def test_only_a_failed_run_is_packed(kind: VerdictKind, tmp_path: Path) -> None:
    result = Result.model_validate_json(SAMPLE.read_text()).model_copy(update={"verdict": kind})
    (tmp_path / "qmp.log").write_text("said\n")
    record = Record(tmp_path)
    record.write("sources", {"a": 1})
    record.finish(result)
    assert (tmp_path / "REPRODUCE").read_text() == f"{result.reproduce}\n"
    assert (tmp_path / BUNDLE).exists() is (kind is VerdictKind.FAIL)
    if kind is VerdictKind.FAIL:
        with tarfile.open(tmp_path / BUNDLE) as bundle:
            assert {Path(name).name for name in bundle.getnames()} == {
                "1-sources.json",
                "REPRODUCE",
                "qmp.log",
                "result.json",
            }
            packed = bundle.extractfile(f"{tmp_path.name}/qmp.log")
            assert packed is not None
            assert packed.read() == b"said\n"


def test_what_cannot_be_kept_of_somebody_elses_upgrade_is_told_once(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    progress.note_once.cache_clear()
    run = tmp_path / "run"
    run.mkdir()
    record, lines = Spare(run), Lines(run / "qmp.log")
    record.write("preflight", {"a": 1})
    lines.add("one")
    assert (run / "1-preflight.json").read_text() == '{\n  "a": 1\n}\n'
    assert (run / "qmp.log").read_text() == "one\n"
    log = record.log("new.log")
    assert log == run / "new.log"
    assert log.exists()
    shutil.rmtree(run)
    record.write("upgrade", {})
    record.keep("moved.json", "{}")
    lines.add("goes to a file without a name")
    lines.close()
    lines.add("goes nowhere")
    assert record.log("new.log") == Path(os.devnull)
    Lines(run / "qmp.log").add("goes nowhere")
    said = capfd.readouterr().err.replace("\n", "")
    assert said.count("are not complete: No such file or directory") == 1
    with pytest.raises(FileNotFoundError):
        Record(run).write("sources", {})


def test_lines_that_find_no_room(capfd: pytest.CaptureFixture[str]) -> None:
    progress.note_once.cache_clear()
    lines = Lines(Path("/dev/full"))
    lines.add("one")
    lines.add("two")
    said = capfd.readouterr().err
    assert said.count("the records in /dev are not complete: No space left on device") == 1
