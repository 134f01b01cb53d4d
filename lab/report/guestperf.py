# SPDX-License-Identifier: GPL-2.0-or-later
"""An upgrade as a report of QEMU's own guestperf (tests/migration-stress in its tree).  Pure.

Two things are not the same there.  guestperf's guest says how long it took to go over a GB; ours
tells nothing of the kind, and its timings are the ms from one heartbeat to the next.  And guestperf
asks for progress all the time; we have every status when QEMU came to it, and QEMU's counters at
the end.  What an upgrade here does not have is 0, no, or empty, as guestperf has it.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from lab.measure.downtime import MARGIN_NS
from lab.measure.timeline import Timeline
from lab.model import Outcome, Pages, Result

#: What stands for the thread of the guest that is timed: where it was heard from.
_OLD, _NEW = 0, 1
#: The counters of query-migrate's ``ram``, by what guestperf calls them.
_RAM = {
    "transferred_bytes": "transferred",
    "remaining_bytes": "remaining",
    "total_bytes": "total",
    "duplicate_pages": "duplicate",
    "skipped_pages": "skipped",
    "normal_pages": "normal",
    "normal_bytes": "normal-bytes",
    "dirty_rate_pps": "dirty-pages-rate",
    "transfer_rate_mbs": "mbps",
    "iterations": "dirty-sync-count",
}
#: And those beside it.
_PROGRESS = {
    "duration": "total-time",
    "downtime": "downtime",
    "downtime_expected": "expected-downtime",
    "setup_time": "setup-time",
    "throttle_pcent": "cpu-throttle-percentage",
    "dirty_limit_throttle_time_per_round": "dirty-limit-throttle-time-per-round",
    "dirty_limit_ring_full_time": "dirty-limit-ring-full-time",
}


def report(
    result: Result,
    line: Timeline,
    name: str,
    machine: Mapping[str, Any],
    info: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the report of an upgrade.

    `name` is what a chart calls it, `machine` what the old QEMU ran, and `info` is its last
    query-migrate.
    """
    return {
        "hardware": _hardware(result),
        "scenario": _scenario(result, name),
        "progress_history": _history(line, info),
        "guest_timings": _heartbeats(line),
        "qemu_timings": [_record(line, _OLD, at.at_ms, at.used_ms) for at in line.cpu],
        "vcpu_timings": [],
        "result": {"success": result.outcome is Outcome.UPGRADED},
        "binary": result.old.path,
        "dst_host": "localhost",
        "kernel": machine.get("kernel", ""),
        "initrd": machine.get("initrd") or "",
        "transport": "unix",
        "sleep": MARGIN_NS / 1e9,
    }


def _hardware(result: Result) -> dict[str, Any]:
    pool = result.pages is Pages.HUGETLB
    return {
        "cpus": result.cpus,
        "mem": result.ram_bytes / 2**30,
        **{f"{side}_{what}_bind": [] for side in ("src", "dst") for what in ("cpu", "mem")},
        "prealloc_pages": pool,
        "huge_pages": pool,
        "locked_pages": False,
        "dirty_ring_size": 0,
    }


def _scenario(result: Result, name: str) -> dict[str, Any]:
    return {
        "name": name,
        "downtime": 0,
        "bandwidth": 0,
        "max_iters": 0,
        "max_time": 0,
        "pause": result.mechanism == "stop-copy",
        "pause_iters": 0,
        "post_copy": result.mechanism == "postcopy",
        "post_copy_iters": 0,
        "auto_converge": False,
        "auto_converge_step": 0,
        "compression_mt": False,
        "compression_mt_threads": 0,
        "compression_xbzrle": False,
        "compression_xbzrle_cache": 0,
        "multifd": result.mechanism == "multifd",
        "multifd_channels": 0,
        "multifd_compression": "",
        "dirty_limit": False,
        "x_vcpu_dirty_limit_period": 0,
        "vcpu_dirty_limit": 0,
    }


def _history(line: Timeline, info: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return every status; the last one has the counters, which are QEMU's at the end."""
    ends: list[tuple[float, str, dict[str, Any]]] = [
        (step.at_ms, step.status, {}) for step in line.steps
    ]
    if info:
        status = str(info.get("status", "none"))
        at_ms = line.end_ms
        if ends and ends[-1][1] == status:
            at_ms = ends.pop()[0]
        ends.append((at_ms, status, dict(info)))
    return [
        {
            "status": status,
            "ram": {ours: told.get("ram", {}).get(theirs, 0) for ours, theirs in _RAM.items()},
            "now": _when(line, at_ms),
            **{ours: told.get(theirs, 0) for ours, theirs in _PROGRESS.items()},
        }
        for at_ms, status, told in ends
    ]


def _heartbeats(line: Timeline) -> list[dict[str, Any]]:
    """Return the time from each heartbeat to the next."""
    heard = sorted(
        (at_ms, side)
        for side, beats in ((_OLD, line.old_beats_ms), (_NEW, line.new_beats_ms))
        for at_ms in beats
    )
    return [
        _record(line, side, at_ms, round(at_ms - before_ms, 3))
        for (before_ms, _), (at_ms, side) in pairwise(heard)
    ]


def _record(line: Timeline, thread: int, at_ms: float, value: float) -> dict[str, Any]:
    return {"tid": thread, "timestamp": _when(line, at_ms), "value": value}


def _when(line: Timeline, at_ms: float) -> float:
    """Return an instant as guestperf tells it (s since the epoch)."""
    return (line.began_s or 0.0) + at_ms / 1e3
