# SPDX-License-Identifier: GPL-2.0-or-later
"""A running QEMU's truth, taken: what the model has is asked, and nothing is changed."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from lab.base.errors import PreconditionError
from lab.live.truth import kernel, qom
from lab.live.truth.ask import Asker, Talks
from lab.live.truth.block import block
from lab.live.truth.model import Chardev, Displays, MachineState, Migration, Truth


def take(pid: int, monitor: Talks, besides: Collection[str] = (), *, whole: bool = True) -> Truth:
    """Return everything that process `pid`, which `monitor` belongs to, is and has.

    `besides` are files of its own that another QEMU has none of, such as the pid file.  Unless it
    is `whole`, devices and objects are there without most of their properties.  Raises
    PreconditionError when one may not look, MonitorError, QmpError and DeadlineError.
    """
    ask = Asker(monitor)
    try:
        opened = kernel.opened(pid, besides)
        cwd, root = Path(f"/proc/{pid}/cwd").readlink(), Path(f"/proc/{pid}/root").readlink()
    except OSError as error:
        raise PreconditionError(
            f"process {pid}: cannot see what it has open: {error.strerror}",
            hint="be root, or the user it runs as",
        ) from error
    devices = qom.devices(ask) if whole else qom.plugged(ask)
    return Truth(
        version=_version(ask),
        pid=pid,
        cwd=str(cwd),
        root=str(root),
        machine=_machine(ask, str(devices["/machine"].type if "/machine" in devices else "")),
        block=block(ask, opened, Path(f"/proc/{pid}/root"), cwd),
        files=opened.files,
        nodes=opened.nodes,
        chardevs={
            one["label"]: Chardev(where=_where(one["filename"])) for one in ask.one("query-chardev")
        },
        listeners=kernel.listeners(pid, opened.sockets),
        networks=_networks(ask),
        taps=opened.taps,
        devices=devices,
        objects=qom.objects(ask) if whole else qom.named(ask, "/objects"),
        migration=migration(ask),
        displays=Displays(
            vnc=[_server(one) for one in ask.known("query-vnc-servers", [])],
            spice=ask.known("query-spice", {}),
        ),
    )


def _server(told: Mapping[str, Any]) -> dict[str, Any]:
    """Return what query-vnc-servers says of one, without who is connected to it just now.

    Its addresses are in the order in which they were opened, the last one first.
    """
    server = sorted(told.get("server", []), key=lambda one: (one["family"], one["host"]))
    return {**{name: told[name] for name in told if name != "clients"}, "server": server}


def _version(ask: Asker) -> str:
    version = ask.one("query-version")["qemu"]
    return f"{version['major']}.{version['minor']}.{version['micro']}"


def _machine(ask: Asker, kind: str) -> MachineState:
    return MachineState(
        type=kind.removesuffix("-machine"),
        accelerator="kvm" if ask.one("query-kvm")["enabled"] else "tcg",
        state=str(ask.one("query-status")["status"]),
        name=str(ask.one("query-name").get("name", "")),
        uuid=str(ask.one("query-uuid")["UUID"]),
        cpus=[
            {"index": one["cpu-index"], **one.get("props", {})}
            for one in ask.one("query-cpus-fast")
        ],
        memory=ask.one("query-memory-size-summary"),
    )


def _where(filename: str) -> str:
    """Return what query-chardev says of one, without who is connected to it just now.

    A pseudo terminal gets another number each time.
    """
    where = filename.removeprefix("disconnected:").partition(" <-> ")[0]
    return "pty" if where.startswith("pty:") else where


def _networks(ask: Asker) -> dict[str, str]:
    """Return the network's backends and front ends; there is no QMP command that tells them all.

    HMP's "info network" has a line for each (net/net.c: print_net_client()).
    """
    text = str(ask.one("human-monitor-command", **{"command-line": "info network"}))
    found = {}
    for line in text.splitlines():
        name, colon, rest = line.lstrip(" \\").partition(": ")
        if colon:
            found[_network(name)] = _network(rest.strip())
    return found


def _network(text: str) -> str:
    """Return a line of it; how a tap was had, by name or descriptor, is nothing of the guest's.

    The number in a name that QEMU made up is another one each time.
    """
    text = re.sub(r"#(\D+)\d+", r"#\1", text)
    match = re.match(r"(index=\d+,type=tap),", text)
    return match.group(1) if match else text


def migration(ask: Asker) -> Migration:
    """Return the settings of migration."""
    told: list[dict[str, Any]] = ask.one("query-migrate-capabilities")
    return Migration(
        capabilities={one["capability"]: one["state"] for one in told},
        parameters=ask.one("query-migrate-parameters"),
    )
