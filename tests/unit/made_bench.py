# SPDX-License-Identifier: GPL-2.0-or-later
"""Benches made of numbers: nothing is run, not even by the runner that answers at once."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lab.model import Host
from lab.results import figures
from lab.results.figures import Bench, Figures, Request, Run

_KNOWN = json.loads((Path(__file__).parent / "result.json").read_text(encoding="utf-8"))
_MIB = 2**20

#: The pauses by mechanism, the warm-up's first; None where the round has no such run.
Pauses = Mapping[str, Sequence[float | None]]


def run(mechanism: str, number: int, ms: float, ram_mib: int = 1024, **more: Any) -> Run:
    """Return a run whose three pauses are `ms`."""
    known = dict.fromkeys(Figures.model_fields)
    clocks = {f"pause_{clock}_ms": ms for clock in ("qmp", "outside", "inside")}
    return Run(
        **{
            "ram_bytes": ram_mib * _MIB,
            "dirty_rate": 0,
            "mechanism": mechanism,
            "round": number,
            "faults": [],
            "figures": {**known, **clocks, "total_ms": 2 * ms},
            "noise_ms": 1.0,
            "touched_bytes": ram_mib * _MIB // 2,
            "accel": "tcg",
            "memory_method": None,
            "took_s": 1.0,
            "run_directory": f"{mechanism}-{number}",
            **more,
        }
    )


def of_runs(
    runs: Sequence[Run], mechanisms: Sequence[str], ram: str = "1G", repeats: int = 5, **more: Any
) -> Bench:
    """Return the bench with `runs`, of which the last mechanism is the reference."""
    asked = {"reference": mechanisms[-1], "dirty_rate": "0", **more.pop("asked", {})}
    request = Request(
        mechanisms=list(mechanisms),
        ram=ram.split(","),
        touch="50%",
        repeats=repeats,
        guest="tiny",
        accel="tcg",
        old="old",
        new="new",
        **asked,
    )
    bench = Bench(
        **{
            "started": "2026-01-02T03:04:05+00:00",
            "finished": True,
            "command": request.command,
            "request": request,
            "host": Host(**_KNOWN["host"]),
            "runs": list(runs),
            **more,
        }
    )
    return bench.model_copy(update={"summary": figures.summarise(bench)})


def of_pauses(pauses: Pauses, noise_ms: float = 1.0, **more: Any) -> Bench:
    """Return a bench of one RAM size."""
    rounds = max(len(values) for values in pauses.values())
    runs = [
        run(name, number, ms, noise_ms=noise_ms)
        for name, values in pauses.items()
        for number, ms in enumerate(values)
        if ms is not None
    ]
    return of_runs(runs, list(pauses), repeats=max(1, rounds - 1), **more)
