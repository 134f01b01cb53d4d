# SPDX-License-Identifier: GPL-2.0-or-later
"""QEMU's own log of its run state and of a migration's steps, which no monitor tells.

With cpr-transfer the new QEMU may resume the guest before anybody has connected to its monitor; the
event is then gone, the trace event ``runstate_set`` is in the log all the same, some microseconds
later.  ``vmstate_downtime_checkpoint`` names the steps from the stop of the guest to its start on
the other side (migration/trace-events in QEMU, since 9.0).  The log backend wrote
``PID@SECONDS.MICROSECONDS:`` up to QEMU 10.0 and writes an ISO 8601 date since (util/error-report.c
and scripts/tracetool/backend/log.py in QEMU).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import datetime

from lab.vm.monitor import Event

_STAMP = r"^(?:\d+@(?P<seconds>\d+\.\d+):|(?P<date>\d{4}-\d\d-\d\dT[\d:.]+Z) )"
_LINE = re.compile(
    _STAMP
    + r"runstate_set current_run_state \d+ \((?P<old>[\w-]+)\) new_state \d+ \((?P<new>[\w-]+)\)$",
    re.MULTILINE,
)
_CHECKPOINT = re.compile(_STAMP + r"vmstate_downtime_checkpoint (?P<name>[\w-]+)$", re.MULTILINE)


def resumes(text: str) -> Iterator[Event]:
    """Yield a RESUME event for every time that the guest was set running; `at` is in seconds."""
    for line in _LINE.finditer(text):
        if line["new"] == "running":
            yield Event("RESUME", {"from": line["old"]}, _at(line))


def checkpoints(text: str) -> dict[str, float]:
    """Return when each step of a migration was last reached (s since the epoch), by its name."""
    return {line["name"]: _at(line) for line in _CHECKPOINT.finditer(text)}


def _at(line: re.Match[str]) -> float:
    return float(line["seconds"] or datetime.fromisoformat(line["date"]).timestamp())


def words(text: str) -> list[str]:
    """Return the lines of the output that are neither trace events nor empty."""
    return [line for line in _CHECKPOINT.sub("", _LINE.sub("", text)).splitlines() if line]
