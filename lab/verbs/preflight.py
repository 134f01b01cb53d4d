# SPDX-License-Identifier: GPL-2.0-or-later
"""The verb `preflight`: how a running QEMU could be upgraded.  It changes nothing."""

from __future__ import annotations

import argparse
import shlex
import sys

from rich.console import Console
from rich.table import Table
from rich.text import Text

from lab import managers
from lab.base.errors import ExitCode, UsageError
from lab.base.layout import Layout
from lab.base.progress import note
from lab.base.record import as_json
from lab.live.look import Running, emulated, emulated_by, find, look
from lab.live.preflight import Preflight, examine, successor
from lab.managers.upgrade import examine as examined
from lab.vm import binary
from lab.vm.binary import Binary

_MIB = 2**20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``pageflip preflight``."""
    add = parser.add_argument
    add(
        "qemu",
        nargs="?",
        metavar="PID|SOCKET",
        help="a running QEMU: its process id or its QMP socket",
    )
    add("--domain", metavar="NAME", help="or a domain of libvirt's, by name, UUID or number")
    add_connect(parser)
    add(
        "--new",
        metavar="REL|PATH",
        default="",
        help="the QEMU to upgrade to (default, of a domain: what is installed where it was "
        "started from)",
    )
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


def add_connect(parser: argparse._ActionsContainer) -> None:
    """Add ``--connect``, which says whose domains are meant."""
    parser.add_argument(
        "--connect",
        metavar="URI",
        default="",
        help="with --domain: qemu:///system (root's default), qemu:///session, or proxmox",
    )


def _looked_at(given: argparse.Namespace) -> tuple[Running, Binary]:
    """Return the QEMU that is named, and the new one."""
    layout = Layout.default()
    if bool(given.qemu) == bool(given.domain):
        raise UsageError("one QEMU is looked at", "name a process, a socket, or --domain NAME")
    if given.domain:
        manager = managers.named(given.connect)
        (guest,) = manager.find([given.domain])
        what = emulated(guest.emulator)
        new = binary.binary_of(layout, given.new or str(guest.emulator), what)
        return examined(manager, guest), new
    if not given.new:
        raise UsageError("it is not said what to upgrade to", "name it with --new")
    pid, _ = find(given.qemu)  # before a QEMU is built for it
    new = binary.binary_of(layout, given.new, emulated_by(pid))
    return look(given.qemu), new


def run(given: argparse.Namespace) -> int:
    """Do what ``pageflip preflight`` says; the exit code is 1 when there is no way at all."""
    running, new = _looked_at(given)
    found = examine(running, new, successor(running, new), managed=bool(given.domain))
    if given.json:
        sys.stdout.write(as_json(found))
    else:
        show(found, Console(highlight=False))
    note("nothing was changed")
    return ExitCode.PASS if found.best else ExitCode.FAIL
