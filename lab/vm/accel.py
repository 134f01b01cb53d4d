# SPDX-License-Identifier: GPL-2.0-or-later
"""Which accelerator runs the guest: found by booting it, never by looking at /dev/kvm.

On a nested host KVM may open and still not run every guest: each is tried for itself.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

from lab.base.deadline import Deadline, DeadlineError
from lab.base.errors import CannotTellError, PreconditionError
from lab.base.files import key_of
from lab.base.layout import Layout, locked, socket_directory
from lab.guest import disk
from lab.vm.cmdline import Backing, Machine
from lab.vm.qemu import VmFactory, factory

#: A KVM that emulates the firmware needs some 5 s for it, and twice that on a busy host.
_PROBE_S = {"kvm": 30.0, "tcg": 90.0}
#: Enough for every guest of guests.toml.
_PROBE_RAM = 512 * 2**20


@dataclass(frozen=True)
class AccelReport:
    """Whether an accelerator runs the guest here, and if not, why."""

    accel: str
    works: bool
    reason: str


def choose(layout: Layout, wanted: str, machine: Machine) -> AccelReport:
    """Return the accelerator to use for `wanted` (auto, kvm, tcg).

    ``auto`` takes KVM where it works, otherwise TCG, and ``reason`` says why.  Raises
    CannotTellError when the one that was asked for by name does not work.
    """
    if wanted == "tcg":
        return AccelReport("tcg", True, "")
    report = probe(layout, "kvm", machine)
    if report.works:
        return report
    if wanted == "kvm":
        raise PreconditionError(
            f"KVM does not run this guest here: {report.reason}",
            hint="use --accel tcg (slower, but complete)",
        )
    return AccelReport("tcg", True, f"KVM is not used: {report.reason}")


def probe(layout: Layout, accel: str, machine: Machine) -> AccelReport:
    """Boot the guest with `accel` until its agent answers; remembered until the host reboots."""
    if accel == "kvm":
        try:
            with Path("/dev/kvm").open("r+b", buffering=0):
                pass
        except OSError as error:
            return AccelReport(accel, False, f"/dev/kvm: {error.strerror}")
    memory = layout.cache / "accel" / f"{accel}-{_key(machine)}.json"
    with locked(memory, f"waiting for another run that is trying {accel}"):
        if not memory.exists():
            report = _boot(accel, machine)
            memory.write_text(json.dumps([report.works, report.reason]), encoding="utf-8")
        works, reason = json.loads(memory.read_text(encoding="utf-8"))
    return AccelReport(accel, works, reason)


def _key(machine: Machine) -> str:
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")
    what = (boot, str(machine.qemu), str(machine.kernel), str(machine.initrd), machine.append)
    return key_of(*what)[:16]


def _boot(accel: str, machine: Machine) -> AccelReport:
    roomy = machine.disk is not None
    with socket_directory(roomy=roomy) as directory, factory(directory, None) as start:
        return _try(accel, machine, start, directory)


def _try(accel: str, machine: Machine, start: VmFactory, directory: Path) -> AccelReport:
    trial = dataclasses.replace(
        machine,
        sockets=directory / accel,
        serial_log=directory / "serial.log",
        accel=accel,
        ram_bytes=_PROBE_RAM,
        backing=Backing.PRIVATE,
        disk=disk.overlay(machine.disk, directory),  # nothing of the trial stays on the guest's own
    )
    vm = start.start(accel, trial)
    try:
        for _ in Deadline.after(_PROBE_S[accel], "boot").poll(0.02):
            vm.alive()
            if vm.control.ready.is_set():
                return AccelReport(accel, True, "")
    except DeadlineError:
        return AccelReport(
            accel,
            False,
            f"/dev/kvm opens, but this guest has not come up after {_PROBE_S[accel]:g} s"
            if accel == "kvm"
            else "no boot",
        )
    except CannotTellError as error:
        return AccelReport(accel, False, error.message)
    raise AssertionError("a deadline never ends quietly")
