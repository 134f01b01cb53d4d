# SPDX-License-Identifier: GPL-2.0-or-later
"""Devices and other objects, each with every property that can be read."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from lab.live.truth.ask import Asker
from lab.live.truth.model import Device
from lab.vm.monitor import QmpError

#: Objects that are parts of devices and have no settings of their own.
_PARTS = frozenset({"memory-region", "irq", "qemu:memory-region"})
#: Where -device and device_add put what they make.
_ASKED = ("/machine/peripheral", "/machine/peripheral-anon")
#: A device without a name.
#: What QEMU calls what nobody has named: a counter, and two digits at random (util/id.c).
_GENERATED = re.compile(r"#([a-z]+)(\d+)\d\d")
_NUMBERED = re.compile(r"/machine/(?:unattached|peripheral-anon)/device\[\d+\]")
#: What a bus calls its devices, which each say themselves where they are.
_CHILD = re.compile(r"child\[\d+\]")
#: What is not read: where a secret is, it stays.
_SECRET = ("secret",)


def devices(ask: Asker) -> dict[str, Device]:
    """Return every object of the machine, the machine itself included, by its path.

    QEMU numbers devices without a name as they come, ``device[7]``, and whatever is plugged or
    taken out changes the numbers of others; here they are numbered by their type.
    """
    return renamed(_tree(ask, ["/machine"]))


def renamed(found: Mapping[str, Device]) -> dict[str, Device]:
    """Return devices with other names for those that are only numbered, in links to them too."""
    names: dict[str, str] = {}
    seen: dict[str, int] = {}
    numbered = [path for path in found if _NUMBERED.fullmatch(path)]
    for path in sorted(numbered, key=_order):
        kind = f"/machine/unnamed/{found[path].type}"
        names[path] = f"{kind}[{seen.get(kind, 0)}]"
        seen[kind] = seen.get(kind, 0) + 1

    def name(value: Any) -> Any:
        if not isinstance(value, str):
            return value
        if generated := _GENERATED.fullmatch(value):
            return "#{}{}".format(*generated.groups())
        if not (match := _NUMBERED.match(value)):
            return value
        return names.get(match.group(), match.group()) + value[match.end() :]

    return {
        name(path): Device(
            type=one.type,
            properties={key: name(value) for key, value in one.properties.items()},
            asked=path.rpartition("/")[0] in _ASKED,
        )
        for path, one in found.items()
    }


def _order(path: str) -> tuple[bool, int]:
    """Return what a numbered device is sorted by; its place differs between versions."""
    return path.startswith("/machine/peripheral"), int(path.rpartition("[")[2][:-1])


def objects(ask: Asker) -> dict[str, Device]:
    """Return what -object and object-add have made, by its id."""
    found = _tree(ask, ["/objects"])
    return {path.removeprefix("/objects/"): found[path] for path in found if path != "/objects"}


def plugged(ask: Asker) -> dict[str, Device]:
    """Return the machine, and what -device and device_add have made, with little of each.

    Of what was plugged in later there is everything, and the bus that it is on.
    """
    kind = str(ask.one("qom-get", path="/machine", property="type"))
    found = {"/machine": Device(type=kind, properties={})}
    for place in _ASKED:
        for name, one in named(ask, place).items():
            late = ask.one("qom-get", path=f"{place}/{name}", property="hotplugged")
            there = Device(type=one.type, properties={"hotplugged": late}, asked=True)
            found[f"{place}/{name}"] = there
            if late:
                found |= _whole(ask, f"{place}/{name}")
    return found


def _whole(ask: Asker, path: str) -> dict[str, Device]:
    """Return a device with all that is in it, and its bus."""
    found = _tree(ask, [path])
    found[path] = found[path].model_copy(update={"asked": True})
    if bus := found[path].properties.get("parent_bus"):
        kind = str(ask.one("qom-get", path=bus, property="type"))
        found[str(bus)] = Device(type=kind, properties={})
    return found


def named(ask: Asker, place: str) -> dict[str, Device]:
    """Return what is in a place by its name, without properties."""
    return {
        one["name"]: Device(type=one["type"][6:-1], properties={})
        for one in ask.one("qom-list", path=place)
        if one["type"].startswith("child<")
    }


def _tree(ask: Asker, places: list[str]) -> dict[str, Device]:
    """Return all objects from some places down; one step asks for all objects of one depth."""
    found: dict[str, Device] = {}
    look = _at_once if ask.can("qom-list-get") else _one_by_one
    while places:
        below: list[str] = []
        for path, properties in look(ask, places).items():
            below += [
                f"{path}/{name}"
                for name, (kind, _value) in properties.items()
                if kind.startswith("child<") and kind[6:-1] not in _PARTS
            ]
            found[path] = _object(properties)
        places = below
    return dict(sorted(found.items()))


#: The properties of an object by name: each one's type and its value.
_Properties = dict[str, tuple[str, Any]]


def _at_once(ask: Asker, paths: list[str]) -> dict[str, _Properties]:
    """Ask with qom-list-get, which QEMU has since 10.1; a secret's value does not leave here."""
    answer = ask.one("qom-list-get", paths=paths)
    return {
        path: {one["name"]: (one["type"], one.get("value")) for one in told["properties"]}
        for path, told in zip(paths, answer, strict=True)
    }


def _one_by_one(ask: Asker, paths: list[str]) -> dict[str, _Properties]:
    found: dict[str, _Properties] = {}
    listed = ask.all([("qom-list", {"path": path}) for path in paths])
    wanted: list[tuple[str, str]] = []
    for path, members in zip(paths, listed, strict=True):
        if isinstance(members, QmpError):
            continue  # it has been taken out since
        found[path] = {one["name"]: (one["type"], None) for one in members}
        wanted += [(path, name) for name, (kind, _) in found[path].items() if kind[:6] != "child<"]
    answers = ask.all([("qom-get", {"path": path, "property": name}) for path, name in wanted])
    for (path, name), value in zip(wanted, answers, strict=True):
        # Not every property can be read by everybody, at all times.
        if not isinstance(value, QmpError):
            found[path][name] = found[path][name][0], value
    return found


def _object(properties: _Properties) -> Device:
    kind = str(properties.get("type", ("", ""))[1] or "")
    return Device(
        type=kind,
        properties={
            name: _plain(name, value)
            for name, (what, value) in sorted(properties.items())
            if name != "type"
            and not _CHILD.fullmatch(name)
            and not what.startswith("child<")
            and not kind.startswith(_SECRET)
        },
    )


def _plain(name: str, value: Any) -> Any:
    """Return a property's value in a form that can be compared."""
    if name in {"feature-words", "filtered-features"}:
        return features(value)
    return value


def features(words: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """Return what CPUID tells the guest (X86CPUFeatureWordInfo in qapi/machine-target.json).

    A leaf without any bit is the same as one that a QEMU has never heard of.
    """
    return {
        f"{one['cpuid-input-eax']:#x}.{one.get('cpuid-input-ecx', 0)}.{one['cpuid-register']}": one[
            "features"
        ]
        for one in words
        if one["features"]
    }
