# SPDX-License-Identifier: GPL-2.0-or-later
"""The flow.  Read `upgrade_once` first: it is the whole lab from top to bottom.

    sources -> patched trees -> paired build -> guest image -> run under old -> upgrade -> measure
    -> verdict -> report

The first four are `lab.stage`.  Each step leaves its record as numbered JSON in the run directory
before the next one starts.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lab import mechanisms
from lab.base.deadline import Deadline, DeadlineError
from lab.base.errors import PreconditionError
from lab.base.layout import Layout
from lab.base.progress import note_once, step
from lab.guest import disk
from lab.host import facts
from lab.measure import downtime, integrity, memory, phases
from lab.measure.timeline import Timeline, brownout, timeline
from lab.mechanisms import foresight
from lab.mechanisms.move import Interfere, Move, move
from lab.model import Findings, Integrity, Pages, Pause, Result
from lab.options import UpgradeOptions
from lab.stage import Stage, staged
from lab.verdict import Observation, judge
from lab.vm import accel, cmdline
from lab.vm.agent import AgentError, Heart
from lab.vm.cmdline import Machine
from lab.vm.monitor import MonitorError, QmpError
from lab.vm.qemu import Vm, VmDiedError

#: The other clocks are heard for this long after the upgrade; one margin and a bit (s).
_LISTEN_S = 1.2 * downtime.MARGIN_NS / 1e9
#: What a guest that no longer answers ends in; what the lab itself lacks does not.
_NO_ANSWER = (AgentError, DeadlineError, MonitorError, QmpError, VmDiedError)


def upgrade_once(
    layout: Layout,
    options: UpgradeOptions,
    interfere: Interfere[Vm] | None = None,
    *,
    rehearse: bool = False,
) -> Result:
    """Upgrade one guest and judge it.

    With `rehearse` it goes back to the old QEMU when the new one has loaded its device state.
    `interfere` is how the tests break things: it is called as soon as the move has begun.
    Raises LabError when the lab could not do its work; a failed upgrade is a result.
    """
    with staged(layout, options, rehearse=rehearse) as stage:
        old = run_under_old(stage)
        moved, used = move_and_sample(stage, old, interfere)
        checked = check_guest(stage, old, moved)
        seen = measure(stage, old, checked, used)
        result = verdict(stage, seen)
    stage.record.finish(result)
    return result


def run_under_old(stage: Stage) -> Vm:
    """Boot the guest under the old QEMU and set its workload going."""
    options, machine = stage.options, old_machine(stage)
    foresee(stage, machine)
    with step(f"boot {options.guest} under the old QEMU ({machine.accel}, {machine.machine_type})"):
        old = stage.start.boot("old", machine)
    stage.work.start(old)
    with step("fill the guest's memory (MiB)") as tick:
        integrity.fill(old.control, options.touched_bytes, options.dirty_bytes_s, tick)
    old.read_cpu()
    listen(old.heart, old)
    return old


def foresee(stage: Stage, machine: Machine) -> None:
    """Find out beforehand whether the guest would load, where it is lost if it does not.

    Raises PreconditionError with what the new QEMU says.
    """
    pair, mechanism = stage.pair, stage.mechanism
    if mechanism.rolls_back:
        return
    if why := foresight.refusal(machine, pair.new.path, pair.new_firmware):
        raise PreconditionError(
            f"{mechanism.name} would lose the guest: the new QEMU ({pair.new.version}) does not "
            f"load such a machine from the old one ({pair.old.version}): {why}",
            hint="no way of moving it between these two can work; other devices, or another new "
            "QEMU, may",
        )


def old_machine(stage: Stage) -> Machine:
    """Say what the old QEMU is to run, and by which accelerator."""
    options, image = stage.options, stage.image
    machine = Machine(
        qemu=stage.pair.old.path,
        firmware=stage.pair.old_firmware,
        kernel=image.kernel,
        initrd=image.initrd,
        append=image.append,
        sockets=stage.sockets / "old",
        serial_log=stage.record.directory / "old-serial.log",
        accel="tcg",
        ram_bytes=options.ram_bytes,
        cpus=options.cpus,
        machine_type=stage.pair.machine_type,
        cpu=image.cpu,
        backing=mechanisms.backing(stage.mechanism, options.pages),
        ram_file=stage.ram_file,
        disk=disk.overlay(image.disk, stage.sockets),
        devices=tuple(options.devices.split()),
    )
    chosen = accel.choose(stage.layout, options.accel, machine)
    if chosen.reason:
        note_once(chosen.reason)
    machine = stage.work.equip(dataclasses.replace(machine, accel=chosen.accel))
    stage.record.write(
        "run",
        {
            "machine": machine,
            "argv": machine.argv(),
            "accel": chosen,
            "mechanism": stage.mechanism.name,
            "reproduce": stage.reproduce,
        },
    )
    return machine


def move_and_sample(
    stage: Stage, old: Vm, interfere: Interfere[Vm] | None = None
) -> tuple[Move[Vm], memory.Used]:
    """Move the guest, with the memory of both QEMUs sampled from before the new one starts."""
    mechanism, options = stage.mechanism, stage.options
    successor = stage.work.succeed(new_machine(stage, old), mechanism)
    pss_before = memory.pss(old.pid)
    huge_before = memory.huge_pages(old.pid, options.ram_bytes)
    # The pool's pages are in no memory group's account.
    watched = stage.group.watch() if stage.group and options.pages is not Pages.HUGETLB else None
    with step(f"upgrade by {mechanism.name}"):
        fresh = (
            stage.start.expect("new", successor, old, in_place=mechanism.in_place)
            if mechanism.inherits or mechanism.in_place
            else stage.start.start("new", successor)
        )
        wanted = options.memory_samples
        with memory.sampled(old, fresh, considerate=bool(watched), wanted=wanted) as sampler:
            moved = move(stage.start, old, fresh, mechanism, stage.asked, interfere)
    peak = watched() if watched else None
    stage.record.write("upgrade", moved.record())
    used = memory.summarise(pss_before, sampler.samples, huge_before, peak) if wanted else None
    return moved, memory.Used(used, sampler.samples, sampler.start_ns)


def new_machine(stage: Stage, old: Vm) -> Machine:
    """Say what the new QEMU is to run: the same machine, waiting for the guest."""
    sockets = stage.sockets / "new"
    return cmdline.successor(
        old.machine,
        qemu=stage.pair.new.path,
        firmware=stage.pair.new_firmware,
        sockets=sockets,
        serial_log=stage.record.directory / "new-serial.log",
        incoming=stage.mechanism.incoming(dataclasses.replace(old.machine, sockets=sockets)),
    )


def listen(heart: Heart, vm: Vm) -> None:
    """Hear the heart for a while, so that there is something to compare with."""
    until = time.monotonic_ns() + int(_LISTEN_S * 1e9)
    for _ in Deadline.after(60, f"heartbeats from the {vm.name} QEMU").poll(0.02):
        vm.alive()
        vm.watch_cpu()
        if heart.beats and heart.beats[-1].host_ns > until:
            return


@dataclass(frozen=True)
class Checked:
    """Where the guest is once it has been asked, and what it found."""

    moved: Move[Vm]
    integrity: Integrity
    workloads: Sequence[Findings] = ()


def check_guest(stage: Stage, old: Vm, moved: Move[Vm]) -> Checked:
    """Let the guest and its workloads check themselves; one that does not answer is lost."""
    survivor = moved.survivor(old)
    account = integrity.nothing_known(old.heart.beats, moved.new.heart.beats)
    if survivor is None:
        return Checked(moved, account)
    try:
        listen(survivor.heart, survivor)
        with step("check every page in the guest"):
            found = integrity.check(survivor.control, stage.options.touched_bytes)
        account = integrity.integrity(found, old.heart.beats, moved.new.heart.beats)
        return Checked(moved, account, stage.work.check(survivor, moved.window))
    except _NO_ANSWER as error:
        return Checked(moved.lost(error.message), account)


@dataclass(frozen=True)
class Measured:
    """Everything that the verdict is made from."""

    accel: str
    machine_type: str
    checked: Checked
    used: memory.Used
    pause: Pause
    line: Timeline
    #: When the steps of the migration were reached (s since the epoch), by QEMU's names.
    steps: Mapping[str, float]


def measure(stage: Stage, old: Vm, checked: Checked, used: memory.Used) -> Measured:
    """Put on one clock what was seen, and count what the guest kept."""
    moved = checked.moved
    if moved.survivor_is_new:
        used = used.with_new(old.pid, moved.new.pid, stage.options.ram_bytes)
    beats = old.heart.beats, moved.new.heart.beats
    events = old.events, moved.resumed(old).events
    readings = used.start_ns, used.samples
    seen = Measured(
        accel=old.machine.accel,
        machine_type=old.machine.machine_type,
        checked=checked,
        used=used,
        pause=downtime.pause(*beats, moved.window, *events, moved.new.cpu),
        line=timeline(*beats, moved.window, events, readings, old.cpu),
        steps=phases.steps(old.checkpoints, moved.new.checkpoints),
    )
    stage.record.write(
        "measure",
        {
            "outcome": moved.outcome,
            "failure": moved.failure,
            "memory": used.memory,
            "integrity": checked.integrity,
            "workloads": checked.workloads,
            "timeline": seen.line,
        },
    )
    return seen


def verdict(stage: Stage, seen: Measured) -> Result:
    """Judge what was seen."""
    options, mechanism, moved = stage.options, stage.mechanism, seen.checked.moved
    judged = judge(
        options.limits,
        Observation(
            mechanism=mechanism.name,
            outcome=moved.outcome,
            # A fallback's figures are not those that were asked for.
            failure=moved.failure or moved.fallback,
            pause_ms=seen.pause,
            memory=seen.used.memory,
            memory_sampled=options.memory_samples,
            integrity=seen.checked.integrity,
            workloads=tuple(seen.checked.workloads),
        ),
    )
    return Result(
        verdict=judged.kind,
        reasons=judged.reasons,
        notes=judged.notes,
        outcome=moved.outcome,
        total_ms=moved.window.ms if moved.survivor_is_new else None,
        pause_ms=seen.pause,
        brownout=brownout(seen.line),
        phases_ms=phases.complete(mechanism.phases(moved.old_info, moved.new_start_ms), seen.steps),
        memory=seen.used.memory,
        integrity=seen.checked.integrity,
        blocks=mechanism.blocks(moved.old_info, options.ram_bytes),
        workloads=list(seen.checked.workloads),
        accel=seen.accel,
        machine=seen.machine_type,
        **_conditions(stage),
    )


def _conditions(stage: Stage) -> dict[str, Any]:
    """Return the part of the result that was settled before the guest booted."""
    options = stage.options
    return {
        "mechanism": stage.mechanism.name,
        "guest": options.guest,
        "ram_bytes": options.ram_bytes,
        "touched_bytes": options.touched_bytes,
        "dirty_rate": options.dirty_bytes_s,
        "pages": options.pages,
        "cpus": options.cpus,
        "memory_sampled": options.memory_samples,
        "limits": options.limits,
        "old": stage.pair.old.side(),
        "new": stage.pair.new.side(),
        "host": facts.fingerprint(),
        "pinning": stage.pins.record(),
        "run_directory": str(stage.record.directory),
        "reproduce": stage.reproduce,
    }
