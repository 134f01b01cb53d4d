# SPDX-License-Identifier: GPL-2.0-or-later
"""From the command line of a running QEMU to that of its successor; pure.

Both run for a moment.  What only one of two QEMUs can have is put aside, passed on, or refused.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lab.base.number import whole
from lab.live import known
from lab.live.words import driver, is_on, kind, pairs, takes_terminal, text_of, values

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
#: Character devices in the short form of options, as ``-serial unix:/run/s,server,nowait``, and
#: the labels that they get, most of them with a number.
_SHORT = {
    "monitor": "compat_monitor%d",
    "qmp": "compat_monitor%d",
    "qmp-pretty": "compat_monitor%d",
    "serial": "serial%d",
    "parallel": "parallel%d",
    "debugcon": "debugcon",
}
_MONITORS = frozenset({"monitor", "qmp", "qmp-pretty"})


#: How a tap is had that is none by descriptor; QEMU takes none of it beside one (net/tap.c).
_OF_NAMES = frozenset(
    {"ifname", "script", "downscript", "queues", "vnet_hdr", "fd", "fds", "vhostfd", "vhostfds"}
)


#: Which ports -vnc takes.
_OF_PORTS = frozenset({"to", "ipv4", "ipv6"})


@dataclass(frozen=True)
class Passed:
    """Descriptors of the old QEMU's that the new one gets: a tap, a listening socket, an fdset's.

    Which word of the command line names them, and how.
    """

    word: int
    parts: dict[str, str]

    @property
    def numbers(self) -> list[int]:
        """Their numbers in the old QEMU, where the command line has them."""
        named = self.parts.get("fds") or self.parts.get("fd") or ""
        return [number for one in named.split(":") if (number := whole(one)) is not None]

    @property
    def queues(self) -> int:
        """How many of the old QEMU's it takes: a tap has one for each of its queues."""
        return len(self.numbers) or whole(self.parts.get("queues", "1")) or 1

    @property
    def workers(self) -> int:
        """How many descriptors of /dev/vhost-net come with them, and have to be new ones.

        One that was used once serves the process that used it, for good (VHOST_SET_OWNER).
        """
        named = self.parts.get("vhostfds") or self.parts.get("vhostfd") or ""
        return len(named.split(":")) if named else 0

    def with_descriptors(self, numbers: Sequence[int]) -> str:
        """Return the option's value with other numbers: `queues` of them, and then `workers`."""
        kept = {name: value for name, value in self.parts.items() if name not in _OF_NAMES}
        texts = list(map(str, numbers))
        taps, workers = texts[: self.queues], texts[self.queues :]
        many = "s" if "fds" in self.parts or len(taps) > 1 else ""
        found = {**kept, f"fd{many}": ":".join(taps)}
        return text_of({**found, f"vhostfd{many}": ":".join(workers)} if workers else found)


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
    #: Screens by VNC on a port, which the new QEMU is told when the old one has ended.
    screens: list[str] = field(default_factory=list)
    #: How many character devices of each label there have been.
    labels: Counter[str] = field(default_factory=Counter)

    def label(self, option: str) -> str:
        """Return the label of the next character device of an option in the short form."""
        label = _SHORT[option]
        self.labels[label] += 1
        return label % (self.labels[label] - 1) if "%" in label else label

    @property
    def taps(self) -> list[Passed]:
        """Those of the descriptors that are taps."""
        return [one for one in self.passed if kind(one.parts, "type") == "tap"]

    def with_descriptors(self, numbers: Sequence[int]) -> list[str]:
        """Return the command line with the descriptors in it that are passed."""
        words, rest = list(self.argv), list(numbers)
        for one in self.passed:
            count = one.queues + one.workers
            words[one.word] = one.with_descriptors(rest[:count])
            del rest[:count]
        return words


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
    if takes_terminal(names):
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


def _chardev(made: Successor, name: str, text: str, place: Path | None) -> tuple[str, str]:
    parts = values(text)
    _character(made, f"-{name} {text}", kind(parts, "backend"), parts, place)
    return name, text_of(parts)


def _character(
    made: Successor, said: str, what: str, parts: dict[str, str], place: Path | None
) -> None:
    """See to a character device; `parts` are changed to what the new QEMU needs."""
    if "fd" in parts and what == "socket" and is_on(parts, "server"):
        _passed(made, said, {**parts, "wait": "off"}, "the listening socket")
        made.remarks.append(f"{said}: who is connected has to connect again")
    elif "fd" in parts:
        made.refusals.append(f"{said}: the descriptor is not passed on")
    elif what == "socket":
        _socket(made, said, parts, place)
    elif what in _NEVER:
        made.refusals.append(f"{said}: {_NEVER[what]}")
    elif what == "file":
        parts["append"] = "on"
    elif what == "stdio":
        made.only_child.append(f"{said}: its terminal is the old QEMU's")
    elif what == "pty":
        made.remarks.append(f"{said}: the terminal gets another name")
    if "logfile" in parts:
        parts["logappend"] = "on"


def _socket(made: Successor, said: str, parts: dict[str, str], place: Path | None) -> None:
    if not is_on(parts, "server"):
        made.remarks.append(f"{said}: the new QEMU connects there beside the old one")
    elif "path" not in parts:
        made.refusals.append(f"{said}: two QEMUs cannot listen on one port")
    elif is_on(parts, "abstract"):
        made.refusals.append(f"{said}: two QEMUs cannot listen on one abstract socket")
    else:
        _file(made, parts["path"], place)
        parts.pop("nowait", None)
        parts |= {"server": "on", "wait": "off"}  # nobody comes before the guest is there
        made.remarks.append(f"{said}: who is connected has to connect again")


def _short(made: Successor, name: str, text: str, place: Path | None) -> tuple[str, str]:
    """See to a character device in its short form; what has to be changed becomes the long one.

    It keeps the label that QEMU gives it (system/vl.c: serial_parse(), monitor_parse()).
    """
    label = made.label(name)
    mux, short = text.startswith("mon:"), text.removeprefix("mon:")
    what, colon, rest = short.partition(":")
    parts = values(rest if colon else short)
    where = parts.pop("", "")
    if what == "unix":
        what, parts = "socket", {"path": where, **parts}
    elif what in {"tcp", "telnet", "websocket"}:
        what = "socket"
    elif what == "file":
        parts = {"path": rest}  # all of it: nothing can follow
    _character(made, f"-{name} {text}", what, parts, place)
    if what not in {"socket", "file"} or "path" not in parts:
        return name, text
    made.argv += [
        "-chardev",
        text_of({"": what, "id": label, **parts, **({"mux": "on"} if mux else {})}),
    ]
    if name not in _MONITORS:
        if mux:
            made.argv += ["-mon", f"chardev={label},mode=readline"]
        return name, f"chardev:{label}"
    pretty = ",pretty=on" if name == "qmp-pretty" else ""
    return "mon", f"chardev={label},mode={'readline' if name == 'monitor' else 'control'}{pretty}"


def _network(made: Successor, name: str, text: str, _place: Path | None) -> tuple[str, str]:
    parts = values(text)
    what, said = kind(parts, "type"), f"-{name} {text}"
    forwards = any(part.partition(".")[0] in {"hostfwd", "guestfwd"} for part in parts)
    if what == "tap":
        _tap(made, said, parts)
    elif what == "user" and forwards:
        made.refusals.append(f"{said}: two QEMUs cannot listen on one port")
    elif what == "user":
        made.remarks.append(f"{said}: connections through slirp do not survive")
    elif what not in {"none", "nic", "hubport"}:
        made.refusals.append(f"{said}: a network of this kind is not carried over")
    return name, text


def _tap(made: Successor, said: str, parts: dict[str, str]) -> None:
    if not {"fd", "fds", "ifname"} & parts.keys():
        made.refusals.append(
            f"{said}: which tap it is is not known; ifname=..., or fd=..., is what can be passed on"
        )
        return
    if "ifname" in parts and parts.get("downscript") != "no":
        made.remarks.append(
            f"{said}: nobody runs the script that takes the tap down: the new QEMU gets it by "
            "descriptor, and it goes with the last one"
        )
    _passed(made, said, parts, "the tap")


def _passed(made: Successor, said: str, parts: dict[str, str], what: str) -> None:
    """Note a descriptor that the new QEMU gets from the old one, in the option that comes next."""
    made.only_child.append(f"{said}: {what} is passed on by the old QEMU")
    made.passed.append(Passed(len(made.argv) + 1, parts))


def _add_fd(made: Successor, name: str, text: str, _place: Path | None) -> tuple[str, str]:
    _passed(made, f"-{name} {text}", values(text), "the descriptor")
    return name, text


def _vnc(made: Successor, name: str, text: str, place: Path | None) -> tuple[str, str]:
    return name, _screen(made, f"-{name} {text}", values(text), place)


def _screen(made: Successor, said: str, parts: dict[str, str], place: Path | None) -> str:
    """See to a screen by VNC, and return its value."""
    where = parts.get("", "")
    if is_on(parts, "password"):
        made.remarks.append(f"{said}: who has set the password by QMP has to set it again")
    if where.startswith("unix:"):
        _file(made, where.removeprefix("unix:"), place)
    elif "websocket" in parts or is_on(parts, "reverse"):
        made.refusals.append(
            f"{said}: two QEMUs cannot listen on one port for websockets, or connect to one viewer"
        )
    elif where != "none":
        made.screens.append(said)
        made.remarks.append(
            f"{said}: the new QEMU listens there when the old one has ended; who is connected has "
            "to connect again"
        )
        parts = {name: value for name, value in parts.items() if name not in _OF_PORTS}
        parts[""] = "none"
    return text_of(parts)


def _display(made: Successor, name: str, text: str, place: Path | None) -> tuple[str, str]:
    kind = values(text).get("", "")
    if text.startswith("vnc="):
        parts = values(text.removeprefix("vnc="))
        return name, f"vnc={_screen(made, f'-{name} {text}', parts, place)}"
    if kind in {"dbus", "spice-app", "curses"}:
        made.refusals.append(f"-{name} {text}: is not carried over")
    elif kind in {"gtk", "sdl", "cocoa"}:
        made.remarks.append(f"-{name} {text}: its window closes, and another one opens")
    return name, text


def _disk(made: Successor, name: str, text: str, _place: Path | None) -> tuple[str, str]:
    if values(text).get("snapshot") == "on":
        made.refusals.append(f"-{name} {text}: {_REFUSED['snapshot']}")
    return name, text


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
