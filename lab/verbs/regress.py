# SPDX-License-Identifier: GPL-2.0-or-later
"""The verb `regress`: compare patched QEMUs with stock ones."""

from __future__ import annotations

import argparse
import re

from lab.base import arguments
from lab.base.errors import UsageError
from lab.base.layout import Layout
from lab.review.comparison import show
from lab.review.regress import RegressOptions, regress


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``pageflip regress``."""
    arguments.declare(parser, RegressOptions)
    arguments.add_out(parser)


def run(given: argparse.Namespace) -> int:
    """Carry out the verb: 0 when nothing differs, 1 when something does."""
    report = regress(Layout.default().into(given.out), parse(given))
    show(report)
    return report.exit_code


def parse(given: argparse.Namespace) -> RegressOptions:
    """Return the options; raise UsageError for what cannot be."""
    wanted = RegressOptions(**arguments.read(RegressOptions, given))
    try:
        re.compile(wanted.tests)
    except re.error as error:
        raise UsageError(f"--tests {wanted.tests!r}: {error}", "it is a Python regex") from error
    if not wanted.drivers:
        raise UsageError("--drivers names none", hint="old, new, or both with a comma between")
    return wanted
