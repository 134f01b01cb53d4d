# SPDX-License-Identifier: GPL-2.0-or-later
"""The verb `upgrade`: of a guest of the lab's own, or of QEMUs that run already."""

from __future__ import annotations

import argparse
import sys

from rich.console import Console

from lab import options
from lab.base.errors import ExitCode, UsageError
from lab.base.layout import Layout
from lab.base.progress import note
from lab.base.record import as_json, as_json_list
from lab.live import move
from lab.model import Outcome, VerdictKind
from lab.options import add_arguments, parse
from lab.pipeline import upgrade_once
from lab.report import screen
from lab.verbs.preflight import show as show_ways
from lab.vm import binary

__all__ = ["add_arguments", "run"]

#: What of the options of ``pageflip upgrade`` is for a QEMU of somebody else's, too.
_FITTING = {"pid", "new", "mechanism", "dry_run", "at_once", "json", "out", "verb", "profile"}


def run(options: argparse.Namespace) -> int:
    """Do what ``pageflip upgrade`` says."""
    if options.pid:
        return _running(options)
    wanted = parse(options)
    result = upgrade_once(Layout.default().into(wanted.out), wanted)
    if wanted.json:
        sys.stdout.write(as_json(result))
    else:
        screen.show(result)
    return ExitCode.PASS if result.verdict is VerdictKind.PASS else ExitCode.FAIL


def _check_options(given: argparse.Namespace) -> None:
    """Raise UsageError for what is asked of a guest of the lab's own."""
    parser = argparse.ArgumentParser()
    options.add_arguments(parser)
    for name, value in vars(given).items():
        if name not in _FITTING and value != parser.get_default(name):
            raise UsageError(
                f"--{name.replace('_', '-')} is for guests of the lab's own, and not with --pid"
            )
    if given.at_once < 1:
        raise UsageError(f"--at-once {given.at_once}: one is the fewest")


def _running(given: argparse.Namespace) -> int:
    """Do what ``pageflip upgrade --pid`` says."""
    _check_options(given)
    layout = Layout.default().into(given.out)
    new = binary.binary_of(layout, given.new)
    plans = [move.plan(what, new, given.mechanism) for what in given.pid]
    if given.dry_run:
        for one in plans:
            show_ways(one.seen, Console(highlight=False))
            note(f"process {one.found.pid} would be upgraded by {one.mechanism.name}")
        note("nothing was changed")
        return ExitCode.PASS
    moved = move.Mover(layout).all(plans, given.at_once)
    if given.json:
        sys.stdout.write(as_json_list(moved))
    if len(moved) < len(plans):
        note(f"{len(plans) - len(moved)} of {len(plans)} were not begun, and are as they were")
    upgraded = [one for one in moved if one.outcome is Outcome.UPGRADED]
    return ExitCode.PASS if len(upgraded) == len(plans) else ExitCode.FAIL
