# SPDX-License-Identifier: GPL-2.0-or-later
"""What the kernel says that a process has open: files, taps, sockets that it listens on."""

from __future__ import annotations

import ipaddress
import os
import re
import stat
import struct
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from lab.live.truth.model import Listener, OpenFile

#: Memory that has the form of a file: what guest RAM is made of, and what the kernel says of it.
_MEMORY = re.compile(
    r"/memfd:|/dev/zero \(deleted\)|/dev/shm/.* \(deleted\)|/SYSV|anon_hugepage|/proc/\d+/"
)
_STANDARD = frozenset({"0", "1", "2"})
#: The states of sockets that are bound (include/net/tcp_states.h).
_TCP_LISTEN, _UDP_BOUND = "0A", "07"
#: Of /proc/net/unix: __SO_ACCEPTCON (include/linux/net.h).
_UNIX_LISTENS = 0x10000


@dataclass
class Opened:
    """The descriptors of a process."""

    files: list[OpenFile] = field(default_factory=list)
    nodes: list[str] = field(default_factory=list)
    taps: list[str] = field(default_factory=list)
    sockets: set[str] = field(default_factory=set)

    def has(self, device: int, inode: int) -> OpenFile | None:
        """Return the open file that is this one."""
        return next((one for one in self.files if one.identity == (device, inode)), None)


def opened(pid: int, besides: Collection[str] = ()) -> Opened:
    """Return what a process has open but for its standard streams (proc_pid_fd(5)).

    `besides` are names of files that are not looked for in another QEMU, such as a pid file.
    Raises OSError when one may not look.
    """
    found = Opened()
    # Of two hard links, the name that the kernel says may be the one that is gone.
    own = {identity(Path(name)) for name in besides} - {None}
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # it has been closed meanwhile
            _sort(found, entry, entry.stat(), str(entry.readlink()), besides)
    files = [one for one in set_of(found.files) if one.identity not in own]
    found.files = sorted(files, key=lambda one: one.identity)
    found.nodes = sorted(set(found.nodes))
    found.taps.sort()
    return found


def standard_error(pid: int) -> str:
    """Return what a process's standard error is, by the name that the kernel has for it, or ""."""
    with suppress(OSError):
        return str(Path(f"/proc/{pid}/fd/2").readlink())
    return ""


def set_of(files: Collection[OpenFile]) -> list[OpenFile]:
    """Return each file once, however often it is open."""
    return list({one.identity: one for one in files}.values())


def _sort(
    found: Opened, entry: Path, status: os.stat_result, name: str, besides: Collection[str]
) -> None:
    if stat.S_ISSOCK(status.st_mode):
        found.sockets.add(str(status.st_ino))
    elif stat.S_ISCHR(status.st_mode):
        if name == "/dev/net/tun":
            found.taps += _interface(entry)
        elif not (entry.name in _STANDARD or name in besides):
            found.nodes.append(name)
    elif (where := _identity(status)) and not (
        entry.name in _STANDARD or name in besides or _MEMORY.match(name)
    ):
        found.files.append(OpenFile(device=where[0], inode=where[1], name=name))


def _interface(entry: Path) -> Iterator[str]:
    """Yield the interface of a descriptor of /dev/net/tun (drivers/net/tun.c: fdinfo)."""
    text = (entry.parents[1] / "fdinfo" / entry.name).read_text(encoding="utf-8")
    if match := re.search(r"^iff:\t(.+)$", text, re.MULTILINE):
        yield match.group(1)


def identity(path: Path) -> tuple[int, int] | None:
    """Return what file has a name, as `OpenFile.identity` says it; None where there is none."""
    try:
        return _identity(path.stat())
    except OSError:
        return None


def _identity(status: os.stat_result) -> tuple[int, int] | None:
    """Return it of a file or of a block device, which is the same by whatever node; else None."""
    if stat.S_ISBLK(status.st_mode):
        return 0, status.st_rdev
    return (status.st_dev, status.st_ino) if stat.S_ISREG(status.st_mode) else None


def listeners(pid: int, sockets: Collection[str]) -> list[Listener]:
    """Return where a process listens, from its network namespace's tables (proc_pid_net(5))."""
    found = [*_unix(pid, sockets)]
    for kind, state in (
        ("tcp", _TCP_LISTEN), ("tcp6", _TCP_LISTEN), ("udp", _UDP_BOUND), ("udp6", _UDP_BOUND),
    ):  # fmt: skip
        found += [
            Listener(kind=kind, address=address(fields[1]))
            for fields in _lines(pid, kind)
            if fields[3] == state and fields[9] in sockets
        ]
    return sorted(found, key=lambda one: (one.kind, one.address))


def _unix(pid: int, sockets: Collection[str]) -> Iterator[Listener]:
    try:
        text = Path(f"/proc/{pid}/net/unix").read_bytes()
    except OSError:
        return
    for line in text.split(b"\n")[1:]:
        parts = line.split(None, 7)  # a path may have anything in it
        if len(parts) == 8 and parts[6].decode() in sockets and int(parts[3], 16) & _UNIX_LISTENS:
            yield Listener(kind="unix", address=os.fsdecode(parts[7]))


def _lines(pid: int, kind: str) -> Iterator[list[str]]:
    with suppress(OSError):
        text = Path(f"/proc/{pid}/net/{kind}").read_text(encoding="utf-8")
        yield from (line.split() for line in text.splitlines()[1:])


def address(text: str) -> str:
    """Return an address of /proc/net/tcp as people write it: words of the host's byte order."""
    host, _, port = text.partition(":")
    words = [int(host[start : start + 8], 16) for start in range(0, len(host), 8)]
    raw = struct.pack(f"={len(words)}I", *words)
    where = ipaddress.ip_address(raw)
    return f"{f'[{where}]' if len(raw) > 4 else where}:{int(port, 16)}"
