# SPDX-License-Identifier: GPL-2.0-or-later
"""The verb `releases`: which QEMUs can be had by name, and which are here."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass

from rich.console import Console
from rich.table import Table

from lab.base.errors import ExitCode
from lab.base.layout import Layout
from lab.pair import build, packaged
from lab.source import debian, naming
from lab.source.releases import Releases, load_releases
from lab.source.series import load_series


@dataclass(frozen=True)
class Line:
    """A name that ``--old`` and ``--new`` take.

    ``here`` are the versions, or builds, of it that are in the cache; "" where there is none.
    """

    name: str
    what: str
    here: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("--json", action="store_true", help="print the list as JSON")
    parser.add_argument(
        "--update",
        action="store_true",
        help="take the distributions' newest packages at their next use, not those taken before",
    )


def run(options: argparse.Namespace) -> int:
    """Carry out the verb; nothing is fetched or built."""
    layout = Layout.default()
    releases = load_releases(layout.patches / "releases.toml")
    if options.update:
        for suite in sorted({suite for _, suite in _suites(releases)}):
            debian.forget(layout, suite)
    lines = [*_built(layout, releases), *_packaged(layout, releases)]
    if options.json:
        sys.stdout.write(json.dumps([asdict(one) for one in lines], indent=2) + "\n")
        return ExitCode.PASS
    table = Table(box=None)
    for column in ("name", "what", "in the cache"):
        table.add_column(column)
    for one in lines:
        table.add_row(one.name, one.what, one.here)
    console = Console(highlight=False, markup=False)
    console.print(table)
    flavours = ", ".join(f"{name}:" for name in releases.flavours)
    console.print(
        f"Before a release's name: stock: (without its series), {flavours} (another flavour than "
        f"{releases.build.flavour}); behind it +DIR (a series of yours). A path is taken as it is."
    )
    return ExitCode.PASS


def _built(layout: Layout, releases: Releases) -> Iterator[Line]:
    """Yield the releases that are built here."""
    there = build.existing(layout)
    for name, release in releases.releases.items():
        roles = [role for role, one in vars(releases.roles).items() if one == name]
        number = len(load_series(layout.patches / name).patches)
        what = [f"QEMU {release.version}", f"{number} patches" if number else "no series"]
        what += [f"the default for --{role}" for role in roles]
        found = dict.fromkeys(f"{one.series} ({one.kind})" for one in there if one.release == name)
        yield Line(name, ", ".join(what), ", ".join(found))


def _suites(releases: Releases) -> Iterator[tuple[str, str]]:
    for name, one in releases.distributions.items():
        for which, suite in one.suites.items():
            yield f"{name}:{which}", suite


def _packaged(layout: Layout, releases: Releases) -> Iterator[Line]:
    """Yield what distributions ship."""
    for name, suite in _suites(releases):
        asked = naming.packaged(layout, name)
        found = packaged.existing(layout, asked) if asked else None
        yield Line(name, f"as packaged in {suite}", found.version if found else "")
