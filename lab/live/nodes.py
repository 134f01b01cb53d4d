# SPDX-License-Identifier: GPL-2.0-or-later
"""Block nodes that were added while the guest ran, as options; pure but for the files.

QEMU does not tell of a node: ``aio``, ``locking``, the sizes of caches, and, until the guest has
discarded something, ``discard``.  They get their defaults; the guest and its data have none of it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from lab.live.truth.kernel import identity
from lab.live.truth.model import BlockLayer, Node

#: Drivers of which QEMU tells everything that decides what the guest reads.
_FORMATS = frozenset({"raw", "qcow2", "qcow", "qed", "vdi", "vhdx", "vpc"})
_FILES = frozenset({"file", "host_device", "host_cdrom"})
#: What a qcow2 image may have below it.
_BELOW = frozenset({"file", "backing", "data-file"})


class UntoldError(Exception):
    """What QEMU tells of something is not enough to have it once more; says why."""


def everything(block: BlockLayer) -> Iterator[Node]:
    """Yield every node, those below before what is above them."""
    roots = [one.medium for one in block.drives.values() if one.medium]
    for root in [*roots, *block.others.values()]:
        yield from _from_below(root)


def _from_below(node: Node) -> Iterator[Node]:
    for child in node.children.values():
        yield from _from_below(child)
    yield node


def added(
    block: BlockLayer, named: Collection[str], discarding: Collection[str]
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Return what -blockdev takes for the nodes that are not `named`, and why some are not in it.

    Of a drive that is `discarding`, its nodes do.
    """
    unmap = {
        node.name
        for name in discarding
        if (drive := block.drives.get(name)) and drive.medium
        for node in _from_below(drive.medium)
    }
    found: dict[str, dict[str, Any]] = {}
    why: dict[str, str] = {}
    for node in everything(block):
        if node.name and node.name not in {*named, *found, *why}:
            try:
                found[node.name] = _options(node, unmap=node.name in unmap)
            except UntoldError as error:
                why[node.name] = str(error)
    return list(found.values()), why


def _options(node: Node, *, unmap: bool) -> dict[str, Any]:
    """Return a node as BlockdevOptions (QEMU's qapi/block-core.json); raise UntoldError."""
    cache = {name: True for name in ("direct", "no-flush") if node.settings.get(name)}
    zeroes = node.settings.get("detect_zeroes", "off")
    made = {
        "driver": node.driver,
        **({"node-name": node.name} if node.name else {}),
        "read-only": node.read_only,
        **({"cache": cache} if cache else {}),
        **({"detect-zeroes": zeroes} if zeroes != "off" else {}),
        **({"discard": "unmap"} if unmap else {}),
    }
    if node.driver in _FILES:
        return {**made, "filename": _filename(node)}
    _check(node)
    if node.driver == "qcow2" and "backing" not in node.children:
        made["backing"] = None
    for role, child in node.children.items():
        if child.name:
            made[role] = child.name
        elif role != "backing":  # QEMU opens that itself, by the name in the image
            made[role] = _options(child, unmap=unmap)
    return made


def _check(node: Node) -> None:
    """Raise UntoldError unless what is known of a node is all of it."""
    if node.driver not in _FORMATS:
        raise UntoldError(f"QEMU does not tell how its driver {node.driver} was set")
    if node.settings.get("encrypted"):
        raise UntoldError("it is encrypted, and QEMU does not tell the secret's name")
    if node.filename:
        raise UntoldError(f"it has options that are not carried over: {node.filename}")
    if others := node.children.keys() - _BELOW:
        raise UntoldError(f"it has {', '.join(sorted(others))} below it")


def _filename(node: Node) -> str:
    """Return the name of the file that is open."""
    if not node.file:
        raise UntoldError("the file that it has open is not known")
    if identity(Path(node.file.name)) != node.file.identity:
        raise UntoldError(
            f"the file that it has open is {node.file.name}, and no more by that name"
        )
    return node.file.name
