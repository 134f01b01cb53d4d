# SPDX-License-Identifier: GPL-2.0-or-later
"""What a run leaves behind."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest

from lab.base.record import BUNDLE, Record
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
