# SPDX-License-Identifier: GPL-2.0-or-later
"""The verb `patches`: work on the series in a git work tree, and check it."""

from __future__ import annotations

import argparse
from pathlib import Path

from lab.base.errors import ExitCode
from lab.base.layout import CHECKOUT, Layout
from lab.base.progress import note
from lab.review import lint
from lab.source import package, worktree
from lab.source.releases import load_releases
from lab.source.resolve import Source, resolve, stock_tree
from lab.source.series import Series, load_series


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
    text = "make the distribution's source package with the series on top, to build and install"
    packer = verbs.add_parser("deb", help=text, description=text)
    packer.add_argument("release", metavar="REL", help="10.0, 10.2, old or new")
    packer.add_argument(
        "directory",
        metavar="DIR",
        type=Path,
        nargs="?",
        help="where to make it (default: build/deb-REL in the checkout)",
    )
    packer.add_argument(
        "--suffix",
        default=package.SUFFIX,
        help="what its version ends in (default: %(default)s)",
    )
    packer.add_argument("--build", action="store_true", help="build the binary packages as well")
    text = "check the series: they apply, they round-trip, they are in QEMU's style"
    checker = verbs.add_parser("lint", help=text, description=text)
    checker.add_argument("release", metavar="REL", nargs="*", help="default: all")
    checker.add_argument("--build", action="store_true", help="compile QEMU after every patch")


def run(options: argparse.Namespace) -> int:
    """Carry out the verb."""
    layout = Layout.default()
    releases = load_releases(layout.patches / "releases.toml")
    if options.action == "lint":
        names = options.release or list(releases.releases)
        chosen = [releases.get(name) for name in names]
        findings = lint.lint(layout, releases, chosen, build=options.build)
        for finding in findings:
            note(finding)
        note(f"{len(findings)} findings" if findings else "the series are in order")
        return ExitCode.FAIL if findings else ExitCode.PASS
    release = releases.get(options.release)
    directory = layout.patches / release.name
    source = resolve(layout, release)
    if options.action == "refresh":
        for line in worktree.refresh(stock_tree(layout, source), directory):
            note(line)
        return ExitCode.PASS
    if options.action == "deb":
        place = (options.directory or CHECKOUT / "build" / f"deb-{release.name}").absolute()
        _deb(options, source, load_series(directory), place)
        return ExitCode.PASS
    tree = (options.directory or CHECKOUT / "build" / f"series-{release.name}").absolute()
    if options.action == "apply":
        worktree.work_tree(source, load_series(directory), tree)
        note(
            f"{tree}: one commit for each patch; write them back with\n"
            f"    ./pageflip patches export {release.name} {tree}"
        )
    else:
        written = worktree.export(tree, directory, options.base)
        note(f"{directory}: {len(written)} patches")
    return ExitCode.PASS


def _deb(options: argparse.Namespace, source: Source, series: Series, place: Path) -> None:
    """Make the source package, and with ``--build`` the binary ones."""
    made = package.source_package(source, series, place, options.suffix)
    note(f"{made.dsc}: qemu {made.version}, {len(series.patches)} patches on top")
    if options.build:
        for one in package.build(made):
            note(str(one))
    else:
        note(f"build it where its dependencies are: cd {made.tree} && dpkg-buildpackage -us -uc -b")
