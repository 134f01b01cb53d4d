# SPDX-License-Identifier: GPL-2.0-or-later
"""The verb `preflight`: how a running QEMU could be upgraded.  It changes nothing."""

from __future__ import annotations

import argparse
import shlex
import sys

from rich.console import Console
from rich.table import Table
from rich.text import Text

from lab.base.errors import ExitCode
from lab.base.layout import Layout
from lab.base.progress import note
from lab.live.look import find, look
from lab.live.preflight import Preflight, examine, successor
from lab.vm import binary

_MIB = 2**20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``pageflip preflight``."""
    add = parser.add_argument
    add("qemu", metavar="PID|SOCKET", help="a running QEMU: its process id or its QMP socket")
    add("--new", required=True, metavar="REL|PATH", help="the QEMU to upgrade to")
    add("--json", action="store_true", help="print what was found out as JSON on stdout")


def show(found: Preflight, console: Console) -> None:
    """Print what was found out."""
    console.print(
        Text(
            f"QEMU {found.version}, process {found.pid}: {found.machine}, {found.accel}, "
            f"{found.state}, {found.ram_bytes // _MIB} MiB of "
            f"{'shared' if found.shared else 'private'} RAM, {found.used_bytes // _MIB} MiB in use"
        )
    )
    console.print(Text(f"to QEMU {found.new_version}, {found.new}"))
    table = Table(box=None)
    for title in ("mechanism", "", "more memory", "pause", "total", "why not"):
        table.add_column(title)
    for way in found.ways:
        table.add_row(
            Text(way.mechanism, "bold" if way.mechanism == found.best else ""),
            Text("yes", "green") if way.possible else Text("no", "red"),
            f"{way.extra_bytes // _MIB} MiB",
            "-" if way.pause_ms is None else f"{way.pause_ms:.0f} ms",
            "-" if way.total_ms is None else f"{way.total_ms:.0f} ms",
            Text("; ".join(way.reasons)),
        )
    console.print(table)
    console.print(Text(f"predicted from {found.basis}", "dim"))
    for remark in found.remarks:
        console.print(Text(f"note: {remark}", "yellow"))
    console.print(Text(f"\nthe new QEMU: {shlex.join(found.new_argv)}"))


def run(given: argparse.Namespace) -> int:
    """Do what ``pageflip preflight`` says; the exit code is 1 when there is no way at all."""
    find(given.qemu)  # before a QEMU is built for it
    new = binary.binary_of(Layout.default(), given.new)
    running = look(given.qemu)
    found = examine(running, new, successor(running, new))
    if given.json:
        sys.stdout.write(found.model_dump_json(indent=2) + "\n")
    else:
        show(found, Console(highlight=False))
    note("nothing was changed")
    return ExitCode.PASS if found.best else ExitCode.FAIL
