# SPDX-License-Identifier: GPL-2.0-or-later
"""The verb `bench`: compare mechanisms."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from lab import mechanisms, options
from lab.base import arguments
from lab.base.errors import UsageError
from lab.base.layout import Layout, locked
from lab.bench import begin, carry_out, prepare, resume
from lab.pipeline import upgrade_once
from lab.results.figures import FILE, Request
from lab.results.rounds import PAIR, plan, split
from lab.verbs.compare import add_gate, parse_gate

#: The default reference: the mechanism that every QEMU has.
_REFERENCE = "precopy"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``pageflip bench``."""
    arguments.declare(parser, Request)
    add = parser.add_argument
    arguments.add_out(parser)
    add(
        "--baseline",
        type=Path,
        metavar="FILE",
        help="an earlier bench.json, or its directory: what changed since is shown in the end",
    )
    add_gate(parser)
    add(
        "--resume",
        type=Path,
        metavar="DIR",
        help="resume the bench in DIR; takes no other options",
    )


def parse(given: argparse.Namespace) -> Request:
    """Return the request with every name and size checked; raise UsageError."""
    request = Request(**arguments.read(Request, given))
    names = list(request.mechanisms)
    if names == ["all"]:
        names = [mechanism.name for mechanism in mechanisms.MECHANISMS]
    for name in names:
        _known(name)
    _refuse_doubles("--mechanisms", names)
    for option, sizes in (("--ram", request.ram), ("--dirty-rate", request.rates)):
        _refuse_doubles(option, [options.size(text) for text in sizes])
    if request.repeats < 1:
        raise UsageError(f"--repeats {request.repeats}: at least one round has to count")
    reference = request.reference or (_REFERENCE if _REFERENCE in names else names[0])
    if reference not in names:
        raise UsageError(f"--reference {reference}: it is not among the mechanisms compared")
    request = request.model_copy(update={"mechanisms": tuple(names), "reference": reference})
    plan(request)  # checks every size
    return request


def _known(label: str) -> None:
    mechanism = split(label).mechanism
    if mechanism == "auto":
        raise UsageError("--mechanisms auto: a bench compares what is named", "leave it out")
    mechanisms.named(mechanism)
    if label.count(PAIR) > 1:
        raise UsageError(
            f"{label}: {PAIR} stands between the old QEMU and the new one, and is there again",
            hint=f"call a directory that has {PAIR} in its name by another one (ln -s)",
        )


def _refuse_doubles(option: str, values: Sequence[object]) -> None:
    if len(set(values)) < len(values):
        raise UsageError(f"{option}: the same is named twice")


def run(given: argparse.Namespace) -> int:
    """Do what ``pageflip bench`` says."""
    layout, gate = Layout.default(), parse_gate(given)
    if given.resume:
        _nothing_else(given)
        directory = given.resume.absolute()
        if not directory.is_dir():
            raise UsageError(f"{directory}: there is no such directory")
        with locked(directory / FILE, "waiting for another run that is working on this bench"):
            session = resume(layout, directory, upgrade_once)
            prepare(layout, session.bench.request)
            return carry_out(session, gate)
    request = parse(given)
    layout = layout.into(given.out)
    prepare(layout, request)
    session = begin(layout, request, upgrade_once)
    with locked(session.directory / FILE):
        return carry_out(session, gate)


def _nothing_else(given: argparse.Namespace) -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    for name, default in vars(parser.parse_args([])).items():
        if name not in {"resume", "baseline", "fail_if"} and getattr(given, name) != default:
            raise UsageError(
                f"{arguments.spelled(name)} cannot be given with --resume",
                hint="a bench keeps the options it was started with; start a new one for others",
            )
