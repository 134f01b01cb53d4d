# SPDX-License-Identifier: GPL-2.0-or-later
"""What stands against taking a guest out of a running QEMU from outside (`transplant`).

The helper looks at the process: its memory, its locks, who traces it.  What it cannot see is here:
what the command line would have the new QEMU do, and what QEMU saves without saying that it is not
enough.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

from lab.base.errors import LabError
from lab.base.layout import Layout
from lab.live.look import Running
from lab.live.successor import Successor
from lab.live.words import driver, kind, options, pairs, text_of, values
from lab.transplant import blocks, helper

_ON = frozenset({"on", "yes", "true", "y"})
#: Objects that keep the guest's memory from everybody, the host's root included.
_CONFIDENTIAL = frozenset({"sev-guest", "sev-snp-guest", "tdx-guest", "s390-pv-guest"})
_UNSAVED = "QEMU does not save the state of this device"
#: What devices' names begin with, and why not.  QEMU saves all else without a word if the state of
#: one is not saved (VMStateDescription.unmigratable); it is asked again before anything is done.
_DEVICES = {
    **dict.fromkeys(("nvme", "pvrdma", "usb-mtp", "usb-uas", "virtio-iommu"), _UNSAVED),
    "virtio-mem": "memory that is managed in parts",
    "vfio-": "guest memory is pinned for it",
}
_FILE, _MEMFD = "memory-backend-file", "memory-backend-memfd"
#: Properties of memory in a file that memory without one has not; and of these such as say what the
#: file is for.
_OF_FILES = frozenset({"pmem", "readonly", "rom"})
_FILES_OWN = _OF_FILES | {"qom-type", "mem-path", "align", "discard-data", "offset"}
#: Options that cannot be the new QEMU's.
_OPTIONS = {
    "runas": "the new QEMU is that user from the start, and cannot become it",
}


def reasons(found: Running) -> Iterator[str]:
    """Yield why this QEMU's guest cannot be taken, and changes nothing."""
    yield from _command_line(found)
    if not found.ram_blocks:
        yield "its monitor does not list its RAM blocks (human-monitor-command)"
        return
    try:
        with (
            tempfile.TemporaryDirectory(prefix="pageflip-run-") as directory,
            helper.started(Layout.default(), Path(directory) / "log") as one,
        ):
            one.examine(found.pid, blocks.parse(found.ram_blocks))
    except LabError as error:
        yield error.message


def _command_line(found: Running) -> Iterator[str]:
    judges = {"device": _device, "object": _object, "overcommit": _locks, "realtime": _locks}
    for name, text in pairs(found.argv):
        why = judges[name](text or "") if name in judges else _OPTIONS.get(name, "")
        if why:
            yield f"-{name}{' ' if text else ''}{text or ''}: {why}"


def inheriting(made: Successor) -> Successor:
    """Return how the new QEMU has to be started that is to allocate no guest memory.

    What is to be allocated at the start (``prealloc``) has been, and is what it gets, if anything.
    A file that is guest memory it must not open: it would write to it when it starts.  It begins
    with one of its own, without a name.
    """
    words = [_without(word, before) for before, word in pairwise(["", *made.argv])]
    return replace(made, argv=words)


def shared_files(made: Successor) -> list[str]:
    """Return the shared memory that such a QEMU would open all the same (``-object``)."""
    return [text for text in options(inheriting(made).argv, "object") if _is_shared_file(text)]


def _is_shared_file(text: str) -> bool:
    parts = values(text)
    return kind(parts, "qom-type") == _FILE and bool(_ON & {parts.get("share")})


def _without_file(text: str) -> str:
    """Return the same memory without a file, unless the file is there for more than that."""
    parts = values(text)
    for_more = _ON & {parts.get(name, "") for name in _OF_FILES} or parts.get("offset", "0") != "0"
    if not _is_shared_file(text) or "size" not in parts or for_more:
        return text
    if text.startswith("{"):
        found = {name: part for name, part in json.loads(text).items() if name not in _FILES_OWN}
        return json.dumps({**found, "qom-type": _MEMFD})
    named = {name: part for name, part in parts.items() if name not in {"", *_FILES_OWN}}
    return text_of({"": _MEMFD, **named})


def _without(word: str, option: str) -> str:
    if option == "-object":
        word = _without_file(word)
    if option == "-object" and word.startswith("{"):
        return json.dumps({**json.loads(word), "prealloc": False}) if "prealloc" in word else word
    if option == "-object" and "prealloc" in (parts := values(word)):
        return text_of({**parts, "prealloc": "off"})
    # In its place is what is said anyway: other words are known by where they are.
    return "-S" if word == "-mem-prealloc" else word


def _device(text: str) -> str:
    kind = driver(text)
    return next((why for start, why in _DEVICES.items() if kind.startswith(start)), "")


def _object(text: str) -> str:
    parts = json.loads(text) if text.startswith("{") else values(text)
    secret = parts.get("qom-type", parts.get("")) in _CONFIDENTIAL
    return "the guest's memory is its secret" if secret else ""


def _locks(text: str) -> str:
    parts = values(text)
    asked = _ON & {parts.get("mem-lock"), parts.get("mlock")}
    return "the new QEMU would lock memory that both have" if asked else ""
