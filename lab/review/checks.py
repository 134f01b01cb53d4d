# SPDX-License-Identifier: GPL-2.0-or-later
"""The checks of a submitted series, from whether it applies to what it does to a guest."""

from __future__ import annotations

import enum
import shutil
from collections.abc import Callable, Iterator, Sequence

from pydantic import Field

from lab import bench
from lab.base.errors import CannotTellError
from lab.base.progress import note, step
from lab.model import Model
from lab.pair import build
from lab.pair.firmware import prepare
from lab.results import figures, worse
from lab.results.figures import Bench
from lab.results.worse import Grade, Weighed
from lab.review import lint, qtests, suite, vmstate
from lab.review.candidate import Base, Subject
from lab.source import naming
from lab.source.gnupatch import PatchError
from lab.source.releases import X86_64
from lab.source.series import Series, patched_tree
from lab.vm.binary import binary_of

#: Of QEMU's own migration tests: quick ones, of the ways that others build on.
TESTS = (
    "/x86_64/migration/precopy/unix/plain",
    "/x86_64/migration/postcopy/plain",
    "/x86_64/migration/validate_uuid",
    "/x86_64/migration/localhost/stop/gift",
    "/x86_64/migration/localhost/handover/memfd",
    "/x86_64/migration/localhost/flip/early",
)
#: What the check is called that says what the run could have seen.
POWER = "what could be seen"


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


def applies(subject: Subject) -> Iterator[Check]:
    """Whether it applies to each base, and whether every hunk is where it says."""
    for base in subject.bases:
        yield _applies(subject, base)


def _applies(subject: Subject, base: Base) -> Check:
    tool, tree = subject.tool("apply", base), subject.directory / "tree"
    whole = Series("whole", (*base.named.series.patches, *subject.series.patches))
    try:
        with step(f"applying {subject.size} to {base.name}"):
            notes = patched_tree(base.source, whole, tree)
    except PatchError as error:
        first, _, rest = error.message.partition("\n")
        which = next((p.name for p in subject.series.patches if str(p) in first), "the series")
        summary = f"{which} does not apply to {base.name}"
        return Check(tool=tool, status=Status.FAIL, summary=summary, details=rest)
    finally:
        shutil.rmtree(tree, ignore_errors=True)
    names = {patch.name for patch in subject.series.patches}
    moved = [note for note in notes if note.partition(":")[0] in names]
    return Check(
        tool=tool,
        status=Status.WARN if moved else Status.PASS,
        summary=f"{subject.size}, on {base.name}" + ("; some not where they say" if moved else ""),
        details="\n".join(moved),
    )


def style(subject: Subject) -> Iterator[Check]:
    """What QEMU's own checkpatch.pl says, of each release that the series is for."""
    for base in subject.bases:
        said = lint.style(base.tree, subject.series)
        yield Check(
            tool=subject.tool("checkpatch", base),
            status=Status.WARN if said else Status.PASS,
            summary=f"{len(said)} remarks" if said else "clean",
            details="\n".join(said),
        )


def builds(subject: Subject) -> Iterator[Check]:
    """Whether QEMU compiles after every patch, or at least after the last one."""
    for base in subject.bases:
        yield _builds(subject, base)


def _builds(subject: Subject, base: Base) -> Check:
    tool = subject.tool("build", base)
    last = len(subject.series.patches)
    for number in range(1 if subject.every_patch else last, last + 1):
        try:
            build_part(base, number)
        except CannotTellError as error:
            patch = subject.series.patches[number - 1]
            return Check(
                tool=tool,
                status=Status.FAIL,
                summary=f"patch {number} of {last}, {patch.name}, does not build",
                details=error.message,
            )
    what = f"after each of {last}" if subject.every_patch and last > 1 else "after the last patch"
    return Check(tool=tool, status=Status.PASS, summary=f"QEMU builds {what}")


def build_part(base: Base, number: int) -> None:
    """Build `base` with the first `number` patches; raise CannotTellError when it cannot be."""
    if number == len(base.series.patches):
        build.by_name(base.layout, base.patched)
        return
    asked = base.named
    part = Series(
        f"{asked.series.name}+upto-{number}",
        (*asked.series.patches, *base.series.patches[:number]),
    )
    build.build(base.layout, asked.release, base.source, part, asked.options(X86_64))


def device_state(subject: Subject) -> Iterator[Check]:
    """Whether what a base has saved can be loaded with the series, and the other way round."""
    for base in subject.bases:
        yield _device_state(subject, base)


def _device_state(subject: Subject, base: Base) -> Check:
    firmware, release = prepare(subject.layout), base.named.release.name
    known = subject.old if naming.is_built(subject.layout, subject.old) else base.name
    qemus = {
        which: build.by_name(subject.layout, name).qemu
        for which, name in (("base", base.name), ("series", base.patched))
    }
    found = []
    for machine in vmstate.machines(naming.named(subject.layout, known).release.name):
        dumps = [
            vmstate.dump(
                qemu, firmware, machine, subject.directory / f"{release}-{machine}-{which}.json"
            )
            for which, qemu in qemus.items()
        ]
        found.append(vmstate.same_release(base.tree, machine, base.name, *dumps))
    bad = [one for one in found if not one.passed]
    return Check(
        tool=subject.tool("vmstate-static-checker", base),
        status=Status.FAIL if bad else Status.PASS,
        summary=", ".join(one.machine for one in bad or found)
        + (": the devices' state is not compatible with the base's" if bad else ": compatible"),
        details="\n".join(f"{one.machine}: {one.text}" for one in bad),
    )


def qemu_tests(subject: Subject) -> Iterator[Check]:
    """QEMU's own migration tests, a few: what fails with the series and not without it."""
    driver = Base(
        subject.layout,
        subject.series,
        subject.new if naming.is_built(subject.layout, subject.new) else subject.old,
    )

    def pair(old: str, new: str) -> qtests.Setup:
        return qtests.Setup(
            driver=build.driver(subject.layout, driver.name),
            tree=driver.tree,
            old=binary_of(subject.layout, old).path,
            new=binary_of(subject.layout, new).path,
            firmware=prepare(subject.layout),
            accel="tcg",
        )

    base, theirs = pair(subject.old, subject.new), pair(*subject.pair)
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


def avocado(subject: Subject) -> Iterator[Check]:
    """The lab's own tests, those with the chosen tags: what fails with the series only."""
    if not subject.tags:
        return
    title = f"avocado {subject.tags}"

    def tested(words: Sequence[str], pair: tuple[str, str], which: str) -> suite.Ran:
        into = subject.directory / f"avocado-{which}"
        return suite.run(f"{title}, {which}", words, pair, subject.accel, into)

    found = tested(suite.tagged(subject.tags), subject.pair, "series")
    # Only those that failed are tried without the series as well: all of them take minutes.
    again = found.failed and tested(found.failed, (subject.old, subject.new), "base").failed
    mine = [name for name in found.failed if name not in again]
    counts = [f"{found.passed} passed"]
    counts += [f"{len(mine)} failed"] if mine else []
    counts += [f"{len(again)} failed with the base as well"] if again else []
    counts += [f"{found.cancelled} cancelled"] if found.cancelled else []
    yield Check(
        tool=title,
        status=Status.FAIL if mine else Status.WARN if again else Status.PASS,
        summary=", ".join(counts),
        details="\n".join([*mine, *(f"{name} (with the base as well)" for name in again)]),
    )


def request(subject: Subject) -> figures.Request:
    """Return the bench in which each mechanism is tried without the series and with it."""
    labels = [label for name in subject.mechanisms for label in (name, subject.label(name))]
    return figures.Request(
        mechanisms=tuple(labels),
        ram=(subject.ram,),
        touch=subject.touch,
        dirty_rate="20M",
        repeats=subject.repeats,
        reference=labels[0],
        guest="tiny",
        accel=subject.accel,
        old=subject.old,
        new=subject.new,
    )


def upgrades(subject: Subject) -> Iterator[Check]:
    """Running guests, upgraded without the series and with it in the same rounds.

    Rounds are added until a slowdown that is a failure could be seen, or there are as many as may
    be.
    """
    looks = worse.looks(subject.repeats, subject.most)

    def judged(done: Bench) -> Weighed:
        pairs = {name: (name, subject.label(name)) for name in subject.mechanisms}
        return worse.judge(done, pairs, subject.allowed, worse.ALPHA / len(looks))

    def more(done: Bench) -> int | None:
        later = [rounds for rounds in looks if rounds > done.request.repeats]
        found = judged(done)
        if not later or found.too_much or found.enough:
            return None
        note(f"too little could be seen in {done.request.repeats} rounds: on to {later[0]}")
        return later[0]

    done = bench.measure(subject.layout.into(subject.directory), request(subject), more)
    yield from _harm(done, subject)
    found = judged(done)
    yield from _compared(done, found)
    yield _power(done, found, subject)


def _harm(done: Bench, subject: Subject) -> Iterator[Check]:
    """Yield, for each mechanism, whether a guest was harmed."""
    for name in subject.mechanisms:
        label = subject.label(name)
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


_STATUS = {
    Grade.SAME: Status.PASS,
    Grade.WORSE: Status.WARN,
    Grade.TOO_MUCH: Status.FAIL,
    Grade.UNKNOWN: Status.WARN,
}


def _compared(done: Bench, found: Weighed) -> Iterator[Check]:
    """Yield whether the series makes an upgrade slower, or larger, than the base does."""
    impossible = {entry.mechanism for entry in done.inapplicable}
    for row in found.rows:
        if row.grade is Grade.UNKNOWN and row.mechanism in impossible:
            continue  # that has been said
        yield Check(
            tool=f"bench of {row.mechanism}",
            status=_STATUS[row.grade],
            summary=worse.sentence(row),
            details="\n".join(worse.words(one) for one in row.worse or row.compared),
        )


def _power(done: Bench, found: Weighed, subject: Subject) -> Check:
    """Return what this run could have seen, by each mechanism."""
    least, limit = found.steadiest, subject.allowed.slower_ms
    labels = [subject.label(name) for name in subject.mechanisms]
    upgraded = sum(run.mechanism in labels for run in done.runs)
    rounds = f"after {done.request.repeats} rounds"
    if least is None:
        said = f"{rounds} no slowdown could have been seen"
    else:
        said = (
            f"{rounds} {least.seen:.0f} ms more pause, {least.seen_ratio or 0:.2f} times the "
            f"base's, would have been seen ({least.mechanism})"
        )
    if not found.enough:
        said += f"; failing begins at {limit:g} ms: take --max-repeats {2 * done.request.repeats}"
    return Check(
        tool=POWER,
        status=Status.PASS if found.enough or found.too_much else Status.WARN,
        summary=said,
        details="\n".join(
            [f"{row.mechanism}: {worse.seen(row)}" for row in found.rows if row.compared]
            + [f"guests harmed in {worse.rarest_harm(upgraded):.0%} of upgrades or more"]
        ),
    )


#: In this order; what comes after one that fails and is marked is not tried.
STEPS: tuple[tuple[Callable[[Subject], Iterator[Check]], bool], ...] = (
    (applies, True),
    (style, False),
    (builds, True),
    (device_state, False),
    (qemu_tests, False),
    (avocado, False),
    (upgrades, False),
)
