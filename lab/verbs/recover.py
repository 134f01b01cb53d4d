# SPDX-License-Identifier: GPL-2.0-or-later
"""The verb `recover`: bring live upgrades to their end that a lab left half done."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from lab.base.errors import CannotTellError, ExitCode, UsageError
from lab.base.number import whole
from lab.base.progress import note
from lab.base.record import as_json_list
from lab.live import journal, recover
from lab.live.journal import Entry
from lab.live.recover import Recovered
from lab.managers import journal as errands
from lab.managers import recover as managed
from lab.managers.journal import Errand


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``pageflip recover``."""
    add = parser.add_argument
    add("--pid", default="all", metavar="PID|all", help="of the old QEMU or the new (default: all)")
    add("--json", action="store_true", help="print what was found and done as JSON on stdout")


def run(given: argparse.Namespace) -> int:
    """Do what ``pageflip recover`` says.

    The exit code is 0 when one QEMU runs each guest, 1 when nobody or both do, 3 when it cannot be
    told.
    """
    found = journal.left()
    chosen = _chosen(given.pid, found.entries)
    failed: list[CannotTellError] = list(found.damaged) if given.pid == "all" else []
    managers = errands.left() if given.pid == "all" else []
    done = []
    for entry in chosen:
        try:
            done.append(recover.recover(entry))
            tell(done[-1])
        except CannotTellError as error:
            failed.append(error)
    if given.pid == "all":
        failed += _managers(managers)
    for one in failed:
        note(f"{one.message}; what to do: {one.hint}")
    journal.sweep()
    if not chosen and not failed and not managers:
        note("no live upgrade has been left half done")
    if given.json:
        sys.stdout.write(as_json_list(done))
    if any(one.runs in {"nobody", "both"} for one in done):
        return ExitCode.FAIL
    return (
        ExitCode.PASS if not failed and all(one.answers for one in done) else (ExitCode.CANNOT_TELL)
    )


def _managers(left: Sequence[Errand]) -> list[CannotTellError]:
    """Give managers back that a lab kept away, now that it is known who runs each guest."""
    failed = []
    for errand in left:
        try:
            managed.recover(errand)
        except CannotTellError as error:
            failed.append(error)
    return failed


def _chosen(named: str, entries: Sequence[Entry]) -> list[Entry]:
    if named == "all":
        return list(entries)
    pid = whole(named)
    if pid is None:
        raise UsageError(f"--pid {named}: is no process id", "name one, or all")
    return [one for one in entries if pid in {one.old.pid, one.new.pid if one.new else 0}]


def tell(one: Recovered) -> None:
    """Report what was found and done."""
    reached = (
        f"; it is reached at {one.monitor}"
        if one.answers
        else (f", but it is not reached at {one.monitor}: end other clients, and look there")
    )
    ends = {
        "old": f"its guest runs there{reached}",
        "new": f"its guest runs in process {one.new_pid}{reached}",
        "nobody": "nobody has its guest any more",
        "both": f"it and process {one.new_pid} BOTH run the guest: end one of them, and run "
        f"{journal.hint(one.pid)} again",
        "unknown": f"who has its guest cannot be told yet: end other clients of {one.monitor}, and "
        f"run {journal.hint(one.pid)} again",
    }
    did = ", ".join(one.did) or "nothing"
    note(f"process {one.pid}: {ends[one.runs]}; found: {one.found}; done: {did}")
