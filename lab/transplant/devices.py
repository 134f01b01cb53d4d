# SPDX-License-Identifier: GPL-2.0-or-later
"""The state of a QEMU's devices, without guest memory: saved by one, loaded by another."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from lab.base.deadline import Deadline
from lab.base.errors import CannotTellError, LabError
from lab.transplant import blocks
from lab.transplant.blocks import RamBlock
from lab.transplant.stream import Configuration
from lab.vm.binary import Binary
from lab.vm.monitor import QmpError
from lab.vm.qemu import Qemu

#: What the old QEMU is asked.
_COMMANDS = ("xen-save-devices-state", "add-fd", "human-monitor-command")
_LOAD_S = 30.0
#: Capabilities and the mode (MigMode) of migrations to more, or to other things, than a descriptor.
_MORE_CHANNELS = frozenset({"multifd", "postcopy-preempt", "mapped-ram"})
_NORMAL = "normal"
#: The RunState (QAPI) of a guest whose state is being saved.
_SAVING = "save-vm"
#: Where QEMU opens a descriptor that it was given with add-fd.
_FDSET = "/dev/fdset/{}"
#: The targets whose pages may have more than one size (TARGET_PAGE_BITS_VARY), and of ARM's board
#: virt log2 of the least that it says, since a version (minimum_page_bits in hw/arm/virt.c).
_ANY_SIZE = frozenset({"aarch64", "alpha", "arm", "ppc", "ppc64"})
_VIRT_PAGE_BITS, _OLD_VIRT = 12, frozenset({"virt-2.6", "virt-2.7"})
#: Which failure the probe for blockers ends in, when there is none: this descriptor is not there.
_NOWHERE = "pageflip-nowhere"


def missing(old: Binary) -> str:
    """Return what a QEMU lacks to save the state of its devices alone, or an empty string."""
    lacking = [name for name in _COMMANDS if name not in old.commands]
    return f"the old QEMU ({old.version}) has no command {lacking[0]}" if lacking else ""


def check_blockers(qemu: Qemu) -> None:
    """Raise when QEMU itself would not migrate this guest, blockers and devices alike.

    It is asked to migrate to a descriptor that it has not got, which it looks at last.
    """
    with _one_channel(qemu):
        try:
            qemu.monitor.execute("migrate", {"uri": f"fd:{_NOWHERE}"})
        except QmpError as error:
            if _NOWHERE not in error.message:
                raise
            return
    raise CannotTellError(f"the {qemu.name} QEMU migrates, and was not to")


@contextmanager
def _one_channel(qemu: Qemu) -> Iterator[None]:
    """Let no migration be asked for that one descriptor is not enough for; others are set again."""
    told = qemu.monitor.execute("query-migrate-capabilities")
    off = [
        {"capability": one["capability"], "state": False}
        for one in told
        if one["state"] and one["capability"] in _MORE_CHANNELS
    ]
    mode = qemu.monitor.execute("query-migrate-parameters").get("mode", _NORMAL)
    if off:
        qemu.monitor.execute("migrate-set-capabilities", {"capabilities": off})
    if mode != _NORMAL:
        qemu.monitor.execute("migrate-set-parameters", {"mode": _NORMAL})
    try:
        yield
    finally:
        if mode != _NORMAL:
            qemu.monitor.execute("migrate-set-parameters", {"mode": mode})
        if off:
            on = [{**one, "state": True} for one in off]
            qemu.monitor.execute("migrate-set-capabilities", {"capabilities": on})


def ram_blocks(qemu: Qemu) -> list[RamBlock]:
    """Return the RAM blocks of a QEMU, from its HMP command ``info ramblock``."""
    return blocks.parse(hmp(qemu, "info ramblock"))


def hmp(qemu: Qemu, line: str) -> str:
    """Return what the human monitor answers."""
    return str(qemu.monitor.execute("human-monitor-command", {"command-line": line}))


def configuration(qemu: Qemu) -> Configuration:
    """Return what its migration stream says of the machine.

    Raises CannotTellError for one of which the size of its pages is not known.
    """
    told = qemu.monitor.execute("qom-get", {"path": "/machine", "property": "type"})
    machine = str(told).removesuffix("-machine")
    architecture = qemu.monitor.execute("query-target")["arch"]
    if architecture not in _ANY_SIZE:
        return Configuration(machine)
    if architecture == "aarch64" and machine.startswith("virt-") and machine not in _OLD_VIRT:
        return Configuration(machine, _VIRT_PAGE_BITS)
    raise CannotTellError(
        f"the state of devices alone is not understood for {machine} of {architecture}",
        hint="another mechanism may move this guest: ./pageflip preflight",
    )


def save(old: Qemu, deadline: Deadline, *, live: bool) -> bytes:
    """Return the device state of a QEMU, as ``xen-save-devices-state`` has it.

    A running guest stands still meanwhile.  With `live` a QEMU whose guest was stopped before lets
    go of its disks, until ``cont``.
    """
    with memory_file("pageflip-state") as (file, write_only):
        monitor = old.monitor
        number = monitor.execute_with(write_only, "add-fd", None, deadline)["fdset-id"]
        try:
            where = {"filename": _FDSET.format(number), "live": live}
            monitor.execute("xen-save-devices-state", where, deadline)
            if old.state() == _SAVING:  # one that sleeps (S3) is not set going again
                monitor.execute("cont", deadline=deadline)
        finally:
            monitor.execute("remove-fd", {"fdset-id": number})
        return os.pread(file, os.fstat(file).st_size, 0)


def load(new: Qemu, data: bytes, deadline: Deadline) -> None:
    """Let a QEMU that waits for a guest load a device state, made whole (`stream.complete`).

    Raises QmpError with what it says when it does not.
    """
    monitor = new.monitor
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            name = {"fdname": "pageflip-stream"}
            monitor.execute_with(theirs.fileno(), "getfd", name, deadline)
        monitor.execute("migrate-incoming", {"uri": "fd:pageflip-stream"}, deadline)
        sender = threading.Thread(target=_send, args=(ours, data), daemon=True)
        sender.start()
        monitor.wait_for(
            lambda event: (
                event.name == "MIGRATION" and event.data["status"] in {"completed", "failed"}
            ),
            Deadline.after(min(_LOAD_S, deadline.left), "the new QEMU loads the device state"),
            new.alive,
        )
    if monitor.last("MIGRATION").data["status"] == "failed":  # type: ignore[union-attr]
        why = ""
        with suppress(LabError):  # it ends then
            why = monitor.execute("query-migrate").get("error-desc", "")
        said = "; ".join(filter(None, (why, new.said())))
        raise QmpError(f"the new QEMU does not load the device state: {said}")


def _send(end: socket.socket, data: bytes) -> None:
    """Send all of `data`, and nothing more; who does not want it says so in another way."""
    with suppress(OSError):
        end.sendall(data)
        end.shutdown(socket.SHUT_WR)


@contextmanager
def memory_file(name: str) -> Iterator[tuple[int, int]]:
    """Have a file in memory: a descriptor to read and write it, and one that only writes."""
    file = os.memfd_create(name)
    try:
        write_only = os.open(f"/proc/self/fd/{file}", os.O_WRONLY | os.O_CLOEXEC)
        try:
            yield file, write_only
        finally:
            os.close(write_only)
    finally:
        os.close(file)
