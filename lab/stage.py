# SPDX-License-Identifier: GPL-2.0-or-later
"""Everything that an upgrade needs, made before the guest boots and given back afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lab import mechanisms, workloads
from lab.base import arguments
from lab.base.errors import PreconditionError
from lab.base.layout import Layout, socket_directory
from lab.base.progress import note
from lab.base.record import Record
from lab.guest import compiler, images
from lab.guest.images import Guest, GuestImage
from lab.host import facts, thp
from lab.host.cgroup import MemoryGroup, memory_group
from lab.host.pinning import Pins, pinned
from lab.mechanisms import Asked, Mechanism
from lab.model import Pages
from lab.options import UpgradeOptions
from lab.pair import build, firmware, packaged
from lab.source import naming
from lab.vm import binary, boards
from lab.vm.binary import Binary
from lab.vm.qemu import VmFactory, factory
from lab.vm.ramfile import ram_file
from lab.workloads import Together

#: A pause is measured here, and not cut short: the verdict says what is too long (ms).
_PATIENCE_MS = 30_000
#: What a QEMU needs beside the guest's RAM: itself, its page tables, the lab (bytes).
_OVERHEAD = 256 * 2**20


@dataclass(frozen=True)
class Pair:
    """The old and the new QEMU, the firmware of each, and a machine type that both have."""

    old: Binary
    new: Binary
    old_firmware: Path
    new_firmware: Path
    machine_type: str


@dataclass(frozen=True)
class Stage:
    """What is settled before the guest boots; every later step of the flow takes it."""

    layout: Layout
    options: UpgradeOptions
    record: Record
    pair: Pair
    image: GuestImage
    mechanism: Mechanism
    asked: Asked
    work: Together
    #: Holds both QEMUs; None where no memory group can be made.
    group: MemoryGroup | None
    pins: Pins
    #: A short-named directory for sockets, and for the guest's disk if it has one.
    sockets: Path
    #: Guest RAM, for a mechanism that needs it in a file.
    ram_file: Path | None
    #: Starts both QEMUs, and ends them with the stage.
    start: VmFactory

    @property
    def reproduce(self) -> str:
        """The command line that asks for the same again, whatever a role means by then."""
        names = {"old": self.options.old, "new": self.options.new}
        names = {side: naming.pinned(self.layout, name) for side, name in names.items()}
        pinned = self.options.model_copy(update=names)
        return arguments.command("rehearse" if self.asked.rehearse else "upgrade", pinned)


@contextmanager
def staged(layout: Layout, options: UpgradeOptions, *, rehearse: bool = False) -> Iterator[Stage]:
    """Make the stage, and clean up after it however the block ends.

    Raises LabError for what cannot be had.
    """
    guest = images.named(layout, options.guest)
    given = check_host_and_names(layout, options, guest)
    record = Record(layout.new_run())
    pair = paired_build(layout, options, guest, given, record)
    image = guest_image(layout, options, record)
    mechanism = chosen(options, pair)
    asked = Asked(_PATIENCE_MS, rehearse, options.verify)
    mechanisms.check_asked(mechanism, asked)
    workloads.check_mechanism(options.workloads, mechanism, pair.old)
    with (
        thp.disabled(wanted=options.pages is Pages.SMALL),
        pinned(layout, wanted=options.pin) as pins,
        memory_group() as group,
        socket_directory(roomy=bool(image.disk)) as sockets,
        workloads.opened(options.workloads, record.directory) as work,
        ram_file(mechanisms.backing(mechanism, options.pages)) as file,
        factory(record.directory, group, pins) as start,
    ):
        confine(group, options)
        yield Stage(
            layout=layout,
            options=options,
            record=record,
            pair=pair,
            image=image,
            mechanism=mechanism,
            asked=asked,
            work=work,
            group=group,
            pins=pins,
            sockets=sockets,
            ram_file=file,
            start=start,
        )


def chosen(options: UpgradeOptions, pair: Pair) -> Mechanism:
    """Return the mechanism that was asked for; of ``auto`` it is said what it chose, and why."""
    room = facts.memory_bytes("MemAvailable") >= 2 * (options.ram_bytes + _OVERHEAD)
    mechanism = mechanisms.choose(options.mechanism, pair.old, pair.new, room=room)
    if mechanisms.named(options.mechanism) is None:
        note(mechanisms.why(mechanism, pair.old, pair.new, room=room))
    return mechanism


def check_host_and_names(
    layout: Layout, options: UpgradeOptions, guest: Guest
) -> dict[str, Binary]:
    """Find out what cannot be before minutes are spent on a build.

    Returns the binaries that were given by path, by that path.

    Raises UsageError for a name that nobody knows, PreconditionError without the memory.
    """
    mechanism = mechanisms.named(options.mechanism)
    workloads.check_guest(options.workloads, options.guest, guest)
    compiler.of(guest.architecture)
    names = {options.old, options.new}
    given = {name: binary.inspect(Path(name)) for name in names if naming.is_path(name)}
    for name in names - given.keys():
        naming.check(layout, name)
    for one in given.values():
        binary.check_architecture(one, guest.architecture)
    copies = 2 if mechanism and mechanism.doubles else 1
    what = f"moving a guest of {options.ram_bytes // 2**20} MiB" + (
        f" by {mechanism.name}" if mechanism else ""
    )
    if options.pages is Pages.HUGETLB:
        facts.require_huge_pages(copies * options.ram_bytes, what)
        facts.require_memory(copies * _OVERHEAD, what)
    else:
        facts.require_memory(copies * (options.ram_bytes + _OVERHEAD), what)
    return given


def paired_build(
    layout: Layout,
    options: UpgradeOptions,
    guest: Guest,
    given: dict[str, Binary],
    record: Record,
) -> Pair:
    """Build the QEMUs named by release, fetch a distribution's, take those given by path."""
    named = {"old": options.old, "new": options.new}
    built = {
        side: build.by_name(layout, name, guest.architecture)
        for side, name in named.items()
        if naming.is_built(layout, name)
    }
    fetched = {
        side: packaged.prepare(layout, asked, guest.architecture)
        for side, name in named.items()
        if (asked := naming.packaged(layout, name))
    }
    record.write("sources", {side: made.source for side, made in built.items()})
    record.write("build", {**built, **fetched})
    old, new = (
        given.get(name) or binary.binary_of(layout, name, guest.architecture)
        for name in named.values()
    )
    # A distribution's comes with firmware of its own, as its user has it; others share one, since
    # a ROM of another size would not migrate.
    return Pair(
        old,
        new,
        old.firmware or firmware.prepare(layout),
        new.firmware or firmware.prepare(layout),
        boards.common(options.machine or guest.board, old.machines, new.machines),
    )


def guest_image(layout: Layout, options: UpgradeOptions, record: Record) -> GuestImage:
    """Build the guest's image, or find it in the cache."""
    image = images.build(options.guest, layout)
    record.write("guest", image)
    return image


def confine(group: MemoryGroup | None, options: UpgradeOptions) -> None:
    """Limit the memory of both QEMUs together, for ``--memory-margin``."""
    if options.margin_bytes is None:
        return
    if group is None:
        raise PreconditionError(
            "no memory group can be made here, so none can be limited",
            hint="run as root, or leave --memory-margin out",
        )
    group.limit(options.ram_bytes + options.margin_bytes)
