# SPDX-License-Identifier: GPL-2.0-or-later
"""Reports for QEMU's own guestperf: its reader, which is in QEMU's tree, takes them."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from test_guestperf import run_directory

from lab import cli
from lab.base.layout import Layout
from lab.source import naming
from lab.source.resolve import resolve, stock_tree

_LAYOUT = Layout.default()


def test_qemus_own_reader_takes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it reads, and writes again, is what was written."""
    tree = stock_tree(_LAYOUT, resolve(_LAYOUT, naming.named(_LAYOUT, "new").release))
    monkeypatch.syspath_prepend(str(tree / "tests" / "migration-stress"))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # the tree is known by its content
    from guestperf.report import Report

    cli.main(["report", str(run_directory(tmp_path)), "--guestperf"])
    written = tmp_path / "guestperf.json"
    again = json.loads(Report.from_json_file(str(written)).to_json())
    told = json.loads(written.read_text(encoding="utf-8"))
    assert again.keys() == told.keys()
    assert again["scenario"].keys() == told["scenario"].keys()
    for scenario in (again["scenario"], told["scenario"]):
        for name in ("dirty_limit", "x_vcpu_dirty_limit_period", "vcpu_dirty_limit"):
            del scenario[name]  # which QEMU's reader writes, and does not read
    assert again == told
