# SPDX-License-Identifier: GPL-2.0-or-later
"""The command line: one table of verbs, one place where errors become exit codes."""

from __future__ import annotations

import argparse
import cProfile
import errno
import importlib
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import NoReturn

from lab import __version__
from lab.base.errors import CannotTellError, ExitCode, LabError, UsageError
from lab.base.layout import Layout
from lab.base.progress import console

#: verb: (module, what it does).  A module exports add_arguments(parser) and run(options) -> int.
VERBS: dict[str, tuple[str, str]] = {
    "upgrade": (
        "lab.verbs.upgrade",
        "upgrade a running guest from one QEMU to another and judge it",
    ),
    "rehearse": (
        "lab.verbs.rehearse",
        "try an upgrade up to the moment the guest would change QEMUs, and go back",
    ),
    "bench": ("lab.verbs.bench", "compare mechanisms: many upgrades, interleaved, with statistics"),
    "pairs": ("lab.verbs.pairs", "try every old QEMU with every new one, and make a table"),
    "report": ("lab.verbs.report", "make a page of a bench or an upgrade"),
    "recover": ("lab.verbs.recover", "bring live upgrades to their end that were left half done"),
    "preflight": ("lab.verbs.preflight", "look at a running QEMU: how it could be upgraded"),
    "validate": ("lab.verbs.validate", "apply, build and try a patch series"),
    "bisect": ("lab.verbs.bisect", "find the patch of a series that makes a figure worse"),
    "compare": ("lab.verbs.compare", "compare two benches"),
    "check": ("lab.verbs.check", "run what tests this project"),
    "build": ("lab.verbs.build", "build the pair of QEMUs and the guest images"),
    "releases": (
        "lab.verbs.releases",
        "list the QEMUs that can be had by name, and those in the cache",
    ),
    "guest": ("lab.verbs.guest", "list the guests, build their images, open a console in one"),
    "patches": ("lab.verbs.patches", "apply, refresh, export or lint the patch series"),
    "regress": ("lab.verbs.regress", "compare patched QEMUs with stock ones, by QEMU's own tests"),
    "doctor": ("lab.verbs.doctor", "say what this host offers and what it lacks"),
}


def _parser(chosen: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pageflip", description="Upgrade the QEMU under a running guest, and prove it."
    )
    parser.add_argument("--version", action="version", version=f"pageflip {__version__}")
    parser.add_argument(
        "--profile", metavar="FILE", help="also write where the lab's own time goes (cProfile)"
    )
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for verb, (module, text) in VERBS.items():
        subparser = verbs.add_parser(verb, help=text, description=text)
        if verb == chosen:  # only the verb that runs is imported: a start stays fast
            importlib.import_module(module).add_arguments(subparser)
    return parser


def _interrupted(signum: int, _frame: FrameType | None) -> NoReturn:
    """Turn SIGTERM and SIGHUP into what Ctrl-C does: unwind, clean up, then go."""
    raise KeyboardInterrupt(signal.Signals(signum).name)


def _profiled(run: Callable[[argparse.Namespace], int], options: argparse.Namespace) -> int:
    """Run the verb under a profiler; raise UsageError when the profile cannot be written."""
    profiler = cProfile.Profile()
    try:
        Path(options.profile).touch()
    except OSError as error:
        raise UsageError(f"cannot write {options.profile}: {error.strerror}") from error
    try:
        return profiler.runcall(run, options)
    finally:
        profiler.dump_stats(options.profile)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a verb and return the exit code (lab.base.errors.ExitCode)."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    chosen = next((word for word in words if word in VERBS), None)
    for signum in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, _interrupted)
    try:
        options = _parser(chosen).parse_args(words)
        run = importlib.import_module(VERBS[options.verb][0]).run
        return int(_profiled(run, options) if options.profile else run(options))
    except LabError as error:
        return _told(error)
    except KeyboardInterrupt:
        console.print(
            "pageflip: interrupted; everything that was started has been ended",
            style="red",
            markup=False,
        )
        return ExitCode.INTERRUPTED
    except OSError as error:
        return _refused_by_system(error)
    except Exception:
        return _bug()


def _told(error: LabError) -> int:
    console.print(f"pageflip: {error.message}", style="red", markup=False)
    if error.hint:
        console.print(f"  what to do: {error.hint}", markup=False)
    return error.exit_code


def _refused_by_system(error: OSError) -> int:
    """Tell what the user can mend; everything else should have been seen to by the lab."""
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return _told(
            CannotTellError(
                f"the disk is full: {error}",
                hint="make room, or name another directory with --out or XDG_CACHE_HOME",
            )
        )
    complaint: LabError | None
    try:
        complaint = Layout.default().complaint(error)
    except LabError as none:
        complaint = none
    return _told(complaint) if complaint else _bug()


def _bug() -> int:
    console.print(traceback.format_exc(), markup=False)
    console.print(
        "pageflip: this is a bug in the lab, not in QEMU; please report it with the lines above",
        style="red",
        markup=False,
    )
    return ExitCode.CANNOT_TELL
