# SPDX-License-Identifier: GPL-2.0-or-later
"""A series, the QEMUs that it applies to, and the upgrade to try it in."""

from __future__ import annotations

import argparse
import enum
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lab import mechanisms
from lab.base import arguments
from lab.base.errors import UsageError
from lab.base.layout import Layout
from lab.results.rounds import PAIR
from lab.results.worse import Allowed
from lab.review import intake
from lab.source import naming
from lab.source.naming import Named
from lab.source.resolve import Source, resolve, stock_tree
from lab.source.series import Series


class End(enum.StrEnum):
    """Which end of the upgrade has the series."""

    OLD = "old"
    NEW = "new"
    BOTH = "both"


#: What is tried where the user names nothing: what the base has.
#: cpr-transfer has the steadiest pause of all (docs/measuring.md): with it the least is seen.
MECHANISMS = {
    "localhost": "flip,gift,cpr-transfer",
    "stock": "precopy,postcopy,cpr-transfer",
}


@dataclass(frozen=True)
class Base:
    """A QEMU that the series applies to."""

    layout: Layout
    series: Series
    #: What it is called without the series (lab.source.naming).
    name: str

    @property
    def patched(self) -> str:
        """What it is called with the series; one without a patch changes nothing."""
        patches = self.series.patches
        return f"{self.name}+{patches[0].parent}" if patches else self.name

    @property
    def named(self) -> Named:
        """The release, and the series it has already."""
        return naming.named(self.layout, self.name)

    @property
    def source(self) -> Source:
        """What it is made from."""
        asked = self.named
        return resolve(self.layout, asked.release, asked.releases.upstream.releases)

    @property
    def tree(self) -> Path:
        """The same unpacked, without any series."""
        return stock_tree(self.layout, self.source)


@dataclass(frozen=True)
class Subject:
    """A series on its bases, and what it is to be tried with."""

    layout: Layout
    series: Series
    #: The pair without the series (lab.source.naming).
    old: str
    new: str
    directory: Path
    side: End = End.NEW
    every_patch: bool = True
    mechanisms: Sequence[str] = ("flip", "gift")
    ram: str = "512M"
    touch: str = "75%"
    repeats: int = 3
    #: There is a verdict after `repeats` rounds, and, if little could be seen, after more: so many.
    most: int = 3
    allowed: Allowed = field(default_factory=Allowed)
    accel: str = "auto"
    #: Which of the Avocado tests are run with the pair; none of them where it is empty.
    tags: str = ""

    @property
    def bases(self) -> list[Base]:
        """The QEMUs that the series applies to, the old one first."""
        names = {End.OLD: [self.old], End.NEW: [self.new], End.BOTH: [self.old, self.new]}
        return [Base(self.layout, self.series, name) for name in names[self.side]]

    @property
    def pair(self) -> tuple[str, str]:
        """The old and the new QEMU, with the series where it goes."""
        patched = {base.name: base.patched for base in self.bases}
        old = self.old if self.side is End.NEW else patched[self.old]
        new = self.new if self.side is End.OLD else patched[self.new]
        return old, new

    @property
    def size(self) -> str:
        """How many patches, in words."""
        number = len(self.series.patches)
        return "1 patch" if number == 1 else f"{number} patches"

    def tool(self, name: str, base: Base) -> str:
        """Return what a check of `base` is called: no two of a series by the same name."""
        return f"{name} on {base.name}" if self.side is End.BOTH else name

    def label(self, mechanism: str) -> str:
        """Return how a bench calls the upgrade with the series (lab.results.rounds)."""
        old, new = self.pair
        return f"{mechanism}@{old}{PAIR}{new}" if old != self.old else f"{mechanism}@{new}"


def add_arguments(
    parser: argparse.ArgumentParser, *, ram: str, touch: str, repeats: int = 3
) -> None:
    """Declare what every verb that tries a series asks for."""
    add = parser.add_argument
    add(
        "series",
        metavar="SERIES",
        help="a directory of patches, an mbox, a git range (A..B), or a message-id (by b4)",
    )
    add(
        "--on",
        choices=list(MECHANISMS),
        default="localhost",
        help="base: the release with our own series, or as it is (default: localhost)",
    )
    add(
        "--side",
        choices=list(End),
        default=End.NEW,
        help="which end of the upgrade gets the series (default: new)",
    )
    add("--old", default="old", metavar="REL|PATH", help="upgraded from (default: old)")
    add("--new", default="new", metavar="REL|PATH", help="upgraded to (default: new)")
    add("--ram", default=ram, metavar="SIZE", help=f"guest RAM (default: {ram})")
    share = touch.replace("%", "%%")
    add("--touch", default=touch, metavar="SIZE|PERCENT", help=f"in use (default: {share})")
    add("--repeats", type=int, default=repeats, metavar="N", help=f"rounds (default: {repeats})")
    add("--accel", default="auto", choices=["auto", "kvm", "tcg"], help="default: auto")
    add("--repository", type=Path, metavar="DIR", help="for a git range (default: qemu/)")
    arguments.add_out(parser)


def asked_for(
    given: argparse.Namespace, names: Sequence[str], prefix: str, *, slim: bool = False
) -> Subject:
    """Collect the series into a new directory and return it; raise UsageError.

    With `slim` its QEMUs are those that are quick to build.
    """
    layout = Layout.default()
    for name in names:
        mechanisms.named(name)
    if given.repeats < 2:
        raise UsageError(f"--repeats {given.repeats}: two rounds are the fewest to compare")
    side, stock = End(given.side), given.on == "stock"
    old = end_name(layout, given.old, patched=side is not End.NEW, stock=stock)
    new = end_name(layout, given.new, patched=side is not End.OLD, stock=stock)
    if slim:
        old, new = naming.slim(old), naming.slim(new)
    layout = layout.into(given.out)
    directory = layout.new_run(prefix)
    repository = given.repository or layout.checkout / "qemu"
    series = intake.collect(given.series, directory / "series", repository)
    return Subject(
        layout=layout,
        series=series,
        old=old,
        new=new,
        directory=directory,
        side=side,
        mechanisms=names,
        ram=given.ram,
        touch=given.touch,
        repeats=given.repeats,
        accel=given.accel,
    )


def end_name(layout: Layout, name: str, *, patched: bool, stock: bool) -> str:
    """Return what to call an end of the upgrade without the series; raise UsageError.

    One that is to be `patched` has to be a release: as upstream has it if `stock`.
    """
    if patched and (not naming.is_built(layout, name) or "+" in name):
        raise UsageError(
            f"{name}: a series cannot be put on that",
            hint="name a release, as ./pageflip releases lists them, or old, or new",
        )
    name = naming.stock(name) if patched and stock else name
    naming.check(layout, name)
    return name
