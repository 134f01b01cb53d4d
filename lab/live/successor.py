# SPDX-License-Identifier: GPL-2.0-or-later
"""From the command line of a running QEMU to that of its successor; pure.

Both run for a moment.  What only one of two QEMUs can have is put aside, passed on, or refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lab.base.number import whole
from lab.live import known

#: What is not for the successor.
_DROPPED = frozenset({"S", "daemonize", "incoming", "loadvm"})
#: What cannot be carried over by any means, and why.
_REFUSED = {
    "gdb": "two QEMUs cannot listen there",
    "s": "two QEMUs cannot listen on that port",
    "snapshot": "what the guest has written is in files that only the old QEMU has",
    "spice": "two QEMUs cannot listen there",
    "tpmdev": "the TPM's process serves one QEMU",
}
#: The same of -run-with.
_RUN_WITH = {
    "chroot": "the new QEMU would be started inside it",
    "exit-with-parent": "the new QEMU has another parent",
    "user": "the new QEMU could not become that user once more",
}
#: Character devices that are not carried over, and why.
_NEVER = {
    "udp": "two QEMUs cannot listen on one port",
    "spicevmc": "SPICE is not carried over",
    "spiceport": "SPICE is not carried over",
    "dbus": "D-Bus is not carried over",
}
#: Character devices in the short form of options, as ``-serial unix:/run/s,server,nowait``.
_SHORT = frozenset({"monitor", "qmp", "qmp-pretty", "serial", "parallel"})


def values(text: str) -> dict[str, str]:
    """Return the parts of an option such as ``socket,id=a,path=b``; a comma in one is doubled.

    Those of one in JSON read as if it had been written like that.
    """
    if text.startswith("{"):
        return _flat(json.loads(text))
    parts = text.replace(",,", "\0").split(",")
    found = {}
    for number, part in enumerate(parts):
        name, equals, value = part.replace("\0", ",").partition("=")
        found[name if equals else ("" if number == 0 else name)] = value if equals else name
    return found


def _flat(told: dict[str, Any]) -> dict[str, str]:
    """Return an option's JSON as the parts of its other form."""
    words = {True: "on", False: "off"}
    flat = {
        name: words[value] if isinstance(value, bool) else str(value)
        for name, value in told.items()
    }
    return {"": flat.pop("type", flat.pop("driver", "")), **flat}


def text_of(parts: dict[str, str]) -> str:
    """Return what `values` takes apart, whole again."""
    words = [parts[""]] if "" in parts else []
    words += [f"{name}={value}" for name, value in parts.items() if name]
    return ",".join(word.replace(",", ",,") for word in words)


@dataclass(frozen=True)
class Passed:
    """A descriptor of the old QEMU's that the new one gets: a tap, a listening socket, an fdset's.

    Which word of the command line names it, and how.
    """

    word: int
    parts: dict[str, str]

    @property
    def descriptor(self) -> int | None:
        """Its number in the old QEMU, where the command line has it."""
        return whole(self.parts.get("fd", ""))

    def with_descriptor(self, number: int) -> str:
        """Return the option's value with another number for the descriptor."""
        gone = {"ifname", "script", "downscript", "fd"}
        kept = {name: value for name, value in self.parts.items() if name not in gone}
        return text_of({**kept, "fd": str(number)})


@dataclass
class Successor:
    """How the new QEMU has to be started, but for ``-incoming``, and what has to be seen to."""

    argv: list[str]
    #: Sockets that the old QEMU listens on, and its pid file: the new one makes them anew.
    files: list[Path] = field(default_factory=list)
    passed: list[Passed] = field(default_factory=list)
    refusals: list[str] = field(default_factory=list)
    #: Why nobody but the old QEMU can start the new one.
    only_child: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    def with_descriptors(self, numbers: Sequence[int]) -> list[str]:
        """Return the command line with the descriptors in it that are passed."""
        words = list(self.argv)
        for one, number in zip(self.passed, numbers, strict=True):
            words[one.word] = one.with_descriptor(number)
        return words


def pairs(argv: Sequence[str]) -> Iterator[tuple[str, str | None]]:
    """Yield the options of a command line with their values; an image by itself is ``hda``'s.

    Whether an unknown option has a value is a guess: `successor` refuses it.
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


def successor(old: Sequence[str], new: Path, machine: str, cwd: Path) -> Successor:
    """Derive the command line of `new` from the one of a QEMU that was started in `cwd`.

    `machine` is the type with its version: a name such as ``q35`` means another one in `new`.
    """
    made = Successor([str(new)])
    told = list(pairs(old))
    names = {name for name, _ in told}
    # A daemon has left the directory that its paths were relative to.
    place = None if "daemonize" in names else cwd
    for name, value in told:
        if name in _DROPPED:
            continue
        if name not in known.WITH | known.WITHOUT:
            made.refusals.append(f"-{name}: no QEMU that the lab knows has this option")
        if name in _REFUSED:
            made.refusals.append(f"-{name}{' ' + value if value else ''}: {_REFUSED[name]}")
        if value is None:
            made.argv.append(f"-{name}")
        elif name in {"machine", "M"}:
            made.argv += ["-machine", _versioned(value, machine)]
        else:
            carry = _CARRIED.get(name, _as_it_is)
            now, what = carry(made, name, value, place)
            made.argv += [f"-{now}", what]
    if not names & {"machine", "M"}:
        made.argv += ["-machine", machine]
    if "nographic" in names:
        made.only_child.append("-nographic: its terminal is the old QEMU's")
    if "daemonize" in names:
        made.remarks.append("-daemonize is left out: the new QEMU is in the background anyway")
    return made


def _versioned(text: str, machine: str) -> str:
    parts = values(text)
    parts.pop("type", None)
    return text_of({**parts, "": machine})


def _file(made: Successor, path: str, place: Path | None) -> None:
    """Note a file that both would have by the same name."""
    if not path.startswith("/") and place is None:
        made.refusals.append(f"{path}: is relative, and a daemon's directory is not known any more")
        return
    made.files.append(Path(path) if path.startswith("/") else (place or Path()) / path)


def _is_server(parts: dict[str, str]) -> bool:
    return parts.get("server", "off") in {"on", "server", "yes", "true"}


def _chardev(made: Successor, name: str, text: str, place: Path | None) -> tuple[str, str]:
    parts = values(text)
    _character(made, f"-{name} {text}", parts.get("", ""), parts, place)
    return name, text_of(parts)


def _character(
    made: Successor, said: str, kind: str, parts: dict[str, str], place: Path | None
) -> None:
    """See to a character device; `parts` are changed to what the new QEMU needs."""
    if "fd" in parts and kind == "socket" and _is_server(parts):
        _passed(made, said, {**parts, "": kind, "wait": "off"}, "the listening socket")
        made.remarks.append(f"{said}: who is connected has to connect again")
    elif "fd" in parts:
        made.refusals.append(f"{said}: the descriptor is not passed on")
    elif kind == "socket":
        _socket(made, said, parts, place)
    elif kind in _NEVER:
        made.refusals.append(f"{said}: {_NEVER[kind]}")
    elif kind == "file":
        parts["append"] = "on"
    elif kind == "stdio":
        made.only_child.append(f"{said}: its terminal is the old QEMU's")
    elif kind == "pty":
        made.remarks.append(f"{said}: the terminal gets another name")
    if "logfile" in parts:
        parts["logappend"] = "on"


def _socket(made: Successor, said: str, parts: dict[str, str], place: Path | None) -> None:
    if not _is_server(parts):
        made.remarks.append(f"{said}: the new QEMU connects there beside the old one")
    elif "path" not in parts:
        made.refusals.append(f"{said}: two QEMUs cannot listen on one port")
    elif parts.get("abstract") in {"on", "abstract"}:
        made.refusals.append(f"{said}: two QEMUs cannot listen on one abstract socket")
    else:
        _file(made, parts["path"], place)
        parts.pop("nowait", None)
        parts |= {"server": "on", "wait": "off"}  # nobody comes before the guest is there
        made.remarks.append(f"{said}: who is connected has to connect again")


def _short(made: Successor, name: str, text: str, place: Path | None) -> tuple[str, str]:
    """See to a character device in its short form; what has to be changed becomes the long one."""
    kind, colon, rest = text.partition(":")
    if kind == "mon" and colon:
        inner = rest.partition(":")[0]
        if inner == "stdio":
            made.only_child.append(f"-{name} {text}: its terminal is the old QEMU's")
        elif inner not in {"null", "vc", "pty"}:
            made.refusals.append(f"-{name} {text}: write it with -chardev and mux=on")
        return name, text
    parts = values(rest if colon else text)
    where = parts.pop("", "")
    if kind == "unix":
        kind, parts = "socket", {"path": where, **parts}
    elif kind in {"tcp", "telnet", "websocket"}:
        kind = "socket"
    elif kind == "file":
        parts["path"] = where
    else:
        _character(made, f"-{name} {text}", kind, dict(parts), place)
        return name, text
    _character(made, f"-{name} {text}", kind, parts, place)
    if "path" not in parts:
        return name, text
    ident = f"pageflip-{name}-{len(made.argv)}"
    made.argv += ["-chardev", text_of({"": kind, "id": ident, **parts})]
    if name in {"serial", "parallel"}:
        return name, f"chardev:{ident}"
    pretty = ",pretty=on" if name == "qmp-pretty" else ""
    return "mon", f"chardev={ident},mode={'readline' if name == 'monitor' else 'control'}{pretty}"


def _network(made: Successor, name: str, text: str, _place: Path | None) -> tuple[str, str]:
    parts = values(text)
    kind, said = parts.get("", ""), f"-{name} {text}"
    if kind == "tap":
        _tap(made, said, parts)
    elif kind == "user" and {"hostfwd", "guestfwd"} & parts.keys():
        made.refusals.append(f"{said}: two QEMUs cannot listen on one port")
    elif kind == "user":
        made.remarks.append(f"{said}: connections through slirp do not survive")
    elif kind not in {"none", "nic", "hubport"}:
        made.refusals.append(f"{said}: a network of this kind is not carried over")
    return name, text


def _tap(made: Successor, said: str, parts: dict[str, str]) -> None:
    if {"fds", "queues", "vhostfd", "vhostfds", "br", "helper"} & parts.keys():
        made.refusals.append(f"{said}: only a tap with one queue, and no helper, is carried over")
    elif parts.get("vhost", "off") != "off":
        made.refusals.append(f"{said}: vhost has the tap as well")
    elif "fd" not in parts and not (parts.get("ifname") and parts.get("downscript") == "no"):
        made.refusals.append(
            f"{said}: the old QEMU's script would take the tap down, or its name is not known; "
            "ifname=... and downscript=no, or fd=..., is what can be passed on"
        )
    else:
        _passed(made, said, parts, "the tap")


def _passed(made: Successor, said: str, parts: dict[str, str], what: str) -> None:
    """Note a descriptor that the new QEMU gets from the old one, in the option that comes next."""
    made.only_child.append(f"{said}: {what} is passed on by the old QEMU")
    made.passed.append(Passed(len(made.argv) + 1, parts))


def _add_fd(made: Successor, name: str, text: str, _place: Path | None) -> tuple[str, str]:
    _passed(made, f"-{name} {text}", values(text), "the descriptor")
    return name, text


def _vnc(made: Successor, name: str, text: str, place: Path | None) -> tuple[str, str]:
    parts = values(text)
    where = parts.get("", "")
    if where.startswith("unix:"):
        _file(made, where.removeprefix("unix:"), place)
    elif where != "none":
        made.refusals.append(f"-{name} {text}: two QEMUs cannot listen on one port; unix:PATH can")
    return name, text


def _display(made: Successor, name: str, text: str, place: Path | None) -> tuple[str, str]:
    kind = values(text).get("", "")
    if text.startswith("vnc="):
        _vnc(made, name, text.removeprefix("vnc="), place)
    elif kind in {"dbus", "spice-app", "curses"}:
        made.refusals.append(f"-{name} {text}: is not carried over")
    elif kind in {"gtk", "sdl", "cocoa"}:
        made.remarks.append(f"-{name} {text}: its window closes, and another one opens")
    return name, text


def _disk(made: Successor, name: str, text: str, _place: Path | None) -> tuple[str, str]:
    if values(text).get("snapshot") == "on":
        made.refusals.append(f"-{name} {text}: {_REFUSED['snapshot']}")
    return name, text


def driver(text: str) -> str:
    """Return the driver of a ``-device``, in either form."""
    if text.startswith("{"):
        return str(json.loads(text).get("driver", ""))
    parts = values(text)
    return parts.get("driver", parts.get("", ""))


def identifier(text: str) -> str:
    """Return the id of a ``-device``, in either form; "" without one."""
    found = json.loads(text) if text.startswith("{") else values(text)
    return str(found.get("id", ""))


def _device(made: Successor, name: str, text: str, _place: Path | None) -> tuple[str, str]:
    if re.match(r"vhost-|vfio-", driver(text)):
        made.refusals.append(f"-{name} {text}: what is behind it serves one QEMU")
    return name, text


def _run_with(made: Successor, name: str, text: str, _place: Path | None) -> tuple[str, str]:
    parts = values(text)
    made.refusals += [
        f"-{name} {text}: {why}"
        for part, why in _RUN_WITH.items()
        if parts.get(part, "off") not in {"off", "no", "false", "n"}
    ]
    return name, text


def _config(made: Successor, name: str, text: str, _place: Path | None) -> tuple[str, str]:
    made.remarks.append(f"-{name} {text}: what is in it was not looked at")
    return name, text


def _pidfile(made: Successor, name: str, text: str, place: Path | None) -> tuple[str, str]:
    _file(made, text, place)
    return name, text


def _as_it_is(_made: Successor, name: str, text: str, _place: Path | None) -> tuple[str, str]:
    return name, text


#: What an option with a value becomes.  Each notes in the successor what has to be seen to.
_CARRIED: dict[str, Callable[[Successor, str, str, Path | None], tuple[str, str]]] = {
    "add-fd": _add_fd,
    "chardev": _chardev,
    "netdev": _network,
    "nic": _network,
    "net": _network,
    "vnc": _vnc,
    "display": _display,
    "drive": _disk,
    "device": _device,
    "readconfig": _config,
    "run-with": _run_with,
    "pidfile": _pidfile,
    **dict.fromkeys(_SHORT, _short),
}
