# SPDX-License-Identifier: GPL-2.0-or-later
"""The verb `doctor`: what this host offers, what it lacks, and what to do about it.

Things are tried, not looked up: a device file that exists may still be of no use.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from lab.base.errors import CannotTellError, ExitCode, LabError
from lab.base.layout import Layout
from lab.guest import images
from lab.host import cgroup, facts, userfault
from lab.live import journal
from lab.pair import build, firmware, toolchain
from lab.source.releases import X86_64
from lab.vm import accel
from lab.vm.cmdline import Machine

_GIB = 1 << 30
#: Sources, two builds at work, the compiler's cache and a guest image (bytes).
_DISK_BYTES = 4 * _GIB
#: The default guest of 2 GiB, and both QEMUs (bytes).
_MEMORY_BYTES = 3 * _GIB
_STYLES = {"ok": "green", "note": "yellow", "missing": "red"}


@dataclass(frozen=True)
class Finding:
    """One thing that was tried.

    ``state`` is ``ok``, ``note`` (an upgrade can be run, with less) or ``missing`` (it cannot).
    """

    name: str
    state: str
    text: str
    to_do: str = ""


def machine(layout: Layout) -> Iterator[Finding]:
    """Processor, memory, disk and kernel."""
    print_ = facts.fingerprint()
    virtual = ", itself a virtual machine" if print_.virtual else ""
    yield Finding("processor", "ok", f"{print_.cpu}, {print_.cores} cores{virtual}")
    available = facts.memory_bytes("MemAvailable")
    text = f"{available / _GIB:.1f} of {print_.memory_bytes / _GIB:.1f} GiB available"
    if available < _MEMORY_BYTES:
        yield Finding("memory", "note", text, "the default guest needs 3 GiB: use --ram 1G")
    else:
        yield Finding("memory", "ok", text)
    yield from _caches(layout)
    place = next(path for path in (layout.cache, *layout.cache.parents) if path.is_dir())
    free = shutil.disk_usage(place).free
    text = f"{free / _GIB:.1f} GiB free for {layout.cache}"
    full = "make room for 4 GiB, or set XDG_CACHE_HOME to a directory on another disk"
    if not build.existing(layout) and free < _DISK_BYTES:
        yield Finding("disk", "missing", text, full)
    else:
        yield Finding("disk", "ok", text)
    yield Finding("kernel", "ok", f"{print_.kernel} ({print_.distribution})")


def _caches(layout: Layout) -> Iterator[Finding]:
    """Where the caches are cannot be written to: nothing else can be made."""
    place = layout.cache
    try:
        place = next(path for path in (place, *place.parents) if path.exists())
        tempfile.TemporaryFile(dir=place).close()
    except OSError as error:
        complaint = layout.complaint(OSError(error.errno, error.strerror, str(place)))
        if complaint is None:
            raise
        yield Finding("caches", "missing", complaint.message, complaint.hint)


def tools(layout: Layout) -> Iterator[Finding]:
    """The compiler, and every package or program that pageflip needs."""
    try:
        found = toolchain.find()
        yield Finding("compiler", "ok", found.identity[1])
    except CannotTellError as error:
        yield Finding("compiler", "missing", error.message, error.hint)
    absent = toolchain.missing(toolchain.needs(layout.checkout))
    if not absent:
        yield Finding("packages", "ok", "all there")
    for state in ("missing", "note"):
        some = [need for need in absent if need.is_optional is (state == "note")]
        if some:
            names = " ".join(need.package for need in some)
            why = "; ".join(f"{need.package} ({need.why})" for need in some)
            yield Finding("packages", state, why, f"apt-get install {names}")


def memory_features(_layout: Layout) -> Iterator[Finding]:
    """What the kernel offers to move pages with, and to measure them."""
    fault = userfault.probe()
    if not fault.opened_by:
        yield Finding("userfaultfd", "note", fault.why_not, _USERFAULT_TO_DO)
    else:
        yield Finding("userfaultfd", "ok", f"by {fault.opened_by}")
    if fault.moves:
        yield Finding("UFFDIO_MOVE", "ok", "moved a page")
    else:
        yield Finding(
            "UFFDIO_MOVE", "note", fault.why_not, "pages are copied instead (UFFDIO_COPY)"
        )
    thp = facts.fingerprint().thp
    if thp == "never":
        yield Finding("huge pages", "note", "never", "echo madvise > " + str(_THP))
    else:
        yield Finding("huge pages", "ok", thp)
    yield Finding("hugetlb", "ok", ", ".join(_pools()) or "no pages reserved")
    yield _cgroup()


_THP = Path("/sys/kernel/mm/transparent_hugepage/enabled")
_USERFAULT_TO_DO = (
    "only postcopy and lazy need it: as root, sysctl vm.unprivileged_userfaultfd=1, or give the "
    "user /dev/userfaultfd"
)


def _pools() -> Iterator[str]:
    for pool in sorted(Path("/sys/kernel/mm/hugepages").glob("hugepages-*kB")):
        number = int((pool / "nr_hugepages").read_text(encoding="ascii"))
        if number:
            yield f"{number} of {pool.name.removeprefix('hugepages-')}"


def _cgroup() -> Finding:
    with cgroup.memory_group() as group:
        if group:
            return Finding("memory cgroup", "ok", f"{cgroup.cgroup_version()}, made {group.path}")
    version = cgroup.cgroup_version()
    text = "no memory controller" if version == "none" else f"{version}, may not make a group"
    return Finding(
        "memory cgroup", "note", text, "PSS is measured instead; as root a group is made"
    )


def builds(layout: Layout) -> Iterator[Finding]:
    """The submodule, and what has been built."""
    if (layout.checkout / "qemu" / ".git").exists():
        yield Finding("submodule", "ok", "qemu/ is populated")
    else:
        yield Finding("submodule", "ok", "qemu/ is empty: sources come from elsewhere")
    found = build.existing(layout)
    text = ", ".join(f"{one.version} ({one.series}, {one.kind})" for one in found)
    if found:
        yield Finding("builds", "ok", text)
    else:
        yield Finding("builds", "note", "none yet", "./pageflip build (or upgrade, which does it)")


def accelerators(layout: Layout) -> Iterator[Finding]:
    """Boot each guest with each accelerator; not those that it takes a download more to make."""
    found = [built for built in build.existing(layout) if built.architecture == X86_64]
    if not found:
        text = "not tried: no build yet"
        yield Finding("accelerators", "note", text, "./pageflip build, then doctor again")
        return
    for name in images.plain(layout):
        one, image = images.named(layout, name), images.build(name, layout)
        trial = Machine(
            qemu=found[-1].qemu,
            firmware=firmware.prepare(layout),
            kernel=image.kernel,
            initrd=image.initrd,
            append=image.append,
            sockets=Path(),
            serial_log=Path(),
            accel="tcg",
            ram_bytes=0,
        )
        for kind in ("kvm", "tcg"):
            report = accel.probe(layout, kind, trial)
            title = f"{kind}, {name}"
            if report.works:
                yield Finding(title, "ok", f"boots {one.description}")
            elif kind == "kvm":
                yield Finding(title, "note", report.reason, "TCG is used: complete, but slower")
            else:
                yield Finding(title, "missing", report.reason, "this is worth a report")


def unfinished(_layout: Layout) -> Iterator[Finding]:
    """Live upgrades of this user's that were left half done, or are going on."""
    found = journal.left()
    for entry in found.entries:
        text = f"process {entry.old.pid}, begun at {entry.began}: {entry.step}"
        yield Finding(
            "live upgrade", "note", text, f"if it has stopped: {journal.hint(entry.old.pid)}"
        )
    for error in found.damaged:
        yield Finding("live upgrade", "note", error.message, error.hint)


_PARTS: tuple[Callable[[Layout], Iterator[Finding]], ...] = (
    machine,
    tools,
    memory_features,
    builds,
    unfinished,
    accelerators,
)


def examine(layout: Layout) -> list[Finding]:
    """Try everything; a part that cannot be tried is a finding too."""
    findings: list[Finding] = []
    for part in _PARTS:
        try:
            findings += part(layout)
        except LabError as error:
            findings.append(Finding(part.__name__, "missing", error.message, error.hint))
    return findings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")


def run(options: argparse.Namespace) -> int:
    """Carry out the verb; 0 when an upgrade can be run here."""
    findings = examine(Layout.default())
    able = all(one.state != "missing" for one in findings)
    if options.json:
        report = {"able": able, "findings": [asdict(one) for one in findings]}
        sys.stdout.write(json.dumps(report, indent=2) + "\n")
    else:
        show(findings, able=able)
    return ExitCode.PASS if able else ExitCode.CANNOT_TELL


def show(findings: list[Finding], *, able: bool, console: Console | None = None) -> None:
    """Print the findings to stdout."""
    console = console or Console(highlight=False)
    table = Table(show_header=False, box=None)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for one in findings:
        text = Text(one.text)
        if one.to_do:
            text.append(f"\nwhat to do: {one.to_do}", style="dim")
        table.add_row(one.name, Text(one.state, style=_STYLES[one.state]), text)
    console.print(table)
    verdict = "an upgrade can be run here" if able else "an upgrade cannot be run here yet"
    console.print(Text(verdict, style="bold"))
