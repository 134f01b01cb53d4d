# SPDX-License-Identifier: GPL-2.0-or-later
"""The verb `pairs`: every old QEMU by every new one, in a table."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from lab import pairs
from lab.base import arguments
from lab.base.errors import UsageError
from lab.base.files import write_whole
from lab.base.layout import Layout
from lab.base.progress import note
from lab.results import pairing
from lab.results.pairing import PairRequest


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``pageflip pairs``."""
    arguments.declare(parser, PairRequest)
    arguments.add_out(parser)
    add = parser.add_argument
    add("--again", action="store_true", help="try everything, also what was answered before")
    add("--json", action="store_true", help="print the table as JSON")
    add(
        "--variants",
        type=Path,
        metavar="FILE",
        help="write the pairs for avocado run -m FILE tests/avocado/test_pairs.py, and try none",
    )
    add(
        "--gather",
        type=Path,
        metavar="DIR",
        help="make the table of what avocado's jobs below DIR have found, and try nothing",
    )


def run(given: argparse.Namespace) -> int:
    """Do what ``pageflip pairs`` says."""
    layout = Layout.default().into(given.out)
    if given.gather:
        if not given.gather.is_dir():
            raise UsageError(f"{given.gather}: there is no such directory")
        grid = pairs.gather(given.gather)
        directory = layout.new_run("pairs-")
        code = pairs.exit_code(grid)
        pairs.leave(grid, directory, quiet=given.json)
    else:
        request = pairs.filled(layout, PairRequest(**arguments.read(PairRequest, given)))
        trials = pairing.plan(request)
        if given.variants:
            write_whole(given.variants.absolute(), pairs.variants(trials))
            note(f"avocado run tests/avocado/test_pairs.py -m {given.variants}")
            return 0
        session = pairs.begin(layout, request, afresh=given.again)
        code = pairs.carry_out(session, quiet=given.json)
        grid = session.grid
    if given.json:
        sys.stdout.write(grid.model_dump_json(indent=2) + "\n")
    return code
