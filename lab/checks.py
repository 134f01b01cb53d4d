# SPDX-License-Identifier: GPL-2.0-or-later
"""What a submitted series is checked for: from whether it applies to what it does to a guest."""

from __future__ import annotations

import dataclasses
import enum
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field

from lab import bench, build, figures, gate, naming, patches, patchlint, qtests, sources, vmstate
from lab.errors import CannotTellError
from lab.figures import Bench
from lab.firmware import prepare
from lab.gnupatch import PatchError
from lab.layout import Layout
from lab.model import Model
from lab.naming import Named
from lab.patches import Series
from lab.pipeline import upgrade_once
from lab.progress import step
from lab.sources import Source

#: Of QEMU's own migration tests: quick ones, of the ways that others build on.
TESTS = (
    "/x86_64/migration/precopy/unix/plain",
    "/x86_64/migration/postcopy/plain",
    "/x86_64/migration/validate_uuid",
    "/x86_64/migration/localhost/stop/gift",
    "/x86_64/migration/localhost/handover/memfd",
    "/x86_64/migration/localhost/flip/early",
)
#: A series is slower, or needs more memory, when it does so by more than this and the noise.
_CONDITIONS = ("pause_ms.outside.ratio > 1.5", "memory_ratio.ratio > 1.1")


class Status(enum.StrEnum):
    """As b4's review checks have it."""

    PASS = "pass"  # noqa: S105 -- not a password
    WARN = "warn"
    FAIL = "fail"


class Check(Model):
    """What one tool said."""

    tool: str
    status: Status
    summary: str
    details: str = Field(default="", description="what was said in full, where there is more")


@dataclass(frozen=True)
class Subject:
    """A series on its base, and what it is to be tried with."""

    layout: Layout
    series: Series
    #: What the base, and the base with the series, are called (lab.naming).
    base: str
    old: str
    directory: Path
    every_patch: bool = True
    mechanisms: Sequence[str] = ("flip", "gift")
    ram: str = "512M"
    repeats: int = 3
    accel: str = "auto"

    @property
    def name(self) -> str:
        """The base with the series."""
        return f"{self.base}+{self.series.patches[0].parent}"

    @property
    def size(self) -> str:
        """How many patches, in words."""
        number = len(self.series.patches)
        return "1 patch" if number == 1 else f"{number} patches"

    @property
    def named(self) -> Named:
        """The base, and everything known of it."""
        return naming.named(self.layout, self.base)

    @property
    def source(self) -> Source:
        """What the base is made from."""
        asked = self.named
        return sources.resolve(self.layout, asked.release, asked.releases.upstream.releases)

    @property
    def tree(self) -> Path:
        """The same unpacked, without any series."""
        return sources.stock_tree(self.layout, self.source)


def applies(subject: Subject) -> Iterator[Check]:
    """Whether it applies to the base, and whether every hunk is where it says."""
    whole = Series("whole", (*subject.named.series.patches, *subject.series.patches))
    tree = subject.directory / "tree"
    try:
        with step(f"applying {subject.size} to {subject.base}"):
            notes = patches.patched_tree(subject.source, whole, tree)
    except PatchError as error:
        first, _, rest = error.message.partition("\n")
        which = next((p.name for p in subject.series.patches if str(p) in first), "the series")
        yield Check(
            tool="apply",
            status=Status.FAIL,
            summary=f"{which} does not apply to {subject.base}",
            details=rest,
        )
        return
    finally:
        shutil.rmtree(tree, ignore_errors=True)
    names = {patch.name for patch in subject.series.patches}
    moved = [note for note in notes if note.partition(":")[0] in names]
    yield Check(
        tool="apply",
        status=Status.WARN if moved else Status.PASS,
        summary=f"{subject.size}, on {subject.base}"
        + ("; some not where they say" if moved else ""),
        details="\n".join(moved),
    )


def style(subject: Subject) -> Iterator[Check]:
    """What QEMU's own checkpatch.pl says."""
    said = patchlint.style(subject.tree, subject.series)
    yield Check(
        tool="checkpatch",
        status=Status.WARN if said else Status.PASS,
        summary=f"{len(said)} remarks" if said else "clean",
        details="\n".join(said),
    )


def builds(subject: Subject) -> Iterator[Check]:
    """Whether QEMU compiles after every patch, or at least after the last one."""
    asked, all_of_them = subject.named, subject.series.patches
    source = subject.source
    last = len(all_of_them)
    for number in range(1 if subject.every_patch else last, last + 1):
        patch = all_of_them[number - 1]
        part = Series(f"upto-{number}", (*asked.series.patches, *all_of_them[:number]))
        try:
            if number == last:
                build.by_name(subject.layout, subject.name)
            else:
                build.build(subject.layout, asked.release, source, part, asked.releases.build)
        except CannotTellError as error:
            first, _, rest = error.message.partition("\n")
            yield Check(
                tool="build",
                status=Status.FAIL,
                summary=f"patch {number} of {last}, {patch.name}, does not build",
                details=f"{first}\n{rest}",
            )
            return
    what = f"after each of {last}" if subject.every_patch and last > 1 else "after the last patch"
    yield Check(tool="build", status=Status.PASS, summary=f"QEMU builds {what}")


def device_state(subject: Subject) -> Iterator[Check]:
    """Whether what the base has saved can be loaded with the series, and the other way round."""
    tree, firmware = subject.tree, prepare(subject.layout)
    old = naming.named(subject.layout, subject.old) if not naming.is_path(subject.old) else None
    qemus = {
        which: build.by_name(subject.layout, name).qemu
        for which, name in (("base", subject.base), ("series", subject.name))
    }
    for machine in vmstate.machines(old.release.name if old else subject.named.release.name):
        dumps = [
            vmstate.dump(qemu, firmware, machine, subject.directory / f"{machine}-{which}.json")
            for which, qemu in qemus.items()
        ]
        found = vmstate.same_release(tree, machine, subject.base, *dumps)
        yield Check(
            tool="vmstate-static-checker",
            status=Status.PASS if found.passed else Status.FAIL,
            summary=f"{machine}: the devices' state is "
            + ("compatible" if found.passed else "not compatible with the base's"),
            details="" if found.passed else found.text,
        )


def qemu_tests(subject: Subject) -> Iterator[Check]:
    """QEMU's own migration tests, a few: what fails with the series and not without it."""
    old = build.binary_of(subject.layout, subject.old).path
    base = qtests.Bench(
        driver=build.driver(subject.layout, subject.base),
        tree=subject.tree,
        old=old,
        new=build.by_name(subject.layout, subject.base).qemu,
        firmware=prepare(subject.layout),
        accel="tcg",
    )
    theirs = dataclasses.replace(base, new=build.by_name(subject.layout, subject.name).qemu)
    logs = subject.directory / "qtests"
    with qtests.stand(base, logs / "base") as one, qtests.stand(theirs, logs / "series") as two:
        before = one.run_all(TESTS, "migration-test, base")
        after = two.run_all(TESTS, "migration-test, series")
    worse = [name for name, result in after.items() if not result.agrees(before[name])]
    yield Check(
        tool="migration-test",
        status=Status.FAIL if worse else Status.PASS,
        summary=f"{len(worse)} of {len(after)} tests are not as with the base"
        if worse
        else f"{len(after)} tests as with the base",
        details="\n".join(f"{name}: {before[name]}, and {after[name]}" for name in worse),
    )


def upgrades(subject: Subject) -> Iterator[Check]:
    """Running guests, upgraded to the base and to the series in the same rounds."""
    labels = [label for name in subject.mechanisms for label in (name, f"{name}@{subject.name}")]
    request = figures.Request(
        mechanisms=labels,
        ram=[subject.ram],
        touch="75%",
        dirty_rate="20M",
        repeats=subject.repeats,
        reference=labels[0],
        guest="tiny",
        accel=subject.accel,
        old=subject.old,
        new=subject.base,
    )
    layout = dataclasses.replace(subject.layout, out=subject.directory)
    bench.prepare(layout, request)
    session = bench.begin(layout, request, upgrade_once)
    session.go()
    bench.leave(session)
    yield from _harm(session.bench, subject)
    yield from _figures(session.bench, subject)


def _harm(done: Bench, subject: Subject) -> Iterator[Check]:
    """Yield, for each mechanism, whether a guest was harmed."""
    for name in subject.mechanisms:
        label = f"{name}@{subject.name}"
        mine = [run for run in done.runs if run.mechanism == label]
        bad = [run for run in mine if run.faults]
        base_is_bad = any(run.faults for run in done.runs if run.mechanism == name)
        missing = [entry.reason for entry in done.inapplicable if entry.mechanism == label]
        if missing:
            yield Check(
                tool=f"upgrade by {name}", status=Status.WARN, summary=f"not tried: {missing[0]}"
            )
        elif bad and base_is_bad:
            yield Check(
                tool=f"upgrade by {name}",
                status=Status.WARN,
                summary="fails with the base as well",
                details="\n".join(bad[0].faults),
            )
        else:
            yield Check(
                tool=f"upgrade by {name}",
                status=Status.FAIL if bad else Status.PASS,
                summary=f"{len(bad)} of {len(mine)} upgrades failed: {bad[0].faults[0]}"
                if bad
                else f"{len(mine)} upgrades, every guest whole",
                details="\n".join(bad[0].faults) if bad else "",
            )


def _figures(done: Bench, subject: Subject) -> Iterator[Check]:
    """Yield whether the series makes an upgrade slower, or larger, than the base does."""
    for name in subject.mechanisms:
        label = f"{name}@{subject.name}"
        # Ratios are to the same mechanism's own base.
        against = done.model_copy(
            update={"request": done.request.model_copy(update={"reference": name})}
        )
        against = against.model_copy(update={"summary": figures.summarise(against)})
        row = next((row for row in against.summary if row.mechanism == label), None)
        if row is None or not row.ratios:
            continue
        asked = [gate.condition(f"{label}.{text}") for text in _CONDITIONS]
        met = [text.partition(": ")[2] for text in gate.alarms(asked, None, against)]
        pause, memory = (row.ratios.get(name) for name in ("pause_outside_ms", "memory_ratio"))
        told = [
            f"{what} {found.median:.2f} times the base's [{found.low:.2f}, {found.high:.2f}]"
            for what, found in (("pause outside", pause), ("memory peak", memory))
            if found and found.low is not None and found.high is not None
        ]
        if not told:
            continue  # one round is nothing to compare
        yield Check(
            tool=f"bench of {name}",
            status=Status.FAIL if met else Status.PASS,
            summary="; ".join(told),
            details="\n".join(met),
        )


#: In this order; what comes after one that fails and is marked is not tried.
STEPS: tuple[tuple[Callable[[Subject], Iterator[Check]], bool], ...] = (
    (applies, True),
    (style, False),
    (builds, True),
    (device_state, False),
    (qemu_tests, False),
    (upgrades, False),
)
