# SPDX-License-Identifier: GPL-2.0-or-later
"""Check that a patched QEMU behaves like a stock one where localhost-migrate is not used.

QEMU's own migration tests, by the drivers of both releases, are run from old to new with the stock
pair and with the patched one, and compared test by test; so is what each QEMU says its devices'
state looks like.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from lab.base import arguments
from lab.base.arguments import Option
from lab.base.errors import PreconditionError, UsageError
from lab.base.layout import Layout
from lab.base.progress import step
from lab.base.record import Record
from lab.model import Model
from lab.pair import build, firmware
from lab.review import qtests, vmstate
from lab.review.comparison import Comparison, Regression, compare, markdown
from lab.review.qtests import Setup, Stand, TestResult
from lab.review.vmstate import StateCheck
from lab.source import naming
from lab.source.releases import Release, Releases, load_releases
from lab.source.resolve import resolve, stock_tree
from lab.vm.binary import Binary, binary_of


class RegressOptions(Model):
    """Options; ``old`` and ``new`` are the QEMUs under test, by release or path."""

    drivers: Annotated[
        tuple[str, ...], Option("the releases whose migration-test is run", "REL,...")
    ] = ("new", "old")
    accel: Annotated[
        str,
        Option("kvm needs one that the tests find good enough", choices=("tcg", "kvm")),
    ] = "tcg"
    old: Annotated[str, Option("the old QEMU under test", "REL|PATH")] = "old"
    new: Annotated[str, Option("the new QEMU under test", "REL|PATH")] = "new"
    tests: Annotated[str, Option("only tests whose name matches (default: all)", "REGEX")] = ""
    thorough: Annotated[bool, Option("also the tests that QEMU calls slow or flaky")] = False
    skip_vmstate: Annotated[bool, Option("do not compare the devices' state")] = False

    @property
    def reproduce(self) -> str:
        """The command line that asks for the same again."""
        return arguments.command("regress", self)


def regress(layout: Layout, wanted: RegressOptions) -> Regression:
    """Compare stock and patched QEMUs, and leave regress.json and regress.md in the run directory.

    Raises LabError when the lab could not do its work; what differs is in the report.
    """
    releases, drivers = _check(layout, wanted)
    record = Record(layout.new_run())
    qemus = _qemus(layout, releases, wanted, record)
    sides = {name: one.side() for name, one in qemus.items()}
    report = Regression(sides, wanted.accel, wanted.reproduce, record.directory)
    blobs = firmware.prepare(layout)
    with ExitStack() as stack:
        trials = [
            stack.enter_context(_trial(layout, one, qemus, blobs, wanted, record.directory))
            for one in drivers
        ]
        chosen = _chosen(trials, wanted.tests)
        if not wanted.skip_vmstate:
            report.vmstate.extend(_vmstate(layout, releases, qemus, blobs, record.directory))
            record.write("vmstate", report.vmstate)
        for trial, tests in chosen:
            report.comparisons.extend(trial.run(tests))
            record.write(f"qtests-{trial.release}", report.comparisons)
    _keep(report)
    return report


def _check(layout: Layout, wanted: RegressOptions) -> tuple[Releases, list[Release]]:
    """Find out what cannot be before minutes are spent on it."""
    releases = load_releases(layout.patches / "releases.toml")
    drivers = [releases.get(name) for name in wanted.drivers]
    for name in (wanted.old, wanted.new):
        naming.check(layout, name)
    if wanted.accel == "kvm" and not os.access("/dev/kvm", os.R_OK | os.W_OK):
        raise PreconditionError("/dev/kvm cannot be used here", hint="use --accel tcg")
    return releases, list({one.name: one for one in drivers}.values())


def _qemus(
    layout: Layout, releases: Releases, wanted: RegressOptions, record: Record
) -> dict[str, Binary]:
    """Return the stock pair, and the pair under test."""
    names = {
        "stock old": f"stock:{releases.old.name}",
        "stock new": f"stock:{releases.new.name}",
        "patched old": wanted.old,
        "patched new": wanted.new,
    }
    qemus = {what: binary_of(layout, name) for what, name in names.items()}
    record.write("build", {what: one.side() for what, one in qemus.items()})
    if all(qemus[f"stock {x}"].sha256 == qemus[f"patched {x}"].sha256 for x in ("old", "new")):
        raise PreconditionError(
            "the QEMUs under test are the stock ones: there is nothing to compare",
            hint="has the series patches? name QEMUs of yours with --old and --new",
        )
    return qemus


@dataclass(frozen=True)
class Trial:
    """One release's migration-test, ready to be run three times.

    The stock tree's driver runs both pairs: it is the measure.  The patched tree's own driver runs
    the patched pair too: the tests that both have must not have become others, and those that
    only it has must pass.
    """

    release: str
    stock: Stand
    patched: Stand
    own: Stand

    def run(self, tests: Sequence[str]) -> list[Comparison]:
        """Run `tests` and compare."""
        title = f"migration-test of {self.release}"
        before = self.stock.run_all(tests, f"{title}, stock pair")
        return [
            self._compare(f"{title}, patched pair", before, tests, self.patched),
            self._compare(f"{title} with the series, patched pair", before, tests, self.own),
        ]

    @property
    def names(self) -> list[str]:
        """The tests of the stock driver, and those that the series adds."""
        return list(dict.fromkeys([*self.stock.names, *self.own.names]))

    def _compare(
        self, title: str, before: Mapping[str, TestResult], tests: Sequence[str], other: Stand
    ) -> Comparison:
        after = other.run_all(tests, title)
        added = {test: one for test, one in after.items() if test not in self.stock.names}
        return compare(
            title, before, after, lambda test: (self.stock.run(test), other.run(test)), added
        )


@contextmanager
def _trial(
    layout: Layout,
    release: Release,
    qemus: Mapping[str, Binary],
    blobs: Path,
    wanted: RegressOptions,
    directory: Path,
) -> Iterator[Trial]:
    """Build the release's drivers and set them up with the pairs."""
    own = build.driver(layout, release.name)
    stock = Setup(
        driver=build.driver(layout, f"stock:{release.name}"),
        tree=stock_tree(layout, resolve(layout, release)),
        old=qemus["stock old"].path,
        new=qemus["stock new"].path,
        firmware=blobs,
        accel=wanted.accel,
        thorough=wanted.thorough,
    )
    patched = replace(stock, old=qemus["patched old"].path, new=qemus["patched new"].path)
    logs = directory / "qtests" / release.name
    with (
        qtests.stand(stock, logs / "stock") as one,
        qtests.stand(patched, logs / "patched") as two,
        qtests.stand(replace(patched, driver=own), logs / "patched-own-driver") as three,
    ):
        yield Trial(release.name, one, two, three)


def _chosen(trials: Sequence[Trial], pattern: str) -> list[tuple[Trial, list[str]]]:
    """Return the tests that match, for each driver that has any; raise UsageError for none."""
    found = [
        (trial, [test for test in trial.names if re.search(pattern, test)]) for trial in trials
    ]
    if not any(tests for _, tests in found):
        raise UsageError(f"no test matches {pattern!r}", hint=f"one is called {trials[0].names[0]}")
    return [(trial, tests) for trial, tests in found if tests]


def _vmstate(
    layout: Layout,
    releases: Releases,
    qemus: Mapping[str, Binary],
    blobs: Path,
    directory: Path,
) -> Iterator[StateCheck]:
    """Compare what the four QEMUs say of their devices' state, by the new release's checker."""
    tree = stock_tree(layout, resolve(layout, releases.new))
    place = directory / "vmstate"
    place.mkdir()
    with step("compare the devices' state"):
        for machine in vmstate.machines(releases.old.name):
            dumps = {
                what: vmstate.dump(
                    one.path, blobs, machine, place / f"{machine}-{what.replace(' ', '-')}.json"
                )
                for what, one in qemus.items()
            }
            for which in ("old", "new"):
                pair = dumps[f"stock {which}"], dumps[f"patched {which}"]
                yield vmstate.same_release(tree, machine, which, *pair)
            stock = vmstate.check(tree, dumps["stock old"], dumps["stock new"])
            patched = vmstate.check(tree, dumps["patched old"], dumps["patched new"])
            yield vmstate.same_upgrade(machine, stock, patched)


def _keep(report: Regression) -> None:
    text = json.dumps(report.record(), indent=2) + "\n"
    (report.directory / "regress.json").write_text(text, encoding="utf-8")
    (report.directory / "regress.md").write_text(markdown(report), encoding="utf-8")
