# SPDX-License-Identifier: GPL-2.0-or-later
"""The verb `validate`: apply, build and try a patch series."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from lab.base.errors import ExitCode
from lab.base.files import write_whole
from lab.base.progress import note
from lab.base.record import as_json_list
from lab.host import facts
from lab.results import rounds
from lab.results.worse import WORSE, Allowed
from lab.review import candidate, checks, suite
from lab.review.candidate import Subject
from lab.review.checks import Check, Status


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``pageflip validate``."""
    candidate.add_arguments(parser, ram="512M", touch="75%", repeats=6)
    add = parser.add_argument
    add(
        "--max-repeats",
        type=int,
        default=15,
        metavar="N",
        help="rounds at most, where fewer could not see what --max-slower-ms is (default: 15)",
    )
    allowed = Allowed()
    add(
        "--max-slower-ms",
        type=float,
        default=allowed.slower_ms,
        metavar="MS",
        help=f"a pause that is longer by more, and by more than noise, is a failure "
        f"(default: {allowed.slower_ms:g})",
    )
    add(
        "--max-memory-ratio",
        type=float,
        default=allowed.memory_ratio,
        metavar="RATIO",
        help=f"memory that is so many times the base's, and more than noise, is a failure "
        f"(default: {allowed.memory_ratio:g})",
    )
    add("--mechanisms", metavar="A,B,...", help="upgraded by (default: what the base has)")
    add(
        "--tags",
        default="",
        metavar="TAG,...",
        help="Avocado tests to run with the pair as well, such as quick (default: none)",
    )
    add("--no-bisect", action="store_true", help="build after the last patch only")


def validate(mine: Subject) -> list[Check]:
    """Do every check that makes sense after those before it, and keep what each said."""
    found: list[Check] = []
    for do, needed in checks.STEPS:
        before = len(found)
        for check in do(mine):
            found.append(check)
            note(f"{check.status.upper():4}  {check.tool}: {check.summary}")
            write_whole(mine.directory / "validate.json", as_json_list(found))
        if needed and any(check.status is Status.FAIL for check in found[before:]):
            break
    return found


def tested_by(mine: Subject, found: Sequence[Check]) -> str:
    """Return plain text to paste below a ``Tested-by:``."""
    here = facts.fingerprint()
    lines = [
        f"pageflip validate, {mine.size} on {' and '.join(b.name for b in mine.bases)}, "
        f"guests of {mine.ram} upgraded from {mine.old} to {mine.new}",
        f"on {here.cpu}, {here.cores} cores, {here.distribution}, kernel {here.kernel}",
        "",
        *(f"  {check.status.upper():4}  {check.tool}: {check.summary}" for check in found),
    ]
    return "\n".join(lines) + "\n"


def show(found: Sequence[Check], console: Console) -> None:
    """Print the verdict, and what is wrong in full."""
    failed = [check for check in found if check.status is Status.FAIL]
    worse = any(check.summary.startswith(WORSE) for check in found)
    blind = any(check.tool == checks.POWER and check.status is Status.WARN for check in found)
    said, colour = "PASS", "bold green"
    if failed:
        said, colour = "FAIL", "bold red"
    elif worse:
        said, colour = "PASS, BUT WORSE THAN THE BASE", "bold yellow"
    elif blind:
        said, colour = "PASS, AS FAR AS COULD BE SEEN", "bold yellow"
    console.print(Text(said, colour))
    table = Table(box=None, show_header=False)
    colours = {Status.PASS: "green", Status.WARN: "yellow", Status.FAIL: "red"}
    for check in found:
        table.add_row(Text(check.status, colours[check.status]), check.tool, Text(check.summary))
    console.print(table)
    for check in found:
        if check.status is not Status.FAIL and check.tool != checks.POWER:
            continue
        for line in check.details.splitlines():
            console.print(Text(f"  {check.tool}: {line}", "red" if check in failed else ""))


def run(given: argparse.Namespace) -> int:
    """Do what ``pageflip validate`` says."""
    names = (given.mechanisms or candidate.MECHANISMS[given.on]).split(",")
    if given.tags:
        suite.known(given.tags)
    mine = candidate.asked_for(given, names, "validate-")
    mine = dataclasses.replace(
        mine,
        every_patch=not given.no_bisect,
        tags=given.tags,
        most=given.max_repeats,
        allowed=Allowed(slower_ms=given.max_slower_ms, memory_ratio=given.max_memory_ratio),
    )
    rounds.plan(checks.request(mine))  # every size fits: said before hours of work, not after
    found = validate(mine)
    text = tested_by(mine, found)
    write_whole(mine.directory / "tested-by.txt", text)
    show(found, Console(highlight=False))
    sys.stdout.write(f"\n{text}\n")
    note(f"everything: {mine.directory}")
    return ExitCode.FAIL if any(c.status is Status.FAIL for c in found) else ExitCode.PASS
