# SPDX-License-Identifier: GPL-2.0-or-later
"""Benches without QEMU: a runner that answers at once with a result of a chosen pause."""

from __future__ import annotations

import argparse
import functools
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lab.base.layout import CHECKOUT, Layout
from lab.model import Result
from lab.options import UpgradeOptions
from lab.results.figures import Request
from lab.verbs import bench as verb

_KNOWN = json.loads((Path(__file__).parent / "result.json").read_text(encoding="utf-8"))

#: What makes a run go wrong: it may raise, or return what differs in the result.
Trouble = Callable[[int, UpgradeOptions], "dict[str, Any] | None"]


def known() -> dict[str, Any]:
    """Return the result that runs have but for what is theirs."""
    return dict(_KNOWN)


def request(*words: str) -> Request:
    """Return what these words on the command line ask for."""
    return verb.parse(_parser().parse_args(words))


@functools.cache
def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    verb.add_arguments(parser)
    return parser


def layout(tmp_path: Path) -> Layout:
    """Return a layout whose runs are made in `tmp_path`."""
    return Layout(CHECKOUT, tmp_path / "cache", tmp_path / "out")


def label(options: UpgradeOptions) -> str:
    """Return what a bench calls it."""
    new = "" if options.new == "new" else options.new
    pair = new if options.old == "old" else f"{options.old}::{new}"
    return f"{options.mechanism}@{pair}" if pair else options.mechanism


def _case(options: UpgradeOptions) -> tuple[int, int, str]:
    return options.ram_bytes, options.dirty_bytes_s, label(options)


@dataclass
class Runner:
    """Upgrades nothing, remembers what was asked: the n-th run of a mechanism takes n times its ms.

    `trouble` is asked before each run, with the number of runs before it.
    """

    ms: dict[str, float] = field(default_factory=dict)
    trouble: Trouble = lambda _number, _options: None
    asked: list[UpgradeOptions] = field(default_factory=list)

    def __call__(self, layout: Layout, options: UpgradeOptions) -> Result:
        number = len(self.asked)
        self.asked.append(options)
        more = self.trouble(number, options) or {}
        turn = [_case(o) for o in self.asked].count(_case(options))
        ms = self.ms.get(label(options), 100.0) * turn
        return Result(
            **{
                **_KNOWN,
                "mechanism": options.mechanism,
                "ram_bytes": options.ram_bytes,
                "touched_bytes": options.touched_bytes,
                "dirty_rate": options.dirty_bytes_s,
                "total_ms": ms * 2,
                "pause_ms": {"qmp": ms, "outside": ms, "inside": ms, "outside_before": 17.4},
                "run_directory": str(layout.out / f"run-{number}"),
                **more,
            }
        )

    @property
    def names(self) -> list[str]:
        """The mechanisms in the order they were run."""
        return [options.mechanism for options in self.asked]
