# SPDX-License-Identifier: GPL-2.0-or-later
"""The patch series, and the verb `patches`.

A series is a directory with a file ``series``, which names the patches in their order, and the
patches in `git format-patch` form.  Building applies them without fuzz; the verb works on them in
a git work tree and writes them back.
"""

from __future__ import annotations

import argparse
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from lab import config, fetch, gnupatch, sources
from lab.errors import ExitCode, UsageError
from lab.layout import CHECKOUT, Layout
from lab.progress import note
from lab.sources import Source


@dataclass(frozen=True)
class Series:
    """Patches in their order; none of them: the release as it is."""

    name: str
    patches: tuple[Path, ...] = ()

    @property
    def digest(self) -> str:
        """What identifies what the series does to a tree: the diffs, in order."""
        digest = hashlib.sha256()
        for patch in self.patches:
            digest.update(hashlib.sha256(diff_of(patch.read_bytes())).digest())
        return digest.hexdigest()


STOCK = Series("stock")


def diff_of(patch: bytes) -> bytes:
    """Return what a patch does without what it says of itself: a new wording is no new build."""
    begin = re.search(rb"^(?:diff --git |--- (?:a/|/dev/null))", patch, re.MULTILINE)
    diff = patch[begin.start() :] if begin else patch
    return re.sub(rb"^index [0-9a-f]+\.\.[0-9a-f]+", b"index", diff, flags=re.MULTILINE)


def parse_series(text: str) -> list[str]:
    """Return the names in a file ``series``; raise ValueError that says which line is wrong."""
    names: list[str] = []
    for number, line in enumerate(text.splitlines(), 1):
        name = line.split("#", 1)[0].strip()
        if not name:
            continue
        if "/" in name or name in (".", "..") or "\0" in name or len(name.split()) != 1:
            raise ValueError(f"line {number}: {name!r} is not the name of a file beside it")
        if name in names:
            raise ValueError(f"line {number}: {name} is there twice")
        names.append(name)
    return names


def load(directory: Path) -> Series:
    """Read the series in `directory`; without a file ``series`` it is the stock one.

    Raises UsageError that names the file and the line.
    """
    listed = directory / "series"
    if not listed.is_file():
        return STOCK
    try:
        names = parse_series(listed.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise UsageError(f"{listed}: {error}", hint="correct the file") from error
    found = tuple(directory / name for name in names)
    for patch in found:
        if not patch.is_file():
            raise UsageError(
                f"{listed}: {patch.name} is not there", hint="restore it, or strike it"
            )
    return Series(directory.name, found) if found else STOCK


def apply(tree: Path, series: Series) -> tuple[str, ...]:
    """Apply the series to `tree`, which nobody else has seen yet; return notes on offsets.

    Raises PatchError that names the patch, the file and the hunk.
    """
    return tuple(line for patch in series.patches for line in gnupatch.apply(tree, patch))


def patched_tree(source: Source, series: Series, into: Path) -> tuple[str, ...]:
    """Unpack `source` as `into` and apply `series`: complete, or not at all.  Returns notes."""
    with fetch.scratch(into) as directory:
        tree = directory / f"qemu-{source.version}"
        sources.unpack(source, tree)
        notes = apply(tree, series)
        tree.rename(into)
    return notes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    verbs = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    about = {
        "apply": "make a git work tree with one commit for each patch",
        "export": "write the work tree's commits back as the series",
        "refresh": "bring the series up to date with its release, allowing what building refuses",
    }
    for action, text in about.items():
        verb = verbs.add_parser(action, help=text, description=text)
        verb.add_argument("release", metavar="REL", help="10.0, 10.2, old or new")
        if action != "refresh":
            verb.add_argument(
                "directory",
                metavar="DIR",
                type=Path,
                nargs="?",
                help="the work tree (default: build/series-REL in the checkout)",
            )
        if action == "export":
            verb.add_argument(
                "--base",
                metavar="COMMIT",
                default="pageflip-base",
                help="the series is what comes after it (default: the tag that apply sets)",
            )
    text = "check the series: they apply, they round-trip, they are in QEMU's style"
    lint = verbs.add_parser("lint", help=text, description=text)
    lint.add_argument("release", metavar="REL", nargs="*", help="default: all")
    lint.add_argument("--build", action="store_true", help="compile QEMU after every patch")


def run(options: argparse.Namespace) -> int:
    """Carry out the verb."""
    from lab import patchgit, patchlint  # noqa: PLC0415 -- they import this module

    layout = Layout.default()
    releases = config.load(layout.patches / "releases.toml")
    if options.action == "lint":
        names = options.release or list(releases.releases)
        chosen = [releases.get(name) for name in names]
        findings = patchlint.lint(layout, releases, chosen, build=options.build)
        for finding in findings:
            note(finding)
        note(f"{len(findings)} findings" if findings else "the series are in order")
        return ExitCode.FAIL if findings else ExitCode.PASS
    release = releases.get(options.release)
    directory = layout.patches / release.name
    source = sources.resolve(layout, release)
    if options.action == "refresh":
        for line in patchgit.refresh(sources.stock_tree(layout, source), directory):
            note(line)
        return ExitCode.PASS
    tree = (options.directory or CHECKOUT / "build" / f"series-{release.name}").absolute()
    if options.action == "apply":
        patchgit.work_tree(source, load(directory), tree)
        note(
            f"{tree}: one commit for each patch; write them back with\n"
            f"    ./pageflip patches export {release.name} {tree}"
        )
    else:
        written = patchgit.export(tree, directory, options.base)
        note(f"{directory}: {len(written)} patches")
    return ExitCode.PASS
