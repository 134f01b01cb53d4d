# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether a new QEMU is what the old one is: everything is compared, thing by thing.  Pure.

Whatever is not named in `MAY_DIFFER` is a difference, what nobody has ever heard of included.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from pydantic import BaseModel

from lab.live.truth.model import Node, OpenFile, Truth

#: Where something is in a `Truth`, member by member.
Place = tuple[str, ...]
_MISSING = "missing"
_PROPERTY = ("devices", "*", "properties", "*")
#: How QEMU calls monitors that are objects.
_MONITORS = frozenset({"monitor-qmp", "monitor-hmp"})
#: What only one of both backends of memory has.
_FILES_AND_MEMFDS = frozenset(
    {"align", "discard-data", "mem-path", "offset", "pmem", "readonly", "rom"}
    | {"hugetlb", "hugetlbsize", "seal"}
)
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
class Divergence:
    """A difference, and all that may say whether it is one."""

    place: Place
    values: frozenset[str]
    old: Truth
    new: Truth
    #: Whether the new QEMU has the guest.
    committed: bool

    @property
    def versions_differ(self) -> bool:
        """Whether two different versions are compared."""
        return self.old.version != self.new.version


@dataclass(frozen=True)
class MayDiffer:
    """Something that may be different, and why nobody misses it."""

    place: Place
    why: str
    #: In which cases alone.
    when: Callable[[MayDiffer, Divergence], bool] = lambda _rule, _case: True

    def fits(self, place: Place) -> bool:
        """Return whether it is about this place, or about what is above it."""
        return len(place) >= len(self.place) and all(
            fnmatchcase(part, pattern) for part, pattern in zip(place, self.place, strict=False)
        )


def _before(_rule: MayDiffer, seen: Divergence) -> bool:
    """As long as the guest has not been committed to the new QEMU."""
    return not seen.committed


def _unknown(rule: MayDiffer, seen: Divergence) -> bool:
    """What one of two different versions has no name for, in a place that both have."""
    name = seen.place[: len(rule.place)]
    above = [_at(_told(truth), name[:-1]) for truth in (seen.old, seen.new)]
    return (
        seen.versions_differ
        and all(isinstance(one, dict) for one in above)
        and any(name[-1] not in one for one in above if isinstance(one, dict))
    )


def _say(*values: str) -> Callable[[MayDiffer, Divergence], bool]:
    """Where two different versions say this, or one of them does and the other anything else."""
    return lambda _rule, seen: seen.versions_differ and seen.values >= set(values)


def _of_the_board(_rule: MayDiffer, seen: Divergence) -> bool:
    """A device that nobody has asked for, and that one of two different versions has not."""
    path = seen.place[1]
    there = [truth.devices[path] for truth in (seen.old, seen.new) if path in truth.devices]
    return seen.versions_differ and len(there) == 1 and not there[0].asked


def _monitor_of_one(_rule: MayDiffer, seen: Divergence) -> bool:
    """A monitor, of two different versions of which one has monitors among its objects."""
    types = [{one.type for one in truth.objects.values()} for truth in (seen.old, seen.new)]
    mine = {truth.objects[seen.place[1]].type for truth in (seen.old, seen.new)
            if seen.place[1] in truth.objects}  # fmt: skip
    return (
        seen.versions_differ
        and mine <= _MONITORS
        and bool(types[0] & _MONITORS) is not bool(types[1] & _MONITORS)
    )


def _memfd_of_file(_rule: MayDiffer, seen: Divergence) -> bool:
    """Shared memory in a file, which the new QEMU has without opening it (`lab.live.outside`)."""
    both = [truth.objects.get(seen.place[1]) for truth in (seen.old, seen.new)]
    return [one and one.type for one in both] == [
        "memory-backend-file",
        "memory-backend-memfd",
    ] and (seen.place[2:] == ("type",) or seen.place[-1] in _FILES_AND_MEMFDS)


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
        when=_before,
    ),
    MayDiffer(
        _PROPERTY, "the machine type says what it is for a QEMU that knows it", when=_unknown
    ),
    MayDiffer(
        ("devices", "/machine", "properties", "smp", "*"),
        "there is one of each level of the topology that a version has never heard of",
        when=_unknown,
    ),
    MayDiffer(
        ("devices", "*"),
        "versions call and arrange the parts of a board otherwise; the machine type says which "
        "there are, and the guest's state does not load without one",
        when=_of_the_board,
    ),
    MayDiffer(
        ("devices", "*", "properties", "hotplug-handler"),
        "versions say it or not of the bus that a board has",
        when=_say("''"),
    ),
    MayDiffer(
        ("devices", "*", "properties", "rombar"),
        "since QEMU 9.2 it is -1 where nobody has said anything, which means 1",
        when=_say("-1", "1"),
    ),
    MayDiffer(
        ("chardevs", "*", "where"),
        "QEMU 7.2 does not say the name of a socket that somebody is connected to; where it "
        "listens is compared as well",
        when=_say("'unix:'"),
    ),
    MayDiffer(
        _OBJECT_PROPERTY, "it has its default in a QEMU that knows it", when=_unknown
    ),
    MayDiffer(
        ("objects", "*", "properties", "prealloc"),
        "memory that was allocated is there all the same",
    ),
    MayDiffer(
        ("objects", "*"),
        "its own file takes the place of the one that it was made with",
        when=_memfd_of_file,
    ),
    MayDiffer(
        ("objects", "*"),
        "monitors are objects from QEMU 11.1 on",
        when=_monitor_of_one,
    ),
    MayDiffer(("nodes", "/dev/null"), "nothing is there"),
    MayDiffer(("nodes", "/dev/userfaultfd"), "it is how guest memory arrives"),
    MayDiffer(
        ("block", "drives", "*", "tray_open"),
        "where a tray is is the device's state, which arrives with the guest",
        when=_before,
    ),
    MayDiffer(("machine", "state"), "it waits for the guest", when=_before),
    MayDiffer(("migration",), "it is set while the guest moves", when=_before),
    MayDiffer(
        ("migration", "*", "*"), "it is of one version only", when=_unknown
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
        if one == other:
            continue
        if not _may_differ(Divergence(place, frozenset({one, other}), old, new, committed)):
            named = tuple(names.get(part, part) for part in place)
            found.append(Mismatch(named, _named(one, names), _named(other, names)))
    return _without_parts(found)


def _named(value: str, names: Mapping[str, str]) -> str:
    """Return a value in words; a file is said by its name."""
    return names.get(value.strip("'"), value)


def _may_differ(seen: Divergence) -> bool:
    return any(rule.fits(seen.place) and rule.when(rule, seen) for rule in MAY_DIFFER)


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
