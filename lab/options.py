# SPDX-License-Identifier: GPL-2.0-or-later
"""The options of an upgrade, checked before anything starts."""

from __future__ import annotations

import argparse
import math
import re
from typing import Annotated, Any

from lab import workloads as known
from lab.base import arguments
from lab.base.arguments import Option
from lab.base.errors import UsageError
from lab.base.layout import Layout
from lab.guest import images
from lab.host import facts
from lab.model import Limits, Model, Pages
from lab.vm.boards import BOARDS
from lab.workloads import Workload

_SIZE = re.compile(r"(\d+(?:\.\d+)?)([KMGT]?)(?:i?B)?", re.IGNORECASE)
#: More would take an interrupt controller that the lab's guests do not have.
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


class GuestOptions(Model):
    """The options of every verb that upgrades guests of the lab's own."""

    guest: Annotated[
        str,
        Option("guest image; ./pageflip guest list names them", "NAME", compared=True),
    ] = "tiny"
    touch: Annotated[
        str, Option("how much of its RAM is filled and checked", "SIZE|PERCENT", compared=True)
    ] = "75%"
    dirty_rate: Annotated[
        str, Option("how much of that the guest rewrites each second", "SIZE", compared=True)
    ] = "50M"
    pages: Annotated[
        Pages,
        Option(
            "guest RAM: thp, ordinary memory and what transparent huge pages the kernel gives; "
            "4k, ordinary memory without those; hugetlb, private huge pages of 2 MiB from the "
            "kernel's pool",
            compared=True,
        ),
    ] = Pages.THP
    cpus: Annotated[int, Option("the guest's processors", "N", compared=True)] = 1
    workload: Annotated[
        str,
        Option(
            "what else the guest does during the upgrade, and is checked for: "
            + ", ".join(one.name for one in known.WORKLOADS),
            "NAME[,NAME...]",
            compared=True,
        ),
    ] = ""
    devices: Annotated[
        str,
        Option(
            "what else the guest has, with spaces between: as QEMU's -device takes it",
            "'A B,...'",
            compared=True,
        ),
    ] = ""
    accel: Annotated[
        str,
        Option(
            "accelerator; auto is KVM where it really runs the guest",
            choices=("auto", "kvm", "tcg"),
            compared=True,
        ),
    ] = "auto"
    old: Annotated[str, Option("the QEMU to upgrade from", "REL|PATH")] = "old"
    new: Annotated[str, Option("the QEMU to upgrade to", "REL|PATH", live=True)] = "new"


class UpgradeOptions(GuestOptions):
    """One upgrade as the user typed it; what the words come to are the properties.

    `parse` and `of` check it: a property of one that was not checked may raise UsageError.
    """

    ram: Annotated[str, Option("guest RAM", "SIZE")] = "2G"
    mechanism: Annotated[
        str,
        Option(
            "how the guest is moved; auto takes the best that both QEMUs have", "NAME", live=True
        ),
    ] = "auto"
    machine: Annotated[
        str,
        Option(
            f"the guest's board ({', '.join(BOARDS)}), of the newest version that both QEMUs have, "
            "or a machine type (default: what the guest is made for)",
            "BOARD|TYPE",
        ),
    ] = ""
    limit_pause_ms: Annotated[float, Option("verdict: longest pause by any clock", "N")] = (
        Limits().pause_ms
    )
    limit_memory_ratio: Annotated[
        float, Option("verdict: highest memory peak, as a ratio to before", "X")
    ] = Limits().memory_ratio
    memory_margin: Annotated[
        str,
        Option(
            "limit both QEMUs to the guest's RAM and this much more, by a memory group: the "
            "kernel kills whatever doubles memory (default: no limit)",
            "SIZE",
        ),
    ] = ""
    memory_samples: Annotated[
        bool,
        Option("neither sample the QEMUs' memory nor judge it: shows what sampling costs"),
    ] = True
    verify: Annotated[
        bool,
        Option(
            "compare every page of both QEMUs before the guest is committed, and let one that "
            "writes to its memory after that crash: for tests of a mechanism, and slow"
        ),
    ] = False
    pin: Annotated[
        bool,
        Option(
            "reserve half of the host's processors for the guest's, by tuna; the lab and the "
            "host's interrupts use the others"
        ),
    ] = False

    @property
    def ram_bytes(self) -> int:
        """Guest RAM."""
        return size(self.ram)

    @property
    def touched_bytes(self) -> int:
        """How much of RAM is filled, in whole pages."""
        return share(self.touch, self.ram_bytes) // 4096 * 4096

    @property
    def dirty_bytes_s(self) -> int:
        """How many bytes the guest rewrites each second."""
        return size(self.dirty_rate)

    @property
    def workloads(self) -> tuple[Workload, ...]:
        """The workloads by their names."""
        return known.named(self.workload)

    @property
    def margin_bytes(self) -> int | None:
        """What both QEMUs may use beside the guest's RAM; None for no limit."""
        return size(self.memory_margin) if self.memory_margin else None

    @property
    def limits(self) -> Limits:
        """What the verdict allows."""
        return Limits(pause_ms=self.limit_pause_ms, memory_ratio=self.limit_memory_ratio)

    @property
    def reproduce(self) -> str:
        """The command line that asks for the same upgrade again."""
        return arguments.command("upgrade", self)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of an upgrade."""
    arguments.declare(parser, UpgradeOptions)


def parse(given: argparse.Namespace, layout: Layout | None = None) -> UpgradeOptions:
    """Return what was typed; raise UsageError for what cannot be."""
    return _checked(
        UpgradeOptions(**arguments.read(UpgradeOptions, given)), layout or Layout.default()
    )


def of(**asked: Any) -> UpgradeOptions:
    """Return these options, and the default for every other one; raise UsageError.

    Names and values as on the command line, with ``_`` for ``-``.
    """
    return _checked(UpgradeOptions(**asked), Layout.default())


def _checked(asked: UpgradeOptions, layout: Layout) -> UpgradeOptions:
    guest = images.named(layout, asked.guest)
    ram, touched = asked.ram_bytes, asked.touched_bytes
    if ram < guest.smallest_ram_mib * 2**20 or ram % 2**20:
        raise UsageError(
            f"--ram {asked.ram}: guest {asked.guest} needs at least "
            f"{guest.smallest_ram_mib}M, in whole MiB"
        )
    if touched > ram - guest.reserve_mib * 2**20:
        raise UsageError(
            f"--touch {asked.touch}: {touched // 2**20} MiB of {ram // 2**20} MiB leave guest "
            f"{asked.guest} less than {guest.reserve_mib} MiB for itself",
            hint="touch less or give more --ram",
        )
    _check_pages(asked)
    for name in ("limit_pause_ms", "limit_memory_ratio"):
        limit = getattr(asked, name)
        if not (limit > 0 and math.isfinite(limit)):  # nothing is above a NaN
            raise UsageError(f"{arguments.spelled(name)} {limit}: a limit is a number above zero")
    if not 0 < asked.cpus <= _MOST_CPUS:
        raise UsageError(f"--cpus {asked.cpus}: a guest has 1 to {_MOST_CPUS} processors")
    # What is wrong with these is found by reading them.
    _ = asked.dirty_bytes_s, asked.workloads, asked.margin_bytes
    return asked


def _check_pages(asked: UpgradeOptions) -> None:
    if asked.pages is not Pages.HUGETLB:
        return
    if asked.ram_bytes % facts.HUGE_PAGE:
        raise UsageError(f"--ram {asked.ram}: with --pages hugetlb it is a multiple of 2M")
    if asked.memory_margin:
        raise UsageError("--memory-margin: a memory group does not count --pages hugetlb")
