# SPDX-License-Identifier: GPL-2.0-or-later
"""What a running QEMU has that its command line does not say any more; pure but for the files.

A new QEMU is started with the command line, so it would be without.  What is found here is found
before anything is started; what is not is found when both QEMUs are compared.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from lab.live.truth import Truth
from lab.live.truth.kernel import identity
from lab.live.truth.model import Node
from lab.live.words import names, options, values

#: Options that name images.
_IMAGES = (
    "drive", "blockdev", "hda", "hdb", "hdc", "hdd", "cdrom", "fda", "fdb", "sd", "pflash",
    "mtdblock",
)  # fmt: skip
#: What the name of an image is called in them.
_NAMES = frozenset({"", "file", "filename"})
_PATH_MAX = 4096
#: What QEMU makes for options in the short form, or by itself.
_OWN = re.compile(
    r"(compat_monitor|serial|parallel|vc|vnc|mon|gdb)\d*(-base)?"  # character devices
    r"|#chr\d+|debugcon|sclp\w*"
    r"|pc\.ram|ram|mem|.*\.ram|throttle-.*|pr-.*"  # objects
)
#: Network backends without an id.
_UNNAMED = ("#net", "hub")


def changes(argv: Sequence[str], truth: Truth, why: Mapping[str, str]) -> Iterator[str]:
    """Yield, in words, what runs and is not as `argv` says it (`lab.live.plugged`).

    `why` is the reason for what `argv` cannot say.
    """
    named = set(names(argv))
    for added, reason in why.items():
        yield f"{added} was added while the guest ran: {reason}"
    yield from _devices(argv, truth)
    yield from _images(argv, truth)
    yield from _roots(argv, truth)
    yield from _block(truth)
    for what, found in (
        ("block node", truth.block.others),
        ("character device", filter(by_somebody, truth.chardevs)),
        ("network backend", _backends(truth)),
        ("object", filter(by_somebody, truth.objects)),
    ):
        for name in found:
            # QEMU calls the part behind a mux so.
            if name.removesuffix("-base") not in named and f"{what} {name}" not in why:
                yield f"{what} {name} was added while the guest ran"
    if truth.root != "/":
        yield f"it runs in {truth.root} (chroot), where no other QEMU can be started"


def by_somebody(name: str) -> bool:
    """Return whether QEMU has something of that name only if somebody asks for it by that name."""
    return not _OWN.fullmatch(name)


def _backends(truth: Truth) -> Iterator[str]:
    for name, what in truth.networks.items():
        if "type=nic" not in what and "type=hubport" not in what and not name.startswith(_UNNAMED):
            yield name


def _block(truth: Truth) -> Iterator[str]:
    for name, job in truth.block.jobs.items():
        yield f"job {name} is there ({job}): a job does not go over to another QEMU; let it end"
    for name, export in truth.block.exports.items():
        yield f"export {name} of {export['node-name']} was added while the guest ran"
    for name, node in _nodes(truth):
        for bitmap, one in node.bitmaps.items():
            if not one.persistent:
                yield f"dirty bitmap {bitmap} of {name} is in memory only (persistent=off)"
        if node.lost:
            yield f"{node.lost}, which {name} is in, is not the file that QEMU has open"


def relative(truth: Truth) -> Iterator[str]:
    """Yield the files that it has opened by a name that is relative to where it was started."""
    yield from (
        one.address for one in truth.listeners if one.kind == "unix" and one.address[:1] not in "/@"
    )
    for _, node in _nodes(truth):
        if node.lost and not node.lost.startswith("/"):
            yield node.lost


def _devices(argv: Sequence[str], truth: Truth) -> Iterator[str]:
    named = {values(text).get("id", "") for text in options(argv, "device")} - {""}
    there = {path.rpartition("/")[2] for path, device in truth.devices.items() if device.asked}
    for name in sorted(named - there):
        yield f"device {name} was taken out while the guest ran"


def _images(argv: Sequence[str], truth: Truth) -> Iterator[str]:
    """Yield the drives whose image no option names, and the images named that no drive has."""
    said = {identity(path): path for path in _paths(argv, Path(truth.cwd))}
    for name, drive in truth.block.drives.items():
        file = drive.medium.lowest.file if drive.medium else None
        if file and file.identity not in said:
            yield f"the image of {name} is {file.name} by now"
    there = {one.identity for one in truth.files}
    for which, path in said.items():
        if which and which not in there:
            yield f"{path} is not open any more"


def _roots(argv: Sequence[str], truth: Truth) -> Iterator[str]:
    """Yield the nodes that devices are to have as options say, and that none of them has."""
    there = {one.medium.name for one in truth.block.drives.values() if one.medium}
    named = {values(text).get("node-name", "") for text in options(argv, "blockdev")} - {""}
    for text in options(argv, "device"):
        node = values(text).get("drive", "")
        if node in named - there:
            yield f"-device {text} has another node than {node} by now, or none"


def _paths(argv: Sequence[str], cwd: Path) -> Iterator[Path]:
    """Yield everything that may be the name of an image."""
    for text in options(argv, *_IMAGES):
        parts = values(text).items()
        named = [part for name, part in parts if name.rpartition(".")[2] in _NAMES]
        for name in [*named, *([] if text.startswith("{") else [text])]:
            if len(name) < _PATH_MAX:
                yield cwd / name.removeprefix("file:")


def _nodes(truth: Truth) -> Iterator[tuple[str, Node]]:
    """Yield every node of the block graph with the name of the drive that it is below."""
    waiting = [(name, one.medium) for name, one in truth.block.drives.items() if one.medium]
    waiting += list(truth.block.others.items())
    while waiting:
        name, node = waiting.pop()
        yield name, node
        waiting += [(name, child) for child in node.children.values()]
