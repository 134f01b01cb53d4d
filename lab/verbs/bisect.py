# SPDX-License-Identifier: GPL-2.0-or-later
"""The verb `bisect`: find the patch of a series that makes something worse."""

from __future__ import annotations

import argparse
import dataclasses
import math

from rich.console import Console
from rich.text import Text

from lab.base.errors import ExitCode, UsageError
from lab.base.number import whole
from lab.base.progress import note
from lab.model import Phases
from lab.results import gate, rounds, worse
from lab.review import candidate, checks
from lab.review.bisect import BUILD, HARM, Bisection, Search, find, most_states
from lab.review.halves import Judgement
from lab.source.series import Series


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``pageflip bisect``."""
    candidate.add_arguments(parser, ram="256M", touch="50%", repeats=6)
    add = parser.add_argument
    add(
        "--max-repeats",
        type=int,
        default=15,
        metavar="N",
        help="rounds at most, where fewer could not see what --threshold is (default: 15)",
    )
    add(
        "--metric",
        required=True,
        metavar="FIGURE",
        help="what gets worse: a figure of a bench (pause_ms.outside, phase_resume_ms, "
        "memory_ratio), or 'harm' (a guest is), or 'build' (it fails)",
    )
    add(
        "--threshold",
        type=float,
        default=1.5,
        metavar="TIMES",
        help="bad when it is more than noise, and above so many times the base's figure; of "
        "huge_pages_kept, below (default: 1.5)",
    )
    add("--mechanism", metavar="NAME", help="upgraded by (default: flip, or precopy on stock)")
    known = "number of a patch (0: none of them), or for a git range a commit"
    add("--good", default="0", metavar="A", help=f"{known} (default: 0)")
    add("--bad", metavar="B", help=f"{known} (default: the last)")


def run(given: argparse.Namespace) -> int:
    """Do what ``pageflip bisect`` says."""
    asked = figure(given.metric, given.threshold)
    name = given.mechanism or candidate.MECHANISMS[given.on].partition(",")[0]
    mine = candidate.asked_for(given, [name], "bisect-", slim=True)
    mine = dataclasses.replace(mine, most=given.max_repeats)
    rounds.plan(checks.request(mine))  # every size fits
    last = str(len(mine.series.patches))
    good, bad = (number_of(text, mine.series) for text in (given.good, given.bad or last))
    if good >= bad:
        raise UsageError(f"--good {given.good} is not before --bad {given.bad or last}")
    kept = Bisection(
        series=given.series,
        old=mine.old,
        new=mine.new,
        side=mine.side,
        mechanism=name,
        metric=given.metric,
        threshold=given.threshold,
        ram=mine.ram,
        repeats=mine.repeats,
    )
    looks = most_states(good, bad) * len(worse.looks(mine.repeats, mine.most))
    search = Search(mine, asked, kept, worse.ALPHA / looks)
    try:
        found = find(search, good, bad)
    finally:
        note(f"everything: {mine.directory}")
    return show(search, found, Console(highlight=False, soft_wrap=True))


def figure(metric: str, threshold: float) -> str:
    """Return the figure for a metric, "" for `harm` and `build`; raise UsageError."""
    if metric in (HARM, BUILD):
        return ""
    name = gate.spelt(metric)
    phases = [f"phase_{phase}_ms" for phase in Phases.model_fields]
    if name not in (*worse.FIGURES, *phases):
        known = ", ".join(dict.fromkeys((*worse.FIGURES, *phases)))
        raise UsageError(f"--metric {metric}: there is no such figure", f"one of: {known}")
    less = name in worse.GOOD
    if not (0 < threshold < 1 if less else 1 <= threshold < math.inf):
        which = "less, so it is between 0 and 1" if less else "more, so it is 1 or above"
        raise UsageError(f"--threshold {threshold:g}: {metric} is worse when it is {which}")
    return name


def number_of(text: str, series: Series) -> int:
    """Return which state a patch's number, or the beginning of its commit, is; raise UsageError."""
    last = len(series.patches)
    asked = whole(text)
    if asked is not None and asked <= last:
        return asked
    for number, patch in enumerate(series.patches, 1):
        if len(text) >= 7 and patch.read_text(errors="replace").startswith(f"From {text}"):
            return number
    raise UsageError(
        f"{text}: is no patch of this series",
        hint=f"0 (the base) to {last}, or for a git range seven digits of a commit in it, or more",
    )


def show(search: Search, found: list[str], console: Console) -> ExitCode:
    """Print what was found, and return what that says to the shell."""
    for state in search.kept.states:
        colour = {Judgement.GOOD: "green", Judgement.BAD: "red", Judgement.SKIP: "yellow"}[
            state.verdict
        ]
        console.print(
            Text.assemble((f"{state.verdict:4}", colour), f"  {state.patch}: {state.said}")
        )
    if len(found) > 1:
        console.print(Text(f"first bad: one of {', '.join(found)}", "bold yellow"))
        return ExitCode.CANNOT_TELL
    (state,) = (one for one in search.kept.states if one.patch == found[0])
    console.print(Text(f"first bad: {state.patch}: {state.said}", "bold red"))
    return ExitCode.PASS
