# SPDX-License-Identifier: GPL-2.0-or-later
"""The flow.  Read `upgrade_once` first: it is the whole lab from top to bottom.

    sources -> patched trees -> paired build -> guest image -> run under old -> upgrade -> measure
    -> verdict -> report

Each stage leaves its record as numbered JSON in the run directory before the next one starts.
"""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path

from lab import mechanisms, workloads
from lab.base.deadline import Deadline, DeadlineError
from lab.base.errors import PreconditionError
from lab.base.layout import Layout, socket_directory
from lab.base.progress import note_once, step
from lab.base.record import Record
from lab.guest import disk, images
from lab.guest.images import GuestImage
from lab.host import cgroup, facts
from lab.host.cgroup import MemoryGroup
from lab.host.pinning import pinned
from lab.measure import downtime, integrity, memory
from lab.measure.timeline import brownout, timeline
from lab.mechanisms import Mechanism
from lab.mechanisms.move import Interfere, Upgrade, upgrade
from lab.model import Findings, Integrity, Pages, Result
from lab.options import UpgradeOptions
from lab.pair import build, firmware
from lab.source import naming
from lab.verdict import Observation, judge
from lab.vm import accel, binary, cmdline
from lab.vm.agent import AgentError, Heart
from lab.vm.binary import Binary
from lab.vm.cmdline import Machine
from lab.vm.monitor import MonitorError, QmpError
from lab.vm.qemu import Vm, VmDiedError, VmFactory, factory
from lab.vm.ramfile import ram_file
from lab.workloads import NOTHING, Together

#: What a QEMU needs beside the guest's RAM: itself, its page tables, the lab (bytes).
_OVERHEAD = 256 * 2**20
#: The other clocks are heard for this long after the upgrade; one margin and a bit (s).
_LISTEN_S = 1.2 * downtime.MARGIN_NS / 1e9
#: What a guest that no longer answers ends in; what the lab itself lacks does not.
_NO_ANSWER = (AgentError, DeadlineError, MonitorError, QmpError, VmDiedError)


def upgrade_once(
    layout: Layout, options: UpgradeOptions, interfere: Interfere[Vm] | None = None
) -> Result:
    """Upgrade one guest and judge it.

    `interfere` is how the tests break things: it is called as soon as the move has begun.
    Raises LabError when the lab could not do its work; a failed upgrade is a result.
    """
    given = check_host_and_names(layout, options)
    record = Record(layout.new_run())
    pair = paired_build(layout, options, given, record)
    image = guest_image(layout, options, record)
    mechanism = mechanisms.choose(options.mechanism, pair.old, pair.new)
    workloads.check_mechanism(options.workloads, mechanism, pair.old)
    with (
        pinned(layout, wanted=options.pin) as pins,
        cgroup.memory_group() as group,
        socket_directory(roomy=bool(image.disk)) as sockets,
        workloads.opened(options.workloads, record.directory) as work,
        ram_file(mechanisms.backing(mechanism, options.pages)) as file,
        factory(record.directory, group, pins) as start,
    ):
        confine(group, options)
        machine = old_machine(layout, options, pair, image, mechanism, sockets, record, work, file)
        plan = Plan(options, pair, mechanism, machine, work)
        old = run_under_old(start, plan)
        moved, used = move_and_sample(start, old, plan, group, interfere)
        record.write("upgrade", moved.record())
        account = check_integrity(old, moved, options)
        if moved.survivor_is_new:
            used = used.with_huge_pages(moved.new.pid, options.ram_bytes)
        found = findings(plan, old, moved)
        line = timeline(
            old.heart.beats,
            moved.new.heart.beats,
            moved.window,
            (old.events, moved.new.events),
            (used.start_ns, used.samples),
            old.cpu,
        )
        measured = {"memory": used.memory, "integrity": account, "workloads": found}
        record.write("measure", {**measured, "timeline": line})
        result = verdict(plan, record, old, moved, used, account, found).model_copy(
            update={"pinning": pins.record(), "brownout": brownout(line)}
        )
    record.finish(result)
    return result


def check_host_and_names(layout: Layout, options: UpgradeOptions) -> dict[str, Binary]:
    """Find out what cannot be before minutes are spent on a build.

    Returns the binaries that were given by path, by that path.

    Raises UsageError for a name that nobody knows, PreconditionError without the memory.
    """
    mechanism = mechanisms.named(options.mechanism)
    workloads.check_guest(options.workloads, options.guest, images.named(layout, options.guest))
    names = {options.old, options.new}
    given = {name: binary.inspect(Path(name)) for name in names if naming.is_path(name)}
    for name in names - given.keys():
        naming.named(layout, name)
    copies = 2 if mechanism and mechanism.doubles else 1
    what = f"moving a guest of {options.ram_bytes // 2**20} MiB" + (
        f" by {mechanism.name}" if mechanism else ""
    )
    if options.pages is Pages.HUGETLB:
        facts.require_huge_pages(copies * options.ram_bytes, what)
        facts.require_memory(copies * _OVERHEAD, what)
    else:
        facts.require_memory(copies * (options.ram_bytes + _OVERHEAD), what)
    return given


def confine(group: MemoryGroup | None, options: UpgradeOptions) -> None:
    """Limit the memory of both QEMUs together, if that is asked for."""
    if options.margin_bytes is None:
        return
    if group is None:
        raise PreconditionError(
            "no memory group can be made here, so none can be limited",
            hint="run as root, or leave --memory-margin out",
        )
    group.limit(options.ram_bytes + options.margin_bytes)


@dataclass(frozen=True)
class Plan:
    """What has been settled before the guest boots."""

    options: UpgradeOptions
    pair: Pair
    mechanism: Mechanism
    machine: Machine
    work: Together = NOTHING


@dataclass(frozen=True)
class Pair:
    """The old and the new QEMU, and the firmware for both."""

    old: Binary
    new: Binary
    firmware: Path


def paired_build(
    layout: Layout, options: UpgradeOptions, given: dict[str, Binary], record: Record
) -> Pair:
    """Build what is asked for by release, take what is given by path."""
    built = {
        side: build.by_name(layout, name)
        for side, name in (("old", options.old), ("new", options.new))
        if name not in given
    }
    record.write("sources", {side: made.source for side, made in built.items()})
    record.write("build", built)
    binaries = {
        side: binary.inspect(built[side].qemu, name) if side in built else given[name]
        for side, name in (("old", options.old), ("new", options.new))
    }
    return Pair(binaries["old"], binaries["new"], firmware.prepare(layout))


def guest_image(layout: Layout, options: UpgradeOptions, record: Record) -> GuestImage:
    """Build the guest's image, or find it in the cache."""
    image = images.build(options.guest, layout)
    record.write("guest", image)
    return image


def old_machine(
    layout: Layout,
    options: UpgradeOptions,
    pair: Pair,
    image: GuestImage,
    mechanism: Mechanism,
    sockets: Path,
    record: Record,
    work: Together = NOTHING,
    file: Path | None = None,
) -> Machine:
    """Say what the old QEMU is to run, and by which accelerator."""
    machine = Machine(
        qemu=pair.old.path,
        firmware=pair.firmware,
        kernel=image.kernel,
        initrd=image.initrd,
        append=image.append,
        sockets=sockets / "old",
        serial_log=record.directory / "old-serial.log",
        accel="tcg",
        ram_bytes=options.ram_bytes,
        cpus=options.cpus,
        machine_type=cmdline.BOARDS[options.machine],
        backing=mechanisms.backing(mechanism, options.pages),
        ram_file=file,
        disk=disk.overlay(image.disk, sockets),
    )
    chosen = accel.choose(layout, options.accel, machine)
    if chosen.reason:
        note_once(chosen.reason)
    machine = work.equip(dataclasses.replace(machine, accel=chosen.accel))
    record.write(
        "run",
        {
            "machine": machine,
            "argv": machine.argv(),
            "accel": chosen,
            "mechanism": mechanism.name,
            "reproduce": options.reproduce,
        },
    )
    return machine


def run_under_old(start: VmFactory, plan: Plan) -> Vm:
    """Boot the guest under the old QEMU and set its workload going."""
    options = plan.options
    with step(f"boot {options.guest} under the old QEMU ({plan.machine.accel})"):
        old = start.boot("old", plan.machine)
    plan.work.start(old)
    with step("fill the guest's memory (MiB)") as tick:
        integrity.fill(old.control, options.touched_bytes, options.dirty_bytes_s, tick)
    old.read_cpu()
    listen(old.heart, old)
    return old


def move_and_sample(
    start: VmFactory,
    old: Vm,
    plan: Plan,
    group: MemoryGroup | None,
    interfere: Interfere[Vm] | None,
) -> tuple[Upgrade[Vm], memory.Used]:
    """Upgrade, with the memory of both QEMUs watched from before the new one starts."""
    mechanism, sockets = plan.mechanism, old.machine.sockets.with_name("new")
    successor = cmdline.successor(
        old.machine,
        qemu=plan.pair.new.path,
        firmware=old.machine.firmware,
        sockets=sockets,
        serial_log=start.directory / "new-serial.log",
        incoming=mechanism.incoming(dataclasses.replace(old.machine, sockets=sockets)),
    )
    successor = plan.work.succeed(successor, mechanism)
    pss_before = memory.pss(old.pid)
    huge_before = memory.huge_pages(old.pid, plan.options.ram_bytes)
    # The pool's pages are in no memory group's account.
    watched = group.watch() if group and plan.options.pages is Pages.THP else None
    with step(f"upgrade by {mechanism.name}"):
        fresh = (
            start.expect("new", successor, old, in_place=mechanism.in_place)
            if mechanism.inherits or mechanism.in_place
            else start.start("new", successor)
        )
        wanted = plan.options.memory_samples
        with memory.sampled(old, fresh, considerate=bool(watched), wanted=wanted) as sampler:
            moved = upgrade(start, old, fresh, mechanism, interfere)
    peak = watched() if watched else None
    used = memory.summarise(pss_before, sampler.samples, huge_before, peak) if wanted else None
    return moved, memory.Used(used, sampler.samples, sampler.start_ns)


def listen(heart: Heart, vm: Vm) -> None:
    """Hear the heart for a while, so that there is something to compare with."""
    until = time.monotonic_ns() + int(_LISTEN_S * 1e9)
    for _ in Deadline.after(60, f"heartbeats from the {vm.name} QEMU").poll(0.02):
        vm.alive()
        if heart.beats and heart.beats[-1].host_ns > until:
            return


def check_integrity(old: Vm, moved: Upgrade[Vm], options: UpgradeOptions) -> Integrity:
    """Let the guest check itself wherever it lives now."""
    survivor = moved.survivor(old)
    if survivor is None:
        return integrity.nothing_known(old.heart.beats, moved.new.heart.beats)
    try:
        listen(survivor.heart, survivor)
        with step("check every page in the guest"):
            found = integrity.check(survivor.control, options.touched_bytes)
    except _NO_ANSWER as error:
        moved.lose(error.message)
        return integrity.nothing_known(old.heart.beats, moved.new.heart.beats)
    return integrity.integrity(found, old.heart.beats, moved.new.heart.beats)


def findings(plan: Plan, old: Vm, moved: Upgrade[Vm]) -> list[Findings]:
    """Let the workloads say what they lost; of a guest that is lost nothing more can be said."""
    survivor = moved.survivor(old)
    if survivor is None:
        return []
    try:
        return plan.work.check(survivor, moved.window)
    except _NO_ANSWER as error:
        moved.lose(error.message)
        return []


def verdict(
    plan: Plan,
    record: Record,
    old: Vm,
    moved: Upgrade[Vm],
    used: memory.Used,
    account: Integrity,
    found: list[Findings],
) -> Result:
    """Judge what was seen."""
    options, mechanism = plan.options, plan.mechanism
    window = moved.window
    pause = downtime.pause(
        old.heart.beats, moved.new.heart.beats, window, old.events, moved.new.events
    )
    seen = Observation(
        mechanism=mechanism.name,
        outcome=moved.outcome,
        failure=moved.failure,
        pause_ms=pause,
        memory=used.memory,
        memory_sampled=options.memory_samples,
        integrity=account,
        workloads=tuple(found),
    )
    judged = judge(options.limits, seen)
    return Result(
        verdict=judged.kind,
        reasons=judged.reasons,
        notes=judged.notes,
        outcome=moved.outcome,
        mechanism=mechanism.name,
        accel=plan.machine.accel,
        guest=options.guest,
        ram_bytes=options.ram_bytes,
        touched_bytes=options.touched_bytes,
        dirty_rate=options.dirty_bytes_s,
        pages=options.pages,
        machine=plan.machine.machine_type,
        cpus=options.cpus,
        total_ms=window.ms if moved.survivor_is_new else None,
        pause_ms=pause,
        phases_ms=mechanism.phases(moved.old_info, moved.new_start_ms),
        memory=used.memory,
        memory_sampled=options.memory_samples,
        integrity=account,
        blocks=mechanism.blocks(moved.old_info, options.ram_bytes),
        workloads=found,
        limits=options.limits,
        old=plan.pair.old.side(),
        new=plan.pair.new.side(),
        host=facts.fingerprint(),
        run_directory=str(record.directory),
        reproduce=options.reproduce,
    )
