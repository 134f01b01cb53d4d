# SPDX-License-Identifier: GPL-2.0-or-later
"""The verb `patches`: work on the series in a git work tree, and check it."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from lab.base.errors import ExitCode
from lab.base.layout import CHECKOUT, Layout
from lab.base.progress import note
from lab.review import lint
from lab.source import package, port, worktree
from lab.source.releases import Releases, load_releases
from lab.source.resolve import Source, resolve, stock_tree
from lab.source.series import Series, load_series

#: Adds an argument to an action's parser.
Adder = Callable[..., argparse.Action]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    verbs = parser.add_subparsers(dest="action", required=True, metavar="ACTION")

    def action(name: str, text: str, *, subject: str = "release", tree: str = "") -> Adder:
        """Add an action, with what it is about and the directory that it makes or reads."""
        added = verbs.add_parser(name, help=text, description=text)
        if subject == "release":
            added.add_argument("release", metavar="REL", help="a release's name, old or new")
        elif subject == "new":
            added.add_argument(
                "new", metavar="NEW", help="a release, or QEMU's source in a directory"
            )
        if tree:
            text = f"default: build/{tree} in the checkout"
            added.add_argument("directory", metavar="DIR", type=Path, nargs="?", help=text)
        return added.add_argument

    action("apply", "make a git work tree with one commit for each patch", tree="series-REL")
    add = action("export", "write the work tree's commits back as the series", tree="series-REL")
    text = "the series is what comes after it (default: the tag that apply sets)"
    add("--base", metavar="COMMIT", default=worktree.BASE_TAG, help=text)
    action("refresh", "bring the series up to date with its release, allowing fuzz and merges")
    text = "make the distribution's source package with the series on top, to build and install"
    add = action("deb", text, tree="deb-REL")
    add("--suffix", default=package.SUFFIX, help="the end of its version (default: %(default)s)")
    add("--build", action="store_true", help="build the binary packages as well")
    text = "try the series on another QEMU: which patches apply, which conflict, and where"
    add = action("port", text, subject="new", tree="port-NEW")
    text = "whose series (default: the one of the release that is new)"
    add("--from", dest="release", default="new", metavar="REL", help=text)
    text = "check the series: they apply, they round-trip, they are in QEMU's style"
    add = action("lint", text, subject="all")
    add("release", metavar="REL", nargs="*", help="default: all")
    add("--build", action="store_true", help="compile QEMU after every patch")


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
    if options.action == "port":
        return _port(options, layout, releases, stock_tree(layout, source))
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


def _port(options: argparse.Namespace, layout: Layout, releases: Releases, base: Path) -> int:
    """Try a series on another QEMU; pass when every patch applies there."""
    named = Path(options.new)
    new = (
        named if named.is_dir() else stock_tree(layout, resolve(layout, releases.get(options.new)))
    )
    name = releases.get(options.release).name
    series = load_series(layout.patches / name)
    place = options.directory or CHECKOUT / "build" / f"port-{named.name}"
    found = port.port(base, series, new.absolute(), place.absolute())
    for one in found:
        note(str(one))
    count = {how: sum(one.how is how for one in found) for how in port.How}
    note("; ".join(f"{how}: {number}" for how, number in count.items() if number))
    if not count[port.How.CONFLICTS]:
        note(f"{place}: all of them; write them with ./pageflip patches export NAME {place}")
        return ExitCode.PASS
    note(
        f"{place}: a commit for each; those that begin with {port.CONFLICT.strip()} are a guess.  "
        f"To merge one after another:\n"
        f"    git -C {place} reset --hard {worktree.BASE_TAG}\n"
        f"    git -C {place} am -3 {layout.patches / name}/*.patch"
    )
    return ExitCode.FAIL
