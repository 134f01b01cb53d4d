# SPDX-License-Identifier: GPL-2.0-or-later
"""What was plugged in and taken out while the guest ran, told as by the command line; pure.

What QEMU tells of a thing becomes an option that makes it once more, at the same place and by the
same name.  Where that is not enough it is left out, with the reason.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lab.live import nodes
from lab.live.changes import by_somebody
from lab.live.nodes import UntoldError
from lab.live.truth.model import Device, Truth
from lab.live.truth.told import Told
from lab.live.words import kind, names, pairs, text_of, values

_PCI = frozenset({"PCI", "PCIE"})
#: The buses on which a device's properties say its whole place, and the one that must not be empty.
_PLACES = {
    "PCI": "addr",
    "PCIE": "addr",
    "SCSI": "lun",
    "virtio-serial-bus": "nr",
    "usb-bus": "port",
}
#: Objects of which every setting can be read.
_OBJECTS = {
    "iothread": ("poll-max-ns", "poll-grow", "poll-shrink", "aio-max-batch", "thread-pool-min",
                 "thread-pool-max"),
    "rng-builtin": (),
    "rng-random": ("filename",),
}  # fmt: skip
#: A setting that says nothing, and cannot be said on a command line.
_UNSET: tuple[Any, ...] = ("", None, [])
#: An empty one of these is not an unset one.
_EMPTY = frozenset({"romfile"})
_LISTENS = ",server=on"
_VHOST = "/dev/vhost-net"


@dataclass
class Current:
    """A command line for what runs, and what it says otherwise than what was typed."""

    argv: list[str]
    #: Why something that was added is not in it, by what it is and its name.
    why: dict[str, str] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)

    def add(self, what: str, name: str, option: str, value: str | Mapping[str, Any]) -> None:
        """Say one thing more."""
        text = value if isinstance(value, str) else json.dumps(value)
        self.argv += [f"-{option}", text]
        self.remarks.append(f"{what} {name} was added while the guest ran: -{option} {text}")


def current(argv: Sequence[str], truth: Truth, told: Told) -> Current:
    """Return it for a QEMU that was started by `argv`."""
    kept, gone = _without(argv, truth)
    made = Current(_placed(kept, truth) if gone else kept)
    made.remarks += [f"{name} was taken out while the guest ran" for name in gone]
    named = set(names(made.argv))
    for name, thing in truth.objects.items():
        if name not in named and thing.type in _OBJECTS:
            made.add("object", name, "object", _object(name, thing))
    for name, chardev in truth.chardevs.items():
        if name not in named and by_somebody(name) and (text := _chardev(name, chardev.where)):
            made.add("character device", name, "chardev", text)
    _taps(made, truth, told, named)
    _nodes(made, truth, told, named)
    _devices(made, truth, told)
    return made


def _nodes(made: Current, truth: Truth, told: Told, named: Collection[str]) -> None:
    added, untold = nodes.added(truth.block, named, told.discarding)
    made.why |= {f"block node {name}": reason for name, reason in untold.items()}
    media = {one.medium.name for one in truth.block.drives.values() if one.medium}
    for one in added:
        name = one["node-name"]
        made.add("block node", name, "blockdev", one)
        if name in media and "discard" not in one:
            made.remarks.append(
                f"block node {name}: QEMU does not tell its discard=, and no discard of the guest "
                "has reached its file: it gets the default, ignore"
            )


def _object(name: str, thing: Device) -> dict[str, Any]:
    told = {key: thing.properties.get(key) for key in _OBJECTS[thing.type]}
    settings = {key: value for key, value in told.items() if value is not None}
    return {"qom-type": thing.type, "id": name, **settings}


def _without(argv: Sequence[str], truth: Truth) -> tuple[list[str], list[str]]:
    """Return the options without what is gone, and what that is."""
    there = {
        "device": {
            path.rpartition("/")[2]
            for path, one in truth.devices.items()
            if one.asked and not one.properties.get("hotplugged")
        },
        "netdev": truth.networks.keys(),
        "object": truth.objects.keys(),
        "chardev": truth.chardevs.keys(),
        "drive": truth.block.drives.keys(),
        "blockdev": {node.name for node in nodes.everything(truth.block)},
    }
    kept, gone = list(argv[:1]), dict[str, None]()
    for name, value in pairs(argv):
        which = _name(name, value) if name in there else ""
        if which and which not in there[name]:
            gone[f"{name} {which}"] = None
        elif not (name == "set" and " ".join((value or "").split(".")[:2]) in gone):
            kept += [f"-{name}", *([] if value is None else [value])]
    return kept, list(gone)


def _name(option: str, value: str | None) -> str:
    """Return what an option calls the thing that it makes; nothing where that is not so simple."""
    parts = values(value or "")
    # One comes and goes as the guest wants it, the other is not always listed.
    if parts.get("failover_pair_id") or (option == "netdev" and kind(parts, "type") == "hubport"):
        return ""
    return parts.get("node-name" if option == "blockdev" else "id", "")


def _placed(argv: Sequence[str], truth: Truth) -> list[str]:
    """Return the options with an address for each device that has one.

    QEMU gives the first that is free, and what was taken out has left one free.
    """
    found = list(argv[:1])
    for name, value in pairs(argv):
        placed = _with_address(value or "", truth) if name == "device" else value
        found += [f"-{name}", *([] if placed is None else [placed])]
    return found


def _with_address(text: str, truth: Truth) -> str:
    parts = values(text)
    device = truth.devices.get(f"/machine/peripheral/{parts.get('id', '')}")
    if not device or "addr" in parts or _bus(device, truth) not in _PCI:
        return text
    address = _address(device.properties["addr"])
    if text.startswith("{"):
        return json.dumps({**json.loads(text), "addr": address})
    return f"{text},addr={address}"


def _address(devfn: Any) -> str:
    """Return a PCI address as options have it: PCI_SLOT() and PCI_FUNC()."""
    return f"{int(devfn) >> 3:x}.{int(devfn) & 7}"


def _bus(device: Device, truth: Truth) -> str:
    """Return the type of the bus that a device is on, or "" where it is on none."""
    bus = truth.devices.get(str(device.properties.get("parent_bus", "")))
    return bus.type if bus else ""


def _chardev(name: str, where: str) -> str:
    """Return a character device as an option; "" for one of which QEMU does not tell enough."""
    if where == "null":
        return f"null,id={name}"
    if where.startswith("unix:") and where.endswith(_LISTENS):
        path = where.removeprefix("unix:").removesuffix(_LISTENS)
        return text_of({"": "socket", "id": name, "path": path, "server": "on", "wait": "off"})
    return ""


def _taps(made: Current, truth: Truth, told: Told, named: Collection[str]) -> None:
    late = {
        name: queues
        for name, queues in told.taps.items()
        if name not in named and not name.startswith("#")
    }
    vhost = _VHOST in truth.nodes
    others = any(part.startswith("vhost") for _, part in _parts(made.argv))
    for name, queues in late.items():
        if vhost and (others or len(late) > 1):
            made.why[f"network backend {name}"] = "QEMU does not tell which taps vhost serves"
        else:
            made.add("network backend", name, "netdev", _tap(name, queues, vhost=vhost))


def _parts(argv: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield the options of networks with the name of each part."""
    for name, value in pairs(argv):
        if name in {"netdev", "nic", "net"}:
            yield from ((name, part) for part in values(value or ""))


def _tap(name: str, queues: Sequence[str], *, vhost: bool) -> str:
    """Return a tap as an option; whether it can be carried over is no matter of this module."""
    parts = {"": "tap", "id": name, **values(queues[0])}
    if len(queues) > 1 and "fd" in parts:
        parts["fds"] = ":".join(values(one)["fd"] for one in queues)
        del parts["fd"]
    elif len(queues) > 1:
        parts["queues"] = str(len(queues))
    return text_of({**parts, **({"vhost": "on"} if vhost else {})})


def _devices(made: Current, truth: Truth, told: Told) -> None:
    late = {
        path: one
        for path, one in truth.devices.items()
        if one.asked and one.properties.get("hotplugged")
    }
    for path in sorted(late, key=lambda one: (_depth(one, late), one)):
        name = path.rpartition("/")[2]
        try:
            option = _device(path, late[path], truth, told.settings.get(late[path].type, {}))
        except UntoldError as error:
            made.why[f"device {name}"] = str(error)
        else:
            made.add("device", name, "device", option)


def _depth(path: str, late: Mapping[str, Device]) -> int:
    """Return how many of the others a device is plugged into."""
    bus = str(late[path].properties.get("parent_bus", ""))
    return max((1 + _depth(one, late) for one in late if bus.startswith(f"{one}/")), default=0)


def _device(path: str, device: Device, truth: Truth, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return a device as -device takes it in JSON; raise UntoldError."""
    there = _check(path, device, truth)
    bus = str(device.properties["parent_bus"]).rpartition("/")[2]
    made: dict[str, Any] = {"driver": device.type}
    if path.startswith("/machine/peripheral/"):
        made["id"] = path.rpartition("/")[2]
    made["bus"] = bus
    for name, default in settings.items():
        value = device.properties.get(name)
        if name in device.properties and value != default and _said(name, value):
            made[name] = value
    if there in _PCI:
        made["addr"] = _address(device.properties["addr"])
    return made


def _check(path: str, device: Device, truth: Truth) -> str:
    """Return the type of the bus that it is on; raise UntoldError unless that is its place."""
    there = _bus(device, truth)
    if there not in _PLACES:
        where = f"a bus of type {there}" if there else "no bus"
        raise UntoldError(f"it is on {where}, where QEMU does not tell its place")
    if device.properties.get(_PLACES[there]) in {None, "", -1}:
        raise UntoldError(f"QEMU does not tell its {_PLACES[there]}")
    if any(one.type in _PCI and name.startswith(f"{path}/") for name, one in truth.devices.items()):
        raise UntoldError("it is a bridge, and QEMU does not tell what ACPI calls its slots")
    bus = str(device.properties["parent_bus"]).rpartition("/")[2]
    if len(same := _buses(bus, truth)) > 1:
        raise UntoldError(f"it is on {bus}, and {len(same)} buses are called so")
    return there


def _said(name: str, value: Any) -> bool:
    """Return whether a setting has to be said."""
    if name == "bootindex":
        return bool(value != -1)
    return value not in _UNSET or (name in _EMPTY and value == "")


def _buses(name: str, truth: Truth) -> Collection[str]:
    """Return every bus of that name; what has a handler for plugging and is no device is one."""
    return [
        path
        for path, one in truth.devices.items()
        if path.endswith(f"/{name}")
        and "hotplug-handler" in one.properties
        and "hotplugged" not in one.properties
    ]
