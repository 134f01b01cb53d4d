# SPDX-License-Identifier: GPL-2.0-or-later
"""What an administrator installs: the distribution's source package with a series on top.

The package is as the distribution has it (format ``3.0 (quilt)``, dpkg-source(1)): its tarball is
untouched, the series is added to the end of ``debian/patches``, and the changelog has one more
entry, whose version sorts between the distribution's and its next one.
"""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass
from email.utils import format_datetime, parsedate_to_datetime
from pathlib import Path

from debian.changelog import Changelog

from lab.base import process
from lab.base.deadline import Deadline
from lab.base.errors import CannotTellError, UsageError
from lab.base.progress import step
from lab.source import fetch
from lab.source.resolve import Kind, Source, untar
from lab.source.series import Series

SUFFIX = "+pageflip1"
#: Where the series lies below debian/patches.
_FOLDER = "pageflip"
_MAINTAINER = "pageflip maintainers <maintainers@pageflip.invalid>"
#: What may follow a Debian revision (Debian policy 5.6.12): it must sort after it.
_SUFFIX = re.compile(r"\+[A-Za-z0-9.+~]+")
_PACK_S = 1200.0
_BUILD_S = 6 * 3600.0


@dataclass(frozen=True)
class SourcePackage:
    """A source package: its .dsc, and what it was unpacked from, ready to be built."""

    version: str
    dsc: Path
    tree: Path


def source_package(
    source: Source, series: Series, into: Path, suffix: str = SUFFIX
) -> SourcePackage:
    """Make the package in the directory `into`, which appears complete or not at all.

    Raises UsageError for a suffix that is none, a series without patches, and when `into` is there
    already; CannotTellError when the source is not a distribution's, or dpkg-source fails.
    """
    if not _SUFFIX.fullmatch(suffix):
        raise UsageError(
            f"{suffix!r} cannot end a version", hint="a plus, then letters, digits, . + or ~"
        )
    if not series.patches:
        raise UsageError(f"the series {series.name} has no patches", hint="name another release")
    if into.exists():
        raise UsageError(f"{into} is there already", hint="remove it, or name another directory")
    if source.kind is not Kind.DEBIAN:
        raise CannotTellError(
            f"the source of QEMU {source.version} is {source.origin}'s, and no Debian package",
            hint="leave the submodule empty, or put Debian's files where PAGEFLIP_SOURCES names",
        )
    with fetch.scratch(into) as scratch, step(f"packing QEMU {source.version} with the series"):
        made = scratch / into.name
        tree = made / f"qemu-{source.version}"
        tree.mkdir(parents=True)
        for file, name in zip(source.files, source.sha256, strict=True):
            packaging = name.endswith(".debian.tar.xz")
            untar(file, tree, strip=0 if packaging else 1)
            if not packaging:
                shutil.copyfile(file, made / name)
        _add(tree / "debian" / "patches", series)
        version = _enter(tree / "debian" / "changelog", series, suffix)
        process.run(
            ["dpkg-source", "--build", tree.name],
            cwd=made,
            deadline=Deadline.after(_PACK_S, "dpkg-source"),
            hint="is dpkg-dev installed, and is there room on the disk? df -h",
        )
        dsc = next(made.glob("*.dsc")).name
        made.rename(into)
    return SourcePackage(version, into / dsc, into / tree.name)


def _add(directory: Path, series: Series) -> None:
    """Put the series after the distribution's own patches."""
    folder = directory / _FOLDER
    folder.mkdir(parents=True)
    for patch in series.patches:
        shutil.copyfile(patch, folder / patch.name)
    listed = directory / "series"
    before = listed.read_text(encoding="utf-8") if listed.is_file() else ""
    names = "".join(f"{_FOLDER}/{patch.name}\n" for patch in series.patches)
    listed.write_text(before + ("\n" if before[-1:] not in {"", "\n"} else "") + names, "utf-8")


def _enter(changelog: Path, series: Series, suffix: str) -> str:
    """Add an entry to the changelog (deb-changelog(5)); return the package's version."""
    text = changelog.read_text(encoding="utf-8")
    last = next(iter(Changelog(text, max_blocks=1)))
    version = f"{last.version}{suffix}"
    # The same series makes the same package: dated by what it stands on, not by the clock.
    date = format_datetime(parsedate_to_datetime(str(last.date)))
    entry = Changelog()
    entry.new_block(
        package=last.package,
        version=version,
        distributions=last.distributions,
        urgency="medium",
        author=_author(),
        date=date,
    )
    entry.add_change("")
    entry.add_change(
        f"  * Add the series {series.name} of pageflip ({len(series.patches)} patches),"
    )
    entry.add_change("    which moves a running guest to a newer QEMU (localhost-migrate).")
    entry.add_change("")
    changelog.write_text(f"{entry}\n{text}", encoding="utf-8")
    return version


def _author() -> str:
    """Return who the entry is by, as debchange(1) does."""
    name, email = os.environ.get("DEBFULLNAME"), os.environ.get("DEBEMAIL")
    return f"{name} <{email}>" if name and email else _MAINTAINER


def missing_to_build(package: SourcePackage) -> str:
    """Return what the package needs to be built and this machine lacks; empty when nothing."""
    checked = process.run(["dpkg-checkbuilddeps"], cwd=package.tree, check=False)
    if checked.returncode == 0:
        return ""
    said = (checked.stdout + checked.stderr).strip().splitlines()
    return " ".join(line.partition("dependencies: ")[2] or line for line in said)


def build(package: SourcePackage) -> list[Path]:
    """Build the binary packages beside the .dsc; return them.

    Raises CannotTellError, with what is missing, where the package's build dependencies are not
    installed, and when the build fails.
    """
    if missing := missing_to_build(package):
        raise CannotTellError(
            f"{package.dsc}: not built, as this machine lacks: {missing}",
            hint=f"install them (apt-get build-dep {package.tree}), or build it where they are",
        )
    with step("building the packages: an hour or more"):
        process.run(
            ["dpkg-buildpackage", "--no-sign", "--build=binary", f"--jobs={os.cpu_count() or 1}"],
            cwd=package.tree,
            deadline=Deadline.after(_BUILD_S, "dpkg-buildpackage"),
        )
    return sorted(package.dsc.parent.glob("*.deb"))
