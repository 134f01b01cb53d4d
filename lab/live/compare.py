# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether a new QEMU is what the old one is: everything is compared, thing by thing.  Pure.

Whatever is not named in `MAY_DIFFER` is a difference, what nobody has ever heard of included.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from pydantic import BaseModel

from lab.live.truth.model import Node, OpenFile, Truth

#: Where something is in a `Truth`, member by member.
Place = tuple[str, ...]
_MISSING = "missing"
_PROPERTY = ("devices", "*", "properties", "*")
_OBJECT_PROPERTY = ("objects", "*", "properties", "*")


@dataclass(frozen=True)
class Mismatch:
    """Something that the two do not have in common."""

    place: Place
    old: str
    new: str

    def __str__(self) -> str:
        return f"{name_of(self.place)}: {self.old} in the old QEMU, {self.new} in the new one"


@dataclass(frozen=True)
class MayDiffer:
    """Something that may be different, and why nobody misses it."""

    place: Place
    why: str
    #: Only as long as the guest has not been committed to the new QEMU.
    before_only: bool = False
    #: Only what one of two different versions has no name for.
    unknown_only: bool = False

    def fits(self, place: Place) -> bool:
        """Return whether it is about this place, or about what is above it."""
        return len(place) >= len(self.place) and all(
            fnmatchcase(part, pattern) for part, pattern in zip(place, self.place, strict=False)
        )


MAY_DIFFER: tuple[MayDiffer, ...] = (
    MayDiffer(("version",), "it is what the upgrade is for"),
    MayDiffer(("pid",), "it is another process"),
    MayDiffer(
        ("devices", "*", "asked"),
        "versions disagree on whether what -audio, say, makes is as if by -device",
    ),
    MayDiffer(
        ("devices", "*", "properties", "hotplugged"),
        "what was plugged in is there from the start in the new QEMU, and can be taken out",
    ),
    MayDiffer(("devices", "*", "properties", "date"), "a clock"),
    MayDiffer(("devices", "*", "properties", "rtc-time"), "a clock"),
    *(
        MayDiffer(
            ("devices", "*", "properties", name),
            "a register of the chipset's, which the guest sets and which migrates",
        )
        for name in ("MCFG", "mcfg_size", "pm_io_base", "gpe0_blk", "cpu-hotplug-legacy")
    ),
    MayDiffer(
        ("devices", "*", "properties", "busnr"),
        "the guest numbers the buses behind bridges, and that arrives with it",
        before_only=True,
    ),
    MayDiffer(
        _PROPERTY, "the machine type says what it is for a QEMU that knows it", unknown_only=True
    ),
    MayDiffer(
        _OBJECT_PROPERTY, "it has its default in a QEMU that knows it", unknown_only=True
    ),
    MayDiffer(
        ("objects", "*", "properties", "prealloc"),
        "memory that was allocated is there all the same",
    ),
    MayDiffer(("nodes", "/dev/null"), "nothing is there"),
    MayDiffer(("nodes", "/dev/userfaultfd"), "it is how guest memory arrives"),
    MayDiffer(
        ("block", "drives", "*", "tray_open"),
        "where a tray is is the device's state, which arrives with the guest",
        before_only=True,
    ),
    MayDiffer(("machine", "state"), "it waits for the guest", before_only=True),
    MayDiffer(("migration",), "it is set while the guest moves", before_only=True),
    MayDiffer(
        ("migration", "*", "*"), "it is of one version only", unknown_only=True
    ),
)  # fmt: skip


def differences(old: Truth, new: Truth, *, committed: bool) -> list[Mismatch]:
    """Return what differs and may not; `committed` when the new QEMU has the guest."""
    there, here = (
        dict(_flat((), _told(truth if committed else _without_stored(truth))))
        for truth in (old, new)
    )
    found = []
    names = {_identity(file): file.name for truth in (old, new) for file in truth.files}
    for place in sorted(there.keys() | here.keys()):
        one, other = there.get(place, _MISSING), here.get(place, _MISSING)
        if one != other and not _may_differ(place, old, new, committed=committed):
            named = tuple(names.get(part, part) for part in place)
            found.append(Mismatch(named, _named(one, names), _named(other, names)))
    return _without_parts(found)


def _named(value: str, names: Mapping[str, str]) -> str:
    """Return a value in words; a file is said by its name."""
    return names.get(value.strip("'"), value)


def _may_differ(place: Place, old: Truth, new: Truth, *, committed: bool) -> bool:
    return any(
        rule.fits(place)
        and not (rule.before_only and committed)
        and (not rule.unknown_only or _unknown(rule, place, old, new))
        for rule in MAY_DIFFER
    )


def _unknown(rule: MayDiffer, place: Place, old: Truth, new: Truth) -> bool:
    """Return whether one of two versions has no such thing at all in a place that both have."""
    if old.version == new.version:
        return False
    name = place[: len(rule.place)]
    above = [_at(_told(truth), name[:-1]) for truth in (old, new)]
    return all(isinstance(one, dict) for one in above) and any(
        name[-1] not in one for one in above if isinstance(one, dict)
    )


def _at(told: Any, place: Place) -> Any:
    for part in place:
        if not isinstance(told, dict) or part not in told:
            return None
        told = told[part]
    return told


def _told(truth: Truth) -> dict[str, Any]:
    """Return it as plain values, everything by the name that it has in a `Place`."""
    told = {name: _plain(value) for name, value in truth}
    told["files"] = {_identity(one): "open" for one in truth.files}
    for name in ("nodes", "taps"):
        told[name] = dict.fromkeys(told[name], "open")
    told["listeners"] = {f"{one.kind}:{one.address}": "open" for one in truth.listeners}
    return told


def _plain(value: Any) -> Any:
    if isinstance(value, OpenFile):
        return _identity(value)
    if isinstance(value, BaseModel):
        return {name: _plain(part) for name, part in value}
    if isinstance(value, Mapping):
        return {str(name): _plain(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_plain(part) for part in value]
    return value


def _identity(file: OpenFile) -> str:
    """Return what is compared of a file, and what people know it by."""
    return f"{file.device}:{file.inode}"


def _without_stored(truth: Truth) -> Truth:
    """Return it without persistent bitmaps.

    They are in the image until the old QEMU lets go of it, and only then in the new QEMU.
    """

    def without(node: Node) -> Node:
        bitmaps = {name: one for name, one in node.bitmaps.items() if not one.persistent}
        children = {role: without(child) for role, child in node.children.items()}
        return node.model_copy(update={"bitmaps": bitmaps, "children": children})

    drives = {
        name: one.model_copy(update={"medium": one.medium and without(one.medium)})
        for name, one in truth.block.drives.items()
    }
    others = {name: without(node) for name, node in truth.block.others.items()}
    block = truth.block.model_copy(update={"drives": drives, "others": others})
    return truth.model_copy(update={"block": block})


def _flat(place: Place, value: Any) -> Iterator[tuple[Place, str]]:
    """Yield every single value with its place, and of what has parts, that it is there."""
    if isinstance(value, dict):
        yield place, "there"
        for name, part in value.items():
            yield from _flat((*place, name), part)
    elif value is not None:
        yield place, repr(value) if isinstance(value, str) else str(value)


def _without_parts(found: list[Mismatch]) -> list[Mismatch]:
    """Return them without the parts of what is missing as a whole."""
    kept: list[Mismatch] = []
    whole: set[Place] = set()
    for one in found:
        if any(one.place[: len(place)] == place for place in whole):
            continue
        if _MISSING in {one.old, one.new}:
            whole.add(one.place)
        kept.append(one)
    return kept


def name_of(place: Place) -> str:
    """Return a place in words."""
    kind, *rest = place
    return f"{kind} {' '.join(rest)}" if rest else kind
