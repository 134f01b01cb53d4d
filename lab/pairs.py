# SPDX-License-Identifier: GPL-2.0-or-later
"""Try every old QEMU with every new one: the upgrade of the pipeline, cell by cell of a table.

Each answer is kept under a key of all that went into it, so a run goes on where one was stopped.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from pydantic import ValidationError

from lab import mechanisms
from lab.base.errors import CannotTellError, ExitCode, LabError, PreconditionError, UsageError
from lab.base.files import key_of, sha256_of, write_whole
from lab.base.layout import Layout, locked
from lab.base.progress import note, overall
from lab.guest import images
from lab.host import facts
from lab.model import Result
from lab.options import UpgradeOptions
from lab.pair import build, firmware, packaged
from lab.pipeline import upgrade_once
from lab.report import grid as shown
from lab.results import pairing
from lab.results.pairing import FILE, KEPT, Grid, PairAnswer, PairRequest, PairRun, PairTrial
from lab.source import naming
from lab.source.releases import X86_64, load_releases
from lab.vm import binary, boards
from lab.vm.binary import Binary

#: How one guest is upgraded; the tests have another one.
Runner = Callable[[Layout, UpgradeOptions], Result]
#: What of the lab no answer depends on.
_NO_PART = frozenset({"report", "verbs", "review", "managers", "live", "bench.py", "cli.py"})


@dataclass
class PairSession:
    """A table that is being filled, in its directory."""

    layout: Layout
    trials: Sequence[PairTrial]
    grid: Grid
    runner: Runner = upgrade_once
    #: Try everything, whatever is kept.
    afresh: bool = False
    binaries: dict[str, Binary] = field(default_factory=dict)
    #: QEMUs that cannot be had, each with the reason.
    lacking: dict[str, str] = field(default_factory=dict)

    @property
    def directory(self) -> Path:
        """Where the table, what is kept and the run directories are."""
        return self.layout.out

    def go(self) -> None:
        """Answer every trial that has no answer; the table is whole after each."""
        common = self._common()
        with overall("pairs") as told:
            for number, trial in enumerate(self.trials, 1):
                told(number - 1, len(self.trials), trial.title)
                run, known = self._answer(trial, common)
                self._keep(run, finished=number == len(self.trials))
                why = f": {run.reasons[0]}" if run.reasons else ""
                before = " (from an earlier run)" if known else ""
                total = len(self.trials)
                note(f"{number}/{total}  {trial.title}: {run.answer}{before}{why}")

    def _common(self) -> tuple[str, ...]:
        """Make what all trials share, and return what of it goes into every answer."""
        image = images.build(self.trials[0].asked.guest, self.layout)
        shared = firmware.prepare(self.layout)
        host = facts.fingerprint().model_dump_json()
        return (lab_digest(self.layout), host, image.key, shared.name)

    def _answer(self, trial: PairTrial, common: tuple[str, ...]) -> tuple[PairRun, bool]:
        """Return the answer to `trial`, and whether it was known before."""
        asked = trial.asked
        for name in (asked.old, asked.new):
            if name in self.lacking:
                reason = f"{name} cannot be had: {self.lacking[name]}"
                return pairing.not_done(trial, PairAnswer.UNKNOWN, reason), False
        pair = self.binaries[asked.old], self.binaries[asked.new]
        named = asked.model_copy(update={"old": "", "new": ""}).model_dump_json()
        parts = (*common, *(one.sha256 for one in pair), named, str(trial.round))
        file = self.directory / "kept" / f"{key_of(*parts)}.json"
        if not self.afresh and (run := _kept(file, trial)):
            return run, True
        run = ask(self.layout, trial, *pair, self.runner)
        if run.answer in KEPT:
            file.parent.mkdir(exist_ok=True)
            write_whole(file, run.model_dump_json(indent=2) + "\n")
        return run, False

    def _keep(self, run: PairRun, *, finished: bool) -> None:
        news = {"runs": [*self.grid.runs, run], "finished": finished}
        self.grid = self.grid.model_copy(update=news)
        write_whole(self.directory / FILE, self.grid.model_dump_json(indent=2) + "\n")


def _kept(file: Path, trial: PairTrial) -> PairRun | None:
    """Return an earlier answer under the names that are used now; None where there is none."""
    try:
        run = PairRun.model_validate_json(file.read_text(encoding="utf-8"))
    except (OSError, ValidationError):
        return None
    again = trial.asked.reproduce
    return run.model_copy(
        update={"old": trial.asked.old, "new": trial.asked.new, "reproduce": again}
    )


def ask(
    layout: Layout, trial: PairTrial, old: Binary, new: Binary, runner: Runner = upgrade_once
) -> PairRun:
    """Do one trial and return the answer; what this pair or this host cannot do is one as well."""
    begun = time.monotonic()
    try:
        # What can be known before a guest boots.
        mechanisms.choose(trial.asked.mechanism, old, new)
        board = trial.asked.machine or images.named(layout, trial.asked.guest).board
        boards.common(board, old.machines, new.machines)
        result = runner(layout, trial.asked)
    except (PreconditionError, UsageError) as error:
        return pairing.not_done(trial, PairAnswer.REFUSED, error.message)
    except CannotTellError as error:
        return pairing.not_done(trial, PairAnswer.UNKNOWN, error.message)
    return pairing.done(trial, result, round(time.monotonic() - begun, 1))


def lab_digest(layout: Layout) -> str:
    """Return a key of the lab itself: another lab may give another answer."""
    package = Path(__file__).parent
    files = [
        path
        for path in sorted(package.rglob("*.py"))
        if path.relative_to(package).parts[0] not in _NO_PART
    ]
    files += sorted(path for path in (layout.checkout / "transplant").glob("*") if path.is_file())
    return key_of(*(f"{path.name}={sha256_of(path)}" for path in files))


def cached(layout: Layout, architecture: str = X86_64) -> list[str]:
    """Return the names of all QEMUs for guests of `architecture` that are in the cache."""
    releases = load_releases(layout.patches / "releases.toml")
    theirs = [
        f"{name}:{which}" for name, one in releases.distributions.items() for which in one.suites
    ]
    found = [
        name
        for name in theirs
        if (asked := naming.packaged(layout, name))
        and packaged.existing(layout, asked, architecture)
    ]
    there = [one for one in build.existing(layout) if one.architecture == architecture]
    built = {(one.release, one.series, one.flavour) for one in there}
    for name in releases.releases:
        usual = releases.build.flavour
        found += [f"stock:{name}"] * ((name, "stock", usual) in built)
        found += [name] * ((name, name, usual) in built)
    return found


def filled(layout: Layout, request: PairRequest) -> PairRequest:
    """Return the request with the names that it leaves to the lab; raise UsageError."""
    if not request.olds or not request.news:
        here = ",".join(cached(layout, images.named(layout, request.guest).architecture))
        if not here:
            raise UsageError(
                "no QEMU is in the cache, so there is nothing to make pairs of",
                hint="name some with --old and --new; ./pageflip releases lists what there is",
            )
        old = request.old if request.olds else here
        request = request.model_copy(update={"old": old, "new": request.new or old})
    for name in (*request.olds, *request.news):
        if not naming.is_path(name):
            naming.check(layout, name)
    return request


def begin(
    layout: Layout, request: PairRequest, runner: Runner = upgrade_once, *, afresh: bool = False
) -> PairSession:
    """Return the session that answers `request` below ``pairs/``; raise LabError."""
    layout = layout.into(layout.out / "pairs")
    layout.out.mkdir(parents=True, exist_ok=True)
    asked = session(layout, pairing.plan(request), pairing.command(request), runner)
    asked.afresh = afresh
    return asked


def session(
    layout: Layout, trials: Sequence[PairTrial], command: str, runner: Runner = upgrade_once
) -> PairSession:
    """Return the session that answers `trials` in ``layout.out``."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return PairSession(
        layout, trials, pairing.empty(trials, command, now, facts.fingerprint()), runner
    )


def prepare(session: PairSession) -> None:
    """Fetch or build every QEMU; one that cannot be had costs its own cells only.

    Raises UsageError for a path that is no QEMU.
    """
    guest = images.named(session.layout, session.trials[0].asked.guest)
    for name in dict.fromkeys((*session.grid.olds, *session.grid.news)):
        try:
            found = binary.binary_of(session.layout, name, guest.architecture)
            session.binaries[name] = found
        except UsageError:
            raise
        except LabError as error:
            note(f"{name} cannot be had: {error.message}")
            session.lacking[name] = error.message


def carry_out(session: PairSession, *, quiet: bool = False) -> ExitCode:
    """Fill the table, show what there is however that ends, and return what it says to the shell.

    With `quiet` nothing goes to stdout.
    """
    with locked(session.directory / FILE, "waiting for another run that is filling this table"):
        prepare(session)
        try:
            session.go()
        finally:
            leave(session.grid, session.directory, quiet=quiet)
    return exit_code(session.grid)


def leave(grid: Grid, directory: Path, *, quiet: bool = False) -> None:
    """Write the table and its page, and show it, unless `quiet`."""
    write_whole(directory / FILE, grid.model_dump_json(indent=2) + "\n")
    write_whole(directory / shown.PAGE, shown.page_of(grid))
    if not quiet:
        shown.show(grid)
    note(f"the table: {directory / shown.PAGE}, {directory / FILE}")


def exit_code(grid: Grid) -> ExitCode:
    """Return what a table says to the shell: a refusal that costs nothing is no failure."""
    answers = {run.answer for run in grid.runs}
    if answers & {PairAnswer.HARMED, PairAnswer.LOST}:
        return ExitCode.FAIL
    whole = grid.finished and PairAnswer.UNKNOWN not in answers
    return ExitCode.PASS if whole else ExitCode.CANNOT_TELL


def gather(directory: Path) -> Grid:
    """Return all tables below `directory` as one, as avocado leaves them; raise UsageError."""
    found = [pairing.read(file) for file in sorted(directory.rglob(FILE))]
    return pairing.merged(found, f"./pageflip pairs --gather {directory}")


def variants(trials: Sequence[PairTrial]) -> str:
    """Return the trials as a matrix of Avocado's varianter yaml-to-mux, a leaf for each."""
    return "".join(_variants(trials))


def _variants(trials: Sequence[PairTrial]) -> Iterator[str]:
    yield "# Written by pageflip pairs: tests/avocado/test_pairs.py takes a leaf for each pair.\n"
    yield "pair: !mux\n"
    for number, trial in enumerate(trials, 1):
        asked = trial.asked
        words = (f"{number:04}", asked.old, "to", asked.new, "by", asked.mechanism)
        plain = (re.sub(r"[^A-Za-z0-9.]+", "-", word).strip("-") for word in words)
        yield f"    {'-'.join(plain)}:\n"
        yield f"        round: {trial.round}\n"
        # Each as a JSON string: YAML would read some names as numbers.
        for name, value in asked.model_dump(mode="json").items():
            yield f'        {name}: "{value}"\n' if isinstance(value, str) else ""
        yield f"        cpus: {asked.cpus}\n"
