# SPDX-License-Identifier: GPL-2.0-or-later
"""The verb `validate`: is a patch series fit for what it is upgraded to?"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from lab import checks, host, mechanisms, rounds, submitted
from lab.checks import Check, Status
from lab.errors import ExitCode, UsageError
from lab.layout import Layout
from lab.progress import note
from lab.record import as_json_list, write_whole
from lab.subject import Side, Subject, end_name

#: What is tried where the user names nothing: what the base has.
_MECHANISMS = {"localhost": "flip,gift", "stock": "precopy,postcopy"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``pageflip validate``."""
    add = parser.add_argument
    add(
        "series",
        metavar="SERIES",
        help="a directory of patches, an mbox, a git range (A..B), or a message-id (by b4)",
    )
    add(
        "--on",
        choices=list(_MECHANISMS),
        default="localhost",
        help="base: the release with our own series, or as it is (default: localhost)",
    )
    add(
        "--side",
        choices=list(Side),
        default=Side.NEW,
        help="which end of the upgrade gets the series (default: new)",
    )
    add("--old", default="10.0", metavar="REL|PATH", help="upgraded from (default: 10.0)")
    add("--new", default="new", metavar="REL|PATH", help="upgraded to (default: new)")
    add("--no-bisect", action="store_true", help="build after the last patch only")
    add("--mechanisms", metavar="A,B,...", help="upgraded by (default: what the base has)")
    add("--ram", default="512M", metavar="SIZE", help="guest RAM (default: 512M)")
    add("--touch", default="75%", metavar="SIZE|PERCENT", help="of it in use (default: 75%%)")
    add("--repeats", type=int, default=3, metavar="N", help="rounds (default: 3)")
    add("--accel", default="auto", choices=["auto", "kvm", "tcg"], help="default: auto")
    add("--repository", type=Path, metavar="DIR", help="for a git range (default: qemu/)")
    add("--out", type=Path, metavar="DIR", help="where the directory is made (default: ./out)")


def validate(subject: Subject) -> list[Check]:
    """Do every check that makes sense after those before it, and keep what each said."""
    found: list[Check] = []
    for do, needed in checks.STEPS:
        before = len(found)
        for check in do(subject):
            found.append(check)
            note(f"{check.status.upper():4}  {check.tool}: {check.summary}")
            write_whole(subject.directory / "validate.json", as_json_list(found))
        if needed and any(check.status is Status.FAIL for check in found[before:]):
            break
    return found


def tested_by(subject: Subject, found: Sequence[Check]) -> str:
    """Return plain text to paste below a ``Tested-by:``."""
    here = host.fingerprint()
    lines = [
        f"pageflip validate, {subject.size} on {' and '.join(b.name for b in subject.bases)}, "
        f"guests of {subject.ram} upgraded from {subject.old} to {subject.new}",
        f"on {here.cpu}, {here.cores} cores, {here.distribution}, kernel {here.kernel}",
        "",
        *(f"  {check.status.upper():4}  {check.tool}: {check.summary}" for check in found),
    ]
    return "\n".join(lines) + "\n"


def show(found: Sequence[Check], console: Console) -> None:
    """Print the verdict, and what is wrong in full."""
    failed = [check for check in found if check.status is Status.FAIL]
    console.print(Text("FAIL", "bold red") if failed else Text("PASS", "bold green"))
    table = Table(box=None, show_header=False)
    colours = {Status.PASS: "green", Status.WARN: "yellow", Status.FAIL: "red"}
    for check in found:
        table.add_row(Text(check.status, colours[check.status]), check.tool, Text(check.summary))
    console.print(table)
    for check in failed:
        for line in check.details.splitlines():
            console.print(Text(f"  {check.tool}: {line}", "red"))


def run(given: argparse.Namespace) -> int:
    """Do what ``pageflip validate`` says."""
    layout = Layout.default()
    names = (given.mechanisms or _MECHANISMS[given.on]).split(",")
    for name in names:
        mechanisms.named(name)
    if given.repeats < 2:
        raise UsageError(f"--repeats {given.repeats}: two rounds are the fewest to compare")
    side, stock = Side(given.side), given.on == "stock"
    old = end_name(layout, given.old, patched=side is not Side.NEW, stock=stock)
    new = end_name(layout, given.new, patched=side is not Side.OLD, stock=stock)
    if given.out:
        layout = Layout(layout.checkout, layout.cache, given.out.absolute())
    directory = layout.new_run("validate-")
    repository = given.repository or layout.checkout / "qemu"
    series = submitted.collect(given.series, directory / "series", repository)
    subject = Subject(
        layout=layout,
        series=series,
        old=old,
        new=new,
        directory=directory,
        side=side,
        every_patch=not given.no_bisect,
        mechanisms=names,
        ram=given.ram,
        touch=given.touch,
        repeats=given.repeats,
        accel=given.accel,
    )
    rounds.plan(checks.request(subject))  # every size fits: said before hours of work, not after
    found = validate(subject)
    text = tested_by(subject, found)
    write_whole(directory / "tested-by.txt", text)
    show(found, Console(highlight=False))
    sys.stdout.write(f"\n{text}\n")
    note(f"everything: {directory}")
    return ExitCode.FAIL if any(c.status is Status.FAIL for c in found) else ExitCode.PASS
