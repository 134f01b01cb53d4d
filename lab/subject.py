# SPDX-License-Identifier: GPL-2.0-or-later
"""A series, the QEMUs that it goes on, and the upgrade that it is to be tried in."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lab import naming, sources
from lab.errors import UsageError
from lab.layout import Layout
from lab.naming import Named
from lab.patches import Series
from lab.rounds import PAIR
from lab.sources import Source


class Side(enum.StrEnum):
    """Which end of the upgrade has the series."""

    OLD = "old"
    NEW = "new"
    BOTH = "both"


@dataclass(frozen=True)
class Base:
    """A QEMU that the series goes on."""

    layout: Layout
    series: Series
    #: What it is called without the series (lab.naming).
    name: str

    @property
    def patched(self) -> str:
        """What it is called with the series."""
        return f"{self.name}+{self.series.patches[0].parent}"

    @property
    def named(self) -> Named:
        """Everything that is known of it."""
        return naming.named(self.layout, self.name)

    @property
    def source(self) -> Source:
        """What it is made from."""
        asked = self.named
        return sources.resolve(self.layout, asked.release, asked.releases.upstream.releases)

    @property
    def tree(self) -> Path:
        """The same unpacked, without any series."""
        return sources.stock_tree(self.layout, self.source)


@dataclass(frozen=True)
class Subject:
    """A series on its bases, and what it is to be tried with."""

    layout: Layout
    series: Series
    #: The pair without the series (lab.naming).
    old: str
    new: str
    directory: Path
    side: Side = Side.NEW
    every_patch: bool = True
    mechanisms: Sequence[str] = ("flip", "gift")
    ram: str = "512M"
    touch: str = "75%"
    repeats: int = 3
    accel: str = "auto"

    @property
    def bases(self) -> list[Base]:
        """What the series goes on, the old one first."""
        names = {Side.OLD: [self.old], Side.NEW: [self.new], Side.BOTH: [self.old, self.new]}
        return [Base(self.layout, self.series, name) for name in names[self.side]]

    @property
    def pair(self) -> tuple[str, str]:
        """The old and the new QEMU, with the series where it goes."""
        patched = {base.name: base.patched for base in self.bases}
        old = self.old if self.side is Side.NEW else patched[self.old]
        new = self.new if self.side is Side.OLD else patched[self.new]
        return old, new

    @property
    def size(self) -> str:
        """How many patches, in words."""
        number = len(self.series.patches)
        return "1 patch" if number == 1 else f"{number} patches"

    def tool(self, name: str, base: Base) -> str:
        """Return what a check of `base` is called: no two of a series by the same name."""
        return f"{name} on {base.name}" if self.side is Side.BOTH else name

    def label(self, mechanism: str) -> str:
        """Return how a bench calls the upgrade with the series (lab.rounds)."""
        old, new = self.pair
        return f"{mechanism}@{old}{PAIR}{new}" if old != self.old else f"{mechanism}@{new}"


def end_name(layout: Layout, name: str, *, patched: bool, stock: bool) -> str:
    """Return what to call an end of the upgrade without the series; raise UsageError.

    One that is to be `patched` has to be a release: as upstream has it if `stock`.
    """
    if patched and (naming.is_path(name) or "+" in name):
        raise UsageError(
            f"{name}: a series cannot be put on that", hint="name a release: old, new, 10.0, 10.2"
        )
    name = naming.stock(name) if patched and stock else name
    if not naming.is_path(name):
        naming.named(layout, name)
    return name
