# SPDX-License-Identifier: GPL-2.0-or-later
"""Which mechanisms can upgrade a running QEMU, and what each would cost.

It reads, and changes nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from pydantic import Field

from lab import mechanisms
from lab.base import process
from lab.host import cgroup, facts
from lab.live import joined, outside, vnc
from lab.live import successor as derived
from lab.live.changes import relative
from lab.live.look import Running
from lab.live.successor import Successor
from lab.live.truth import Truth
from lab.live.words import driver, kind, options, pairs, values
from lab.measure import memory
from lab.mechanisms import Mechanism
from lab.mechanisms.localhost import Localhost
from lab.model import Model
from lab.vm.binary import Binary
from lab.vm.cmdline import Backing

_MIB = 2**20
#: What a second QEMU needs for itself (bytes); see docs/measuring.md.
_SECOND = 64 * _MIB
#: What has to be left where the old QEMU is forked, besides its page tables (bytes), as the series
#: asks: when memory runs out the kernel kills, and not only the new QEMU.
_FORK = 128 * _MIB
#: Pause without and with memory that has to move (ms, and ms per GiB of it), and the same of the
#: whole; medians of docs/measuring.md, rounded: two cores, TCG, a guest that writes nothing.
_COSTS: dict[str, tuple[float, float, float, float]] = {
    "flip": (36, 0, 160, 0),
    "flip-late": (84, 0, 131, 0),
    "gift": (30, 170, 40, 170),
    "handover": (27, 0, 72, 0),
    "cpr-transfer": (38, 0, 73, 0),
    "postcopy": (89, 0, 100, 1250),
    "stop-copy": (40, 3200, 40, 3200),
}
#: Nobody would give another process what the manager gave the old QEMU.
_CHILD = "its manager's groups, namespaces and labels are those of a child of the old QEMU only"
_BASIS = "docs/measuring.md: QEMU 10.0 to 10.2 on two cores under TCG, a guest that writes nothing"


class Way(Model):
    """One mechanism, for this QEMU."""

    mechanism: str
    possible: bool
    reasons: list[str] = Field(description="why not; empty when it is")
    extra_bytes: int = Field(description="memory needed beside what is used now")
    pause_ms: float | None = Field(description="predicted, as seen from outside")
    total_ms: float | None = Field(description="predicted")


class Preflight(Model):
    """Everything that was found out."""

    pid: int
    monitor: str
    version: str
    machine: str
    accel: str
    state: str
    ram_bytes: int
    used_bytes: int = Field(description="PSS of the process")
    shared: bool = Field(description="whether guest RAM is shared memory")
    blockers: list[str]
    new: str
    new_version: str
    available_bytes: int
    ways: list[Way]
    best: str | None
    basis: str
    new_argv: list[str] = Field(description="without -incoming: that is the mechanism's own")
    remarks: list[str]
    truth: Truth | None = Field(default=None, description="everything that the running QEMU has")


def examine(found: Running, new: Binary, made: Successor, *, managed: bool = False) -> Preflight:
    """Say of every mechanism whether it is possible, and why not; `made` is the successor's.

    `managed` says that the QEMU has a manager, which made groups, namespaces and labels for it.
    """
    used, free = memory.pss(found.pid), _available(found.pid)
    never = [*lacks(new, found), *found.changes, *made.refusals]
    ways = [
        _way(one, found, new, used, free, [*never, *_start_reasons(one, found, made, managed)])
        for one in mechanisms.MECHANISMS
    ]
    return Preflight(
        pid=found.pid,
        monitor=str(found.monitor),
        version=found.binary.version,
        machine=found.machine,
        accel=found.accel,
        state=found.state,
        ram_bytes=found.ram_bytes,
        used_bytes=used,
        shared=all(backend.share for backend in found.ram),
        blockers=list(found.blockers),
        new=str(new.path),
        new_version=new.version,
        available_bytes=free,
        ways=ways,
        best=_best(ways, found),
        basis=_BASIS,
        new_argv=made.argv,
        remarks=made.remarks,
        truth=found.truth,
    )


def _available(pid: int) -> int:
    """Return how much more memory there is (bytes), on the host and in the groups of a process."""
    host, group = facts.memory_bytes("MemAvailable"), cgroup.headroom(pid, cached=True)
    return host if group is None else min(host, group)


def _page_tables(pid: int) -> int:
    """Return how much memory a process's page tables take (bytes); 0 once it has ended."""
    try:
        return int(process.status(pid, "VmPTE").partition(" ")[0] or 0) * 1024
    except OSError:
        return 0


def _best(ways: list[Way], found: Running) -> str | None:
    """Return the best way that is possible; shared memory is handed over without a copy."""
    possible = {way.mechanism for way in ways if way.possible}
    if "handover" in possible and any(backend.share for backend in found.ram):
        return "handover"
    able = [one for one in mechanisms.MECHANISMS if one.name in possible]
    return mechanisms.best(able).name if able else None


def successor(found: Running, new: Binary) -> Successor:
    """Return how the new QEMU would have to be started."""
    made = derived.successor(found.argv, new.path, found.machine, found.cwd)
    made.remarks += found.remarks
    for name in options(found.argv, "D"):
        log = found.cwd / name
        if log.is_file() and log.stat().st_size:
            made.refusals.append(f"-D {name}: the new QEMU would empty it, and cannot append to it")
    if made.screens:
        made.refusals += vnc.refusals(found.truth, new)
    if found.truth:
        made.refusals += _unexpected(found.truth, made)
    made.refusals += [
        f"device {name}: QEMU crashes when it saves its state, whoever asks for that"
        for name in sorted(_devices(found) & CRASHING)
        if not (name == "vmbus-bridge" and _has_synic(found))
    ]
    if "daemonize" in {name for name, _ in pairs(found.argv)}:
        opened = relative(found.truth) if found.truth else ()
        made.refusals += [
            f"{name} is relative, and a daemon's directory is not known any more"
            for name in dict.fromkeys((*opened, *_relative(found)))
        ]
    return made


def _relative(found: Running) -> Iterator[str]:
    """Yield the files that are read when QEMU starts, and are named relative to where that was."""
    for option, part in _READ:
        for text in options(found.argv, option):
            name = values(text).get(part, "") if part else text
            if name and not name.startswith("/"):
                yield name


def _unexpected(truth: Truth, made: Successor) -> Iterator[str]:
    """Yield where it listens although its command line does not say so, as the lab reads it.

    A new QEMU would not, or could not beside the old one.
    """
    expected = {str(path) for path in made.files}
    passed = any("fd" in one.parts for one in made.passed)
    for one in truth.listeners:
        where = str(Path(truth.cwd) / one.address)
        if made.screens and vnc.is_listened_at(truth, one):
            continue
        # What was refused is most often about this very thing.
        if not (one.kind == "unix" and (where in expected or passed)) and not made.refusals:
            yield f"it listens on {one.kind} {one.address}, which its command line does not say"


def lacks(new: Binary, found: Running) -> Iterator[str]:
    """Yield what the running QEMU has and the new one does not: options, devices, the machine.

    QEMU looks all options up before it acts on the first one (system/vl.c), which is -version.
    """
    for line in _says(new, "-version", *found.argv[1:]).splitlines():
        if "invalid option" in line:
            yield f"the new QEMU says: {line.partition(': ')[2]}"
    for what, wanted, text in (
        ("device ", _devices(found), _says(new, "-device", "help")),
        ("machine ", {found.machine}, _says(new, "-machine", "help")),
        ("object ", _objects(found), _says(new, "-object", "help")),
        ("accelerator ", {found.accel}, _says(new, "-accel", "help")),
    ):
        known = {name for names in re.findall(_NAMED, text, re.MULTILINE) for name in names}
        for name in sorted(wanted - known - {""}):
            yield f"the new QEMU has no {what}{name}"
    if found.binary.version != new.version and _has_all_features(found):
        yield "-cpu max: the processor is whatever a version can emulate, and these are two"


#: Devices over whose state QEMU crashes, by whatever mechanism it is to save it: ports that the one
#: has not, the bus that the other has only with Hyper-V's SynIC (10.0.13 and 10.2.2, as
#: tests/avocado/test_devices.py finds them).
CRASHING = frozenset({"pci-serial-2x", "vmbus-bridge"})
_SYNIC = re.compile(r"\bhv[-_](?:synic|passthrough)\b")
#: What names such files: an option, and a part of it or all of it.  A -bios may be one of QEMU's.
_READ = (
    *((name, "") for name in ("kernel", "initrd", "dtb", "shim", "L", "readconfig")),
    ("fw_cfg", "file"),
    ("smbios", "file"),
    ("acpitable", "file"),
    ("acpitable", "data"),
)
#: A name in what QEMU prints of what it has: a device's and its alias, or a line's first word.
_NAMED = r'name "([^"]+)"|alias "([^"]+)"|^\s*([\w.+-]+)'


def _says(new: Binary, *words: str) -> str:
    return process.run([new.path, *words], check=False).stdout


def _devices(found: Running) -> set[str]:
    """Return the types of its devices, as it has them itself, whatever they were asked for as."""
    if not found.truth:
        return {driver(text) for text in options(found.argv, "device")}
    return {device.type for device in found.truth.devices.values() if device.asked}


def _has_synic(found: Running) -> bool:
    """Whether its processors have Hyper-V's interrupt controller, which is KVM's."""
    return found.accel == "kvm" and any(map(_SYNIC.search, options(found.argv, "cpu")))


def _has_all_features(found: Running) -> bool:
    """Whether its processors are of the model ``max``."""
    if not found.truth:
        return any(values(text).get("") == "max" for text in options(found.argv, "cpu"))
    types = {device.type for device in found.truth.devices.values()}
    return any(name.startswith("max-") and name.endswith("-cpu") for name in types)


def _objects(found: Running) -> set[str]:
    return {kind(values(text), "qom-type") for text in options(found.argv, "object")}


def _way(
    mechanism: Mechanism, found: Running, new: Binary, used: int, free: int, others: list[str]
) -> Way:
    extra = _SECOND + (used if mechanism.doubles else 0)
    left = _FORK + _page_tables(found.pid) if mechanism.inherits else extra
    reasons = [
        *filter(None, [mechanism.missing(found.binary, new)]),
        *others,
        *(f"blocked: {reason}" for reason in found.blockers),
        *_memory_reasons(mechanism, found),
        *(joined.reasons(found.pid) if mechanism.joins else ()),
    ]
    if left > free:
        reasons.append(
            f"{left // _MIB} MiB of memory have to be available, and {free // _MIB} MiB are"
        )
    if found.state not in {"running", "paused"}:
        reasons.append(f"the guest is neither running nor paused, but {found.state}")
    pause, total = None, None
    if cost := _COSTS.get(mechanism.name):
        gib = used / 2**30
        pause, total = cost[0] + cost[1] * gib, cost[2] + cost[3] * gib
    return Way(
        mechanism=mechanism.name,
        possible=not reasons,
        reasons=reasons,
        extra_bytes=extra,
        pause_ms=pause,
        total_ms=total,
    )


def _start_reasons(
    mechanism: Mechanism, found: Running, made: Successor, managed: bool
) -> Iterator[str]:
    """Yield why a mechanism cannot have the new QEMU started as it has to be."""
    if not mechanism.inherits:
        yield from made.only_child
        if managed:
            yield _CHILD
    elif not _is_program(made.argv[0]):
        yield f"{made.argv[0]} is a script, or something else that only execve(2) can start"
    else:
        if not mechanism.from_outside and not _is_utf8(made.argv):
            yield "its command line is not UTF-8, and QMP passes nothing else"
        if not mechanism.from_outside and joined.filtered(process.status(found.pid, "Seccomp")):
            yield from _spawn_denied(found.argv)
        lacking = (
            mechanism.missing_for_descriptors(found.binary) if made.passed else "",
            mechanism.missing_for_taps(found.binary) if made.taps else "",
        )
        yield from dict.fromkeys(filter(None, lacking))
    if mechanism.from_outside and not mechanism.missing(found.binary, found.binary):
        for text in outside.shared_files(made):
            yield f"-object {text}: the new QEMU would write to that file when it starts"
        yield from outside.reasons(found)


def _spawn_denied(argv: Sequence[str]) -> Iterator[str]:
    """Yield which word says that the filter of the old QEMU's system calls forbids to start one."""
    for text in options(argv, "sandbox"):
        if values(text).get("spawn") == "deny":
            yield f"-sandbox {text}: it may start no other QEMU (spawn=upgrade would let it)"


def _is_utf8(words: Sequence[str]) -> bool:
    try:
        "".join(words).encode()
    except UnicodeEncodeError:  # what os.fsdecode() made of other bytes
        return False
    return True


def _is_program(path: str) -> bool:
    """Return whether a file is a program itself (elf(5)); what is not there is found elsewhere."""
    try:
        with Path(path).open("rb") as file:
            return file.read(4) == b"\x7fELF"
    except OSError:
        return True


def _memory_reasons(mechanism: Mechanism, found: Running) -> Iterator[str]:
    """Yield why a mechanism does not fit what guest RAM is made of."""
    shared = [backend.name for backend in found.ram if backend.share]
    private = [backend.name for backend in found.ram if not backend.share]
    wants = mechanism.backing
    if wants in {Backing.SHARED, Backing.MEMFD, Backing.FILE} and private:
        yield f"guest RAM is private ({', '.join(private)}); it was not started with share=on"
    if wants is Backing.SHARED and not found.aux_share and not private:
        yield "the machine was not started with aux-ram-share=on"
    if wants is Backing.FILE and not _has_files(found):
        yield "guest RAM is in no file that another QEMU could open"
    if isinstance(mechanism, Localhost) and (files := _private_files(found)):
        yield f"guest RAM is a private mapping of a file ({', '.join(files)})"
    forked = mechanism.from_outside
    if wants is Backing.PRIVATE and not forked and (files := shared_files(found)):
        yield (
            f"guest RAM is a file that the new QEMU maps as well ({', '.join(files)}): what is "
            "copied would be written over what the guest has written since; take ignore-shared"
        )
    if mechanism.inherits and not forked and shared and not private:
        yield "guest RAM is shared memory; take handover"


def shared_files(found: Running) -> list[str]:
    """Return the files that guest RAM is mapped from with share=on, and that have a name."""
    return [path for path in _files(found, share=True) if Path(path).is_file()]


def _private_files(found: Running) -> list[str]:
    """Return the files that guest RAM is mapped from with share=off, huge pages' left out."""
    paths = _files(found, share=False)
    return [path for path in paths if facts.filesystem(Path(path)) != "hugetlbfs"]


def _files(found: Running, *, share: bool) -> list[str]:
    """Return what guest RAM is mapped from: files, or directories for files without a name."""
    return [
        str(one.properties.get("mem-path", ""))
        for one in (found.truth.objects.values() if found.truth else ())
        if one.type == "memory-backend-file" and one.properties.get("share") is share
    ]


def _has_files(found: Running) -> bool:
    return any("memory-backend-file" in text for text in options(found.argv, "object"))
