# SPDX-License-Identifier: GPL-2.0-or-later
"""QEMU's own log of its run state, for what happens before its monitor can be heard.

With cpr-transfer the new QEMU may resume the guest before anybody has connected to its monitor; the
event is then gone, the trace event ``runstate_set`` is in the log all the same, some microseconds
later.  The log backend wrote ``PID@SECONDS.MICROSECONDS:`` up to QEMU 10.0 and writes an ISO 8601
date since (util/error-report.c and scripts/tracetool/backend/log.py in QEMU).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import datetime

from lab.vm.monitor import Event

_LINE = re.compile(
    r"^(?:\d+@(?P<seconds>\d+\.\d+):|(?P<date>\d{4}-\d\d-\d\dT[\d:.]+Z) )"
    r"runstate_set current_run_state \d+ \((?P<old>[\w-]+)\) new_state \d+ \((?P<new>[\w-]+)\)$",
    re.MULTILINE,
)


def resumes(text: str) -> Iterator[Event]:
    """Yield a RESUME event for every time that the guest was set running; `at` is in seconds."""
    for line in _LINE.finditer(text):
        if line["new"] == "running":
            at = float(line["seconds"] or datetime.fromisoformat(line["date"]).timestamp())
            yield Event("RESUME", {"from": line["old"]}, at)


def without(text: str) -> str:
    """Return the output without the trace events."""
    return _LINE.sub("", text)
