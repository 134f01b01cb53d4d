# SPDX-License-Identifier: GPL-2.0-or-later
"""The verb `regress`: compare patched QEMUs with stock ones."""

from __future__ import annotations

import argparse
import re
import shlex
from pathlib import Path

from lab.base.errors import UsageError
from lab.base.layout import Layout
from lab.review.comparison import show
from lab.review.regress import RegressOptions, regress


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``pageflip regress``."""
    add = parser.add_argument
    add("--tests", default="", metavar="REGEX", help="only tests whose name matches (default: all)")
    add(
        "--drivers",
        default="new,old",
        metavar="LIST",
        help="the releases whose migration-test is run (default: %(default)s)",
    )
    add("--thorough", action="store_true", help="also the tests that QEMU calls slow or flaky")
    add("--skip-vmstate", action="store_true", help="do not compare the devices' state")
    add(
        "--accel",
        default="tcg",
        choices=["tcg", "kvm"],
        help="tcg (the default), or kvm where the tests find it good enough",
    )
    add("--old", default="old", metavar="REL|PATH", help="the old QEMU under test (default: old)")
    add("--new", default="new", metavar="REL|PATH", help="the new QEMU under test (default: new)")
    add("--out", type=Path, metavar="DIR", help="where run directories are made (default: ./out)")


def run(options: argparse.Namespace) -> int:
    """Carry out the verb: 0 when nothing differs, 1 when something does."""
    wanted = parse(options)
    report = regress(Layout.default().into(wanted.out), wanted)
    show(report)
    return report.exit_code


def parse(options: argparse.Namespace) -> RegressOptions:
    """Return the options; raise UsageError for what cannot be."""
    try:
        re.compile(options.tests)
    except re.error as error:
        raise UsageError(f"--tests {options.tests!r}: {error}", "it is a Python regex") from error
    drivers = tuple(filter(None, options.drivers.split(",")))
    if not drivers:
        raise UsageError("--drivers names none", hint="old, new, or both with a comma between")
    words = ["./pageflip", "regress", "--drivers", options.drivers, "--accel", options.accel]
    words += ["--old", options.old, "--new", options.new]
    words += ["--tests", options.tests] if options.tests else []
    words += ["--thorough"] if options.thorough else []
    words += ["--skip-vmstate"] if options.skip_vmstate else []
    return RegressOptions(
        drivers=drivers,
        tests=options.tests,
        old=options.old,
        new=options.new,
        accel=options.accel,
        thorough=options.thorough,
        skip_vmstate=options.skip_vmstate,
        out=options.out,
        reproduce=shlex.join(words),
    )
