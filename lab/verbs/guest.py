# SPDX-License-Identifier: GPL-2.0-or-later
"""The verb `guest`: list guests, build their images, open a console in one."""

from __future__ import annotations

import argparse
import dataclasses
import sys

from lab import options
from lab.base import process
from lab.base.errors import ExitCode, UsageError
from lab.base.layout import Layout, socket_directory
from lab.base.progress import note
from lab.guest import disk, images
from lab.guest.images import GuestImage, LinuxGuest
from lab.pair import firmware
from lab.vm import accel
from lab.vm.agent import agent_lines
from lab.vm.binary import binary_of
from lab.vm.cmdline import Machine

#: Understood by the guests' own start: a shell on the console instead of the agent.
_SHELL = "pageflip.shell"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what ``pageflip guest`` can do."""
    verbs = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    verbs.add_parser("list", help="say which guests there are")
    make = verbs.add_parser("build", help="make images, those that are not in the cache")
    make.add_argument("names", nargs="+", metavar="NAME")
    shell = verbs.add_parser(
        "shell", help="boot a guest and talk to it; nothing is kept of what is done there"
    )
    shell.add_argument("name", metavar="NAME")
    shell.add_argument("--ram", default="1G", metavar="SIZE", help="guest RAM (default: 1G)")
    shell.add_argument(
        "--qemu", default="new", metavar="REL|PATH", help="the QEMU to use (default: new)"
    )
    shell.add_argument("--accel", default="auto", choices=["auto", "kvm", "tcg"])


def run(wanted: argparse.Namespace) -> int:
    """Do what ``pageflip guest`` says."""
    layout = Layout.default()
    match wanted.action:
        case "list":
            _list(layout)
        case "build":
            for name in wanted.names:
                images.named(layout, name)
            for name in wanted.names:
                _say(images.build(name, layout))
        case _:
            return _shell(layout, wanted)
    return ExitCode.PASS


def _list(layout: Layout) -> None:
    for name, one in images.load_guests(layout).items():
        least = f"from {one.smallest_ram_mib} MiB"
        sys.stdout.write(f"{name:<10} {least:<14} {one.description}\n")


def _say(image: GuestImage) -> None:
    sys.stdout.write(f"{image.name}: {image.kernel.parent} ({len(image.packages)} packages)\n")


def _shell(layout: Layout, wanted: argparse.Namespace) -> int:
    """Boot a guest with its console here; the exit code is QEMU's."""
    guest = images.named(layout, wanted.name)
    if not isinstance(guest, LinuxGuest):
        raise UsageError(f"guest {wanted.name} has no shell", hint="take tiny or debian")
    ram_bytes = options.size(wanted.ram)
    image = images.build(wanted.name, layout)
    qemu = binary_of(layout, wanted.qemu, guest.architecture)
    with socket_directory(roomy=bool(image.disk)) as sockets:
        machine = Machine(
            qemu=qemu.path,
            firmware=firmware.prepare(layout),
            kernel=image.kernel,
            initrd=image.initrd,
            append=image.append,
            sockets=sockets,
            serial_log=sockets / "serial.log",
            accel="tcg",
            ram_bytes=ram_bytes,
            machine_type=guest.board,
            cpu=image.cpu,
            disk=disk.overlay(image.disk, sockets),
        )
        chosen = accel.choose(layout, wanted.accel, machine)
        machine = dataclasses.replace(
            machine,
            accel=chosen.accel,
            append=f"{image.append} {_SHELL}",
            console=True,
            trace_log=sockets / "trace.log",
        )
        note(f"guest {wanted.name} under {chosen.accel}; Ctrl-A X ends it")
        with agent_lines(machine.control, machine.heartbeat):
            return process.interactive(machine.argv())
