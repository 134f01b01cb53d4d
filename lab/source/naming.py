# SPDX-License-Identifier: GPL-2.0-or-later
"""What a QEMU is called where the user names one.

old, new, 10.0, 10.2.2      a release with its series in patches/
stock:NAME                  the same without that series
NAME+DIR                    the same, and the series in DIR on top
FLAVOUR:NAME                the same, built as that flavour of patches/releases.toml has it
debian:13, debian:sid       what a distribution ships, as it is
/some/qemu, ./qemu          a binary that is there
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lab.base.errors import UsageError
from lab.base.layout import Layout
from lab.source.releases import BuildOptions, Release, Releases, load_releases
from lab.source.series import STOCK, Series, load_series

_STOCK = "stock:"
_SLIM = "slim:"


@dataclass(frozen=True)
class Named:
    """A QEMU that can be built."""

    releases: Releases
    release: Release
    series: Series
    flavour: str
    #: The same with the release's own name, where its version or role was said.
    name: str

    def options(self, architecture: str) -> BuildOptions:
        """Return what its build is asked for, to run guests of that architecture.

        Raises UsageError for one that is not known.
        """
        if architecture not in self.releases.architectures:
            known = ", ".join(self.releases.architectures)
            raise UsageError(f"no guest {architecture!r} is known here", hint=f"one of: {known}")
        return self.releases.options(self.flavour, architecture)


@dataclass(frozen=True)
class Packaged:
    """A QEMU that a distribution ships: what it is called, its suite, and the packages to take.

    ``packages`` has them by the architecture of the guests that they run.
    """

    name: str
    suite: str
    packages: dict[str, tuple[str, ...]]


def is_path(name: str) -> bool:
    """Whether `name` is a binary's path, and not something to build."""
    return "/" in name.partition("+")[0]


def stock(name: str) -> str:
    """Return what `name`, which is not a path, is called without its series in patches/."""
    head, base = _prefixes(name)
    return f"{head.removesuffix(_STOCK)}{_STOCK}{base}"


def slim(name: str) -> str:
    """Return what `name` is called as the flavour that is quick to build.

    A path is one, and a name that says its flavour (or distribution).
    """
    said = is_path(name) or _prefixes(name)[0].removesuffix(_STOCK)
    return name if said else f"{_SLIM}{name}"


def pinned(layout: Layout, name: str) -> str:
    """Return what `name` is called for good: with a release's name where a role was said."""
    return named(layout, name).name if is_built(layout, name) else name


def is_built(layout: Layout, name: str) -> bool:
    """Whether `name` is built here: neither a path nor what a distribution ships."""
    return not is_path(name) and packaged(layout, name) is None


def check(layout: Layout, name: str) -> None:
    """Raise UsageError for a `name` that nothing is known by; a path is not looked at."""
    if is_built(layout, name):
        named(layout, name)


def packaged(layout: Layout, name: str) -> Packaged | None:
    """Return which packages `name` says, None for what is not a distribution's.

    Raises UsageError for a suite that is not known.
    """
    distribution, _, which = name.partition(":")
    known = load_releases(layout.patches / "releases.toml").distributions.get(distribution)
    if known is None or is_path(name):
        return None
    if which not in known.suites:
        raise UsageError(
            f"{name}: no such suite of {distribution} is known here",
            hint=f"one of: {', '.join(f'{distribution}:{one}' for one in known.suites)}",
        )
    return Packaged(name, known.suites[which], known.packages)


def named(layout: Layout, name: str) -> Named:
    """Return what `name`, which is not a path, says; raise UsageError for what is not known."""
    releases = load_releases(layout.patches / "releases.toml")
    base, plus, directory = name.partition("+")
    head, base = _prefixes(base)
    release = releases.get(base)
    series = STOCK if head.endswith(_STOCK) else load_series(layout.patches / release.name)
    flavour = head.removesuffix(_STOCK).removesuffix(":") or releases.build.flavour
    if flavour not in releases.flavours:
        raise UsageError(
            f"{name}: there is no flavour {flavour!r}",
            hint=f"one of: {', '.join(releases.flavours)}; then stock:, if at all, then a release",
        )
    if plus:
        more = load_series(Path(directory))
        if more is STOCK:
            raise UsageError(
                f"{name}: there is no series in {directory or 'no directory'}",
                hint="name a directory with a file `series`, which names the patches in it",
            )
        series = Series(f"{series.name}+{more.name}", (*series.patches, *more.patches))
    return Named(releases, release, series, flavour, f"{head}{release.name}{plus}{directory}")


def _prefixes(name: str) -> tuple[str, str]:
    """Return what stands before the release's name, colons and all, and the rest."""
    head, colon, _base = name.partition("+")[0].rpartition(":")
    return head + colon, name[len(head + colon) :]
