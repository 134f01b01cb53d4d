# SPDX-License-Identifier: GPL-2.0-or-later
"""The verb `upgrade`: upgrade a guest of the lab's own, or QEMUs that are already running."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from rich.console import Console

from lab import managers, options
from lab.base import arguments
from lab.base.errors import ExitCode, UsageError
from lab.base.layout import Layout
from lab.base.progress import note
from lab.base.record import as_json, as_json_list
from lab.live import look, move, planning
from lab.live.moved import Moved
from lab.live.planning import Plan
from lab.managers import upgrade as managed
from lab.mechanisms import Asked
from lab.model import VerdictKind
from lab.options import UpgradeOptions
from lab.pipeline import upgrade_once
from lab.report import screen
from lab.verbs.preflight import add_connect
from lab.verbs.preflight import show as show_ways
from lab.vm import binary


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``pageflip upgrade``."""
    options.add_arguments(parser)
    parser.set_defaults(new="")  # what is installed is a domain's, the lab's own the others'
    add = parser.add_argument
    arguments.add_out(parser)
    add("--json", action="store_true", help="print exactly result.json on stdout")
    live = parser.add_argument_group(
        "running QEMUs", "upgrade QEMUs that the lab did not start; see also preflight"
    )
    live.add_argument(
        "--pid",
        nargs="+",
        metavar="PID|SOCKET",
        help="by process id or QMP socket; if one cannot be moved, no further one is started",
    )
    live.add_argument(
        "--domain",
        nargs="+",
        metavar="NAME",
        help="domains of libvirt's, by name, UUID or number, to the QEMU that is installed where "
        "each was started from, or to --new; libvirt's daemon is stopped once for all of them",
    )
    add_connect(live)
    live.add_argument("--at-once", type=int, default=1, metavar="N", help="how many (default: 1)")
    live.add_argument(
        "--patience",
        type=int,
        metavar="MS",
        help="how long a guest may stand still until the attempt is given up and it goes on where "
        "it was (default: the mechanism's own, 500 with the series and 2000 with transplant)",
    )
    live.add_argument(
        "--config",
        action="store_true",
        help="with --domain: write the new QEMU into the persistent definition as well",
    )
    live.add_argument(
        "--dry-run", action="store_true", help="say what would be done, and change nothing"
    )


def run(given: argparse.Namespace, *, rehearse: bool = False) -> int:
    """Do what ``pageflip upgrade`` says, or ``pageflip rehearse``."""
    asked = Asked(given.patience, rehearse=rehearse)
    if given.pid and given.domain:
        raise UsageError("--pid and --domain are of different managers", "one after the other")
    if given.connect and not given.domain:
        raise UsageError("--connect says whose domains --domain names", "name one with --domain")
    if given.config and (rehearse or not given.domain):
        raise UsageError("--config is for domains that are upgraded", "name one with --domain")
    if given.domain:
        return _domains(given, asked)
    given.new = given.new or UpgradeOptions().new
    if given.pid:
        return _running(given, asked)
    if given.dry_run or given.at_once != 1 or given.patience is not None:
        raise UsageError(
            "--dry-run, --at-once and --patience are for running QEMUs", "name one with --pid"
        )
    wanted = options.parse(given)
    result = upgrade_once(Layout.default().into(given.out), wanted, rehearse=rehearse)
    if given.json:
        sys.stdout.write(as_json(result))
    else:
        screen.show(result)
    return ExitCode.PASS if result.verdict is VerdictKind.PASS else ExitCode.FAIL


def _check_options(given: argparse.Namespace) -> None:
    """Raise UsageError for what only a guest of the lab's own has."""
    if alien := arguments.foreign(UpgradeOptions, given):
        raise UsageError(f"{alien} is for guests of the lab's own, and not with --pid or --domain")
    if given.at_once < 1:
        raise UsageError(f"--at-once {given.at_once}: one is the fewest")
    if given.patience is not None and given.patience < 1:
        raise UsageError(f"--patience {given.patience}: one millisecond is the least")


def _check_different(names: Sequence[str]) -> list[int]:
    """Return the processes; raise UsageError for what is no running QEMU, or is named twice."""
    seen: dict[int, str] = {}
    for name in names:
        pid, _ = look.find(name)
        if pid in seen:
            raise UsageError(
                f"--pid {seen[pid]} {name}: both are process {pid}", hint="name each QEMU once"
            )
        seen[pid] = name
    return list(seen)


def _running(given: argparse.Namespace, asked: Asked) -> int:
    """Do what ``pageflip upgrade --pid`` says, or ``pageflip rehearse --pid``."""
    _check_options(given)
    first = _check_different(given.pid)[0]
    layout = Layout.default().into(given.out)
    new = binary.binary_of(layout, given.new, look.emulated_by(first))
    plans = [planning.plan(what, new, given.mechanism, asked) for what in given.pid]
    if given.dry_run:
        return _show(plans, asked)
    return _tell(given, move.Mover(layout).all(plans, given.at_once), len(plans))


def _domains(given: argparse.Namespace, asked: Asked) -> int:
    """Do what ``pageflip upgrade --domain`` says, or ``pageflip rehearse --domain``."""
    given.new, named = given.new or UpgradeOptions().new, given.new
    _check_options(given)
    layout = Layout.default().into(given.out)
    manager = managers.named(given.connect)
    guests = manager.find(given.domain)
    programs = {
        one.name: binary.binary_of(layout, named or str(one.emulator), look.emulated(one.emulator))
        for one in guests
    }
    definers = {one.pid: manager.definer(one) for one in guests} if given.config else {}
    if given.dry_run:
        plans = [
            managed.plan(manager, one, programs[one.name], given.mechanism, asked) for one in guests
        ]
        return _show(plans, asked)
    moved = managed.upgrade(
        layout, manager, guests, programs, given.mechanism, asked, given.at_once
    )
    done = {one.pid for one in moved if one.done}
    for one in guests:
        if one.pid in done & definers.keys():
            definers[one.pid](programs[one.name].path)
    return _tell(given, moved, len(guests))


def _show(plans: Sequence[Plan], asked: Asked) -> int:
    """Say what would be done."""
    for one in plans:
        show_ways(one.seen, Console(highlight=False))
        what = "rehearsed" if asked.rehearse else "upgraded"
        note(f"process {one.found.pid} would be {what} by {one.mechanism.name}")
    note("nothing was changed")
    return ExitCode.PASS


def _tell(given: argparse.Namespace, moved: Sequence[Moved], wanted: int) -> int:
    """Say what has been done; return the exit code."""
    if given.json:
        sys.stdout.write(as_json_list(moved))
    if len(moved) < wanted:
        note(f"{wanted - len(moved)} of {wanted} were not started, and are unchanged")
    done = [one for one in moved if one.done]
    return ExitCode.PASS if len(done) == wanted else ExitCode.FAIL
