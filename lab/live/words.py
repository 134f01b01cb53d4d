# SPDX-License-Identifier: GPL-2.0-or-later
"""QEMU's command line, read as QEMU reads it, in every spelling that it takes; pure."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence, Set
from typing import Any

from lab.live import known

#: Sections of a configuration file (-readconfig) whose option is called otherwise.
_SECTIONS = {
    "acpi": "acpitable",
    "boot-opts": "boot",
    "memory": "m",
    "smp-opts": "smp",
}
_SECTION = re.compile(r'\[(?P<name>[\w-]+)(?:\s+"(?P<id>[^"]*)")?\]')
_SETTING = re.compile(r'(?P<name>[\w.-]+)\s*=\s*"(?P<value>[^"]*)"')
_ON = frozenset({"on", "yes", "true", "y"})
#: Options by which a monitor is said.
_MONITORS = frozenset({"mon", "monitor", "qmp", "qmp-pretty"})


def values(text: str) -> dict[str, str]:
    """Return the parts of an option: ``socket,id=a,path=b``, where a comma is doubled, or JSON.

    What comes first without a name is called "", and what has no value has its own name for one.
    """
    if text.startswith("{"):
        return dict(_members("", json.loads(text)))
    parts = text.replace(",,", "\0").split(",")
    found = {}
    for number, part in enumerate(parts):
        name, equals, value = part.replace("\0", ",").partition("=")
        found[name if equals else ("" if number == 0 else name)] = value if equals else name
    return found


def _members(name: str, value: Any) -> Iterator[tuple[str, str]]:
    """Yield what is in a JSON value, with the names that it has without JSON (keyval.c)."""
    if isinstance(value, dict):
        for key, part in value.items():
            yield from _members(f"{name}.{key}" if name else key, part)
    elif isinstance(value, list):
        for number, part in enumerate(value):
            yield from _members(f"{name}.{number}", part)
    else:
        yield name, ("on" if value else "off") if isinstance(value, bool) else str(value)


def text_of(parts: dict[str, str]) -> str:
    """Return what `values` takes apart, whole again."""
    words = [parts[""]] if "" in parts else []
    words += [f"{name}={value}" for name, value in parts.items() if name]
    return ",".join(word.replace(",", ",,") for word in words)


def kind(parts: dict[str, str], name: str) -> str:
    """Return what may come first without its name, such as the ``type`` of a netdev."""
    return parts.get(name, parts.get("", ""))


def is_on(parts: dict[str, str], name: str) -> bool:
    """Return whether a flag is set: ``server``, ``server=on`` or ``server=yes``."""
    return parts.get(name, "off") in {*_ON, name}


def pairs(argv: Sequence[str]) -> Iterator[tuple[str, str | None]]:
    """Yield the options of a command line with their values; an image by itself is ``hda``'s.

    Whether an unknown option has a value is a guess: `lab.live.successor` refuses it.
    """
    rest = list(argv[1:])
    while rest:
        word = rest.pop(0)
        if not word.startswith("-"):
            yield "hda", word
            continue
        name = word.lstrip("-")
        guess = name not in known.WITH and bool(rest) and rest[0].startswith("-")
        yield name, None if name in known.WITHOUT or guess or not rest else rest.pop(0)


def options(argv: Sequence[str], *names: str) -> Iterator[str]:
    """Yield every value of some options, written with one dash or two."""
    return (value for name, value in pairs(argv) if name in names and value is not None)


def names(argv: Sequence[str]) -> Iterator[str]:
    """Yield every id and node name of a command line."""
    for _, value in pairs(argv):
        try:
            parts = values(value or "")
        except ValueError:
            continue
        for name, part in parts.items():
            if name.rpartition(".")[2] in {"id", "node-name"}:
                yield part


def driver(text: str) -> str:
    """Return the driver of a ``-device``."""
    return kind(values(text), "driver")


def configured(text: str) -> list[str]:
    """Return a configuration file (-readconfig, util/qemu-config.c) as words of a command line.

    Raises ValueError for a line that is neither a section nor a setting, and for a section that is
    no option.
    """
    found: list[tuple[str, dict[str, str]]] = []
    for number, line in enumerate(map(str.strip, text.splitlines()), 1):
        if not line or line.startswith("#"):
            continue
        if section := _SECTION.fullmatch(line):
            name = _SECTIONS.get(section["name"], section["name"])
            if name not in known.WITH:
                raise ValueError(f"line {number}: [{section['name']}] is no option")
            found.append((name, {"id": section["id"]} if section["id"] else {}))
        elif (setting := _SETTING.fullmatch(line)) and found:
            found[-1][1][setting["name"]] = setting["value"]
        else:
            raise ValueError(f"line {number}: {line}")
    return [word for name, parts in found for word in (f"-{name}", text_of(parts))]


def takes_terminal(names: Set[str]) -> bool:
    """Whether a command line with these options has QEMU's terminal by -nographic.

    It says nothing where serial port and monitor are said, or there are none
    (qemu_create_default_devices() in QEMU, system/vl.c).
    """
    said = "nodefaults" in names or ("serial" in names and bool(names & _MONITORS))
    return "nographic" in names and not said
