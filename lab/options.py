# SPDX-License-Identifier: GPL-2.0-or-later
"""What the user asks of an upgrade, checked before anything is started."""

from __future__ import annotations

import argparse
import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lab import workloads
from lab.base.errors import UsageError
from lab.base.layout import Layout
from lab.guest import images
from lab.host import facts
from lab.model import Limits, Pages
from lab.vm.cmdline import BOARDS
from lab.workloads import Workload

_SIZE = re.compile(r"(\d+(?:\.\d+)?)([KMGT]?)(?:i?B)?", re.IGNORECASE)
#: More would take an interrupt controller that the lab's guests are not given.
_MOST_CPUS = 255
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def size(text: str) -> int:
    """Return a size such as ``2G``, ``512M`` or ``1.5GiB`` in bytes; raise UsageError."""
    found = _SIZE.fullmatch(text.strip())
    if not found:
        raise UsageError(f"{text!r} is not a size", hint="write it like 512M or 2G")
    return int(float(found.group(1)) * _UNITS[found.group(2).upper()])


def share(text: str, whole: int) -> int:
    """Return ``75%`` of `whole`, or an absolute size, in bytes; raise UsageError."""
    if text.endswith("%"):
        try:
            part = float(text[:-1])
        except ValueError:
            part = -1.0
        if not 0 < part <= 100:
            raise UsageError(f"{text!r} is not a percentage between 0 and 100")
        return int(whole * part / 100)
    return size(text)


@dataclass(frozen=True)
class UpgradeOptions:
    """One upgrade as the user wants it.  ``old`` and ``new`` are a release or a path."""

    guest: str = "tiny"
    ram_bytes: int = 2 * 2**30
    touched_bytes: int = 3 * 2**29
    dirty_rate: int = 50 * 2**20
    mechanism: str = "auto"
    accel: str = "auto"
    old: str = "10.0"
    new: str = "10.2"
    limits: Limits = field(default_factory=Limits)
    #: What the guest does meanwhile, beside its memory and its clocks.
    workloads: tuple[Workload, ...] = ()
    #: What both QEMUs may use beside the guest's RAM, by force; None is no such limit.
    margin_bytes: int | None = None
    pages: Pages = Pages.THP
    #: The board, as QEMU's machine types are named without their version; virtual processors.
    machine: str = "q35"
    cpus: int = 1
    #: Whether memory is read meanwhile.
    memory_samples: bool = True
    #: Whether the guest gets processors of the host for itself.
    pin: bool = False
    json: bool = False
    out: Path | None = None
    reproduce: str = "./pageflip upgrade"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``pageflip upgrade``."""
    add = parser.add_argument
    add("--ram", default="2G", metavar="SIZE", help="guest RAM (default: 2G)")
    add(
        "--mechanism",
        default="auto",
        metavar="NAME",
        help="how the guest is moved (default: auto, the best that both QEMUs have)",
    )
    add_shared(parser, dirty_rate="50M")
    add(
        "--limit-pause-ms",
        type=float,
        default=Limits().pause_ms,
        metavar="N",
        help="verdict: longest pause by any clock (default: %(default)g)",
    )
    add(
        "--limit-memory-ratio",
        type=float,
        default=Limits().memory_ratio,
        metavar="X",
        help="verdict: highest memory peak, as a ratio to before (default: %(default)g)",
    )
    add(
        "--memory-margin",
        metavar="SIZE",
        help="put both QEMUs into a memory group that may use the guest's RAM and this, and no "
        "more: whatever doubles memory is killed by the kernel (default: no such group)",
    )
    add(
        "--no-memory-samples",
        dest="memory_samples",
        action="store_false",
        help="do not read the QEMUs' memory meanwhile, nor judge it: to see what reading costs",
    )
    add(
        "--machine",
        default="q35",
        choices=list(BOARDS),
        help="the guest's board, of the version that both QEMUs have (default: q35)",
    )
    add(
        "--pin",
        action="store_true",
        help="keep half of the host's processors for the guest's, by tuna; the lab and the host's "
        "interrupts have to do with the others meanwhile",
    )
    add("--json", action="store_true", help="print exactly result.json on stdout")
    live = parser.add_argument_group(
        "running QEMUs", "upgrade QEMUs that the lab did not start; see also preflight"
    )
    live.add_argument(
        "--pid",
        nargs="+",
        metavar="PID|SOCKET",
        help="which: by process id or QMP socket; one that does not move is the last one begun",
    )
    live.add_argument("--at-once", type=int, default=1, metavar="N", help="how many (default: 1)")
    live.add_argument(
        "--dry-run", action="store_true", help="say what would be done, and change nothing"
    )


def add_shared(parser: argparse.ArgumentParser, dirty_rate: str, *, several: bool = False) -> None:
    """Declare the options of every verb that upgrades a guest of the lab's own.

    `several` says whether there may be several dirty rates.
    """
    add = parser.add_argument
    add(
        "--guest",
        default="tiny",
        metavar="NAME",
        help="guest: tiny (Linux) or micro (without Linux: more KVMs run it) (default: tiny)",
    )
    add(
        "--touch",
        default="75%",
        metavar="SIZE|PERCENT",
        help="how much of its RAM is filled and checked (default: 75%%)",
    )
    add(
        "--dirty-rate",
        default=dirty_rate,
        metavar="SIZE,..." if several else "SIZE",
        help="how much of that the guest rewrites each second"
        + (", or several such rates" if several else "")
        + " (default: %(default)s)",
    )
    add(
        "--workload",
        metavar="NAME[,NAME...]",
        help="what the guest does meanwhile and is checked for, beside its memory and its clocks: "
        + ", ".join(one.name for one in workloads.WORKLOADS)
        + " (default: nothing)",
    )
    add(
        "--pages",
        default=Pages.THP,
        choices=list(Pages),
        help="guest RAM: thp, ordinary memory and what transparent huge pages the kernel gives; "
        "hugetlb, private huge pages of 2 MiB from the kernel's pool (default: thp)",
    )
    add("--cpus", type=int, default=1, metavar="N", help="the guest's processors (default: 1)")
    add(
        "--accel",
        default="auto",
        choices=["auto", "kvm", "tcg"],
        help="accelerator (default: auto, KVM where it really runs the guest)",
    )
    add(
        "--old", default="10.0", metavar="REL|PATH", help="the QEMU to upgrade from (default: 10.0)"
    )
    add("--new", default="10.2", metavar="REL|PATH", help="the QEMU to upgrade to (default: 10.2)")
    add("--out", type=Path, metavar="DIR", help="where run directories are made (default: ./out)")


def parse(options: argparse.Namespace, layout: Layout | None = None) -> UpgradeOptions:
    """Return the options with units resolved; raise UsageError for what cannot be."""
    wanted = images.named(layout or Layout.default(), options.guest)
    ram = size(options.ram)
    if ram < wanted.smallest_ram_mib * 2**20 or ram % 2**20:
        raise UsageError(
            f"--ram {options.ram}: guest {options.guest} needs at least "
            f"{wanted.smallest_ram_mib}M, in whole MiB"
        )
    touched = share(options.touch, ram)
    if touched > ram - wanted.reserve_mib * 2**20:
        raise UsageError(
            f"--touch {options.touch}: {touched // 2**20} MiB of {ram // 2**20} MiB leave guest "
            f"{options.guest} less than {wanted.reserve_mib} MiB for itself",
            hint="touch less or give more --ram",
        )
    pages = Pages(options.pages)
    if pages is Pages.HUGETLB and ram % facts.HUGE_PAGE:
        raise UsageError(f"--ram {options.ram}: with --pages hugetlb it is a multiple of 2M")
    if pages is Pages.HUGETLB and options.memory_margin:
        raise UsageError("--memory-margin: a memory group does not count --pages hugetlb")
    if options.limit_pause_ms <= 0 or options.limit_memory_ratio <= 0:
        raise UsageError("a limit must be larger than zero")
    if not 0 < options.cpus <= _MOST_CPUS:
        raise UsageError(f"--cpus {options.cpus}: a guest has 1 to {_MOST_CPUS} processors")
    return UpgradeOptions(
        guest=options.guest,
        ram_bytes=ram,
        touched_bytes=touched // 4096 * 4096,
        dirty_rate=size(options.dirty_rate),
        mechanism=options.mechanism,
        accel=options.accel,
        old=options.old,
        new=options.new,
        limits=Limits(pause_ms=options.limit_pause_ms, memory_ratio=options.limit_memory_ratio),
        workloads=workloads.named(options.workload or ""),
        margin_bytes=size(options.memory_margin) if options.memory_margin else None,
        pages=pages,
        memory_samples=options.memory_samples,
        machine=options.machine,
        cpus=options.cpus,
        pin=options.pin,
        json=options.json,
        out=options.out,
        reproduce=reproducer(options),
    )


def of(**asked: Any) -> UpgradeOptions:
    """Return what is asked for, and for everything else what ``pageflip upgrade`` does by default.

    Names and values as on the command line, with ``_`` for ``-``.
    """
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parse(parser.parse_args([], argparse.Namespace(**asked)))


def reproducer(options: argparse.Namespace) -> str:
    """Return the command line that asks for the same upgrade again, every default spelt out."""
    words = ["./pageflip", "upgrade"]
    names = (
        "guest",
        "ram",
        "touch",
        "pages",
        "dirty_rate",
        "machine",
        "cpus",
        "mechanism",
        "accel",
    )
    for name in (*names, "old", "new"):
        words += [f"--{name.replace('_', '-')}", str(getattr(options, name))]
    words += [
        "--limit-pause-ms",
        f"{options.limit_pause_ms:g}",
        "--limit-memory-ratio",
        f"{options.limit_memory_ratio:g}",
    ]
    words += ["--workload", options.workload] if options.workload else []
    words += ["--pin"] if options.pin else []
    words += [] if options.memory_samples else ["--no-memory-samples"]
    words += ["--memory-margin", options.memory_margin] if options.memory_margin else []
    return shlex.join(words)
