# SPDX-License-Identifier: GPL-2.0-or-later
"""What a QEMU is called where the user names one.

old, new, 10.0, 10.2.2      a release with its series in patches/
stock:NAME                  the same without that series
NAME+DIR                    the same, and the series in DIR on top
/some/qemu, ./qemu          a binary that is there
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lab.base.errors import UsageError
from lab.base.layout import Layout
from lab.source.releases import Release, Releases, load_releases
from lab.source.series import STOCK, Series, load_series

_STOCK = "stock:"


@dataclass(frozen=True)
class Named:
    """A QEMU that can be built."""

    releases: Releases
    release: Release
    series: Series


def is_path(name: str) -> bool:
    """Whether `name` is a binary's path, and not something to build."""
    return "/" in name.partition("+")[0]


def stock(name: str) -> str:
    """Return what `name`, which is not a path, is called without its series in patches/."""
    return f"{_STOCK}{name.removeprefix(_STOCK)}"


def named(layout: Layout, name: str) -> Named:
    """Return what `name`, which is not a path, says; raise UsageError for what is not known."""
    releases = load_releases(layout.patches / "releases.toml")
    base, plus, directory = name.partition("+")
    release = releases.get(base.removeprefix(_STOCK))
    series = STOCK if base.startswith(_STOCK) else load_series(layout.patches / release.name)
    if plus:
        more = load_series(Path(directory))
        if more is STOCK:
            raise UsageError(
                f"{name}: there is no series in {directory or 'no directory'}",
                hint="name a directory with a file `series`, which names the patches in it",
            )
        series = Series(f"{series.name}+{more.name}", (*series.patches, *more.patches))
    return Named(releases, release, series)
