# SPDX-License-Identifier: GPL-2.0-or-later
"""The guest's screen, by VNC on a TCP port: the new QEMU listens there when the old one has ended.

It is started with ``-vnc none`` and is told by display-update (qapi/ui.json, since QEMU 7.1).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lab.live.journal import Owner, Resource
from lab.live.truth.model import Displays, Listener, Truth
from lab.vm.binary import Binary
from lab.vm.monitor import Monitor, QmpError

_COMMAND = "display-update"
#: What query-vnc-servers calls them: option, and the family that it has to be off for.
_FAMILIES = {"ipv4": "ipv6", "ipv6": "ipv4"}


class Screen:
    """Where somebody sees the guest's screen, as a resource of a journal."""

    kind = "screen"

    def __init__(self, wanted: Sequence[Mapping[str, Any]]) -> None:
        self._wanted = list(wanted)

    @classmethod
    def of(cls, displays: Displays) -> Screen:
        """Return where a QEMU listens."""
        return cls(_addresses(displays.vnc))

    @classmethod
    def read(cls, resource: Resource) -> Screen:
        """Return what a journal has."""
        return cls(json.loads(str(resource.facts["addresses"])))

    def resource(self) -> Resource:
        """Return it for a journal."""
        facts = {"addresses": json.dumps(self._wanted)}
        return Resource(kind=self.kind, name="vnc", facts=facts)

    def pass_on(self) -> None:
        """Do nothing: the port is free when the old QEMU has ended."""

    def settle(self, _owner: Owner) -> None:
        """Do nothing: a monitor is needed."""

    def restore(self, monitor: Monitor) -> list[str]:
        """Have the QEMU that has the guest listen there; return what could not be done."""
        if not self._wanted or _addresses(monitor.execute("query-vnc-servers")) == self._wanted:
            return []
        try:
            monitor.execute(_COMMAND, {"type": "vnc", "addresses": self._wanted})
        except QmpError as error:
            return [f"nobody sees the guest's screen by VNC: {error.message}"]
        return []


def _addresses(servers: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the TCP addresses in an answer to query-vnc-servers, as SocketAddress (QAPI)."""
    found = [
        {
            "type": "inet",
            "host": one["host"],
            "port": one["service"],
            one["family"]: True,
            _FAMILIES[one["family"]]: False,
        }
        for server in servers
        for one in server.get("server", [])
        if one["family"] in _FAMILIES and not one["websocket"]
    ]
    return sorted(found, key=lambda one: one["host"])


def refusals(truth: Truth | None, new: Binary) -> Iterator[str]:
    """Yield why a new QEMU cannot be told where to listen."""
    if truth is None or len(truth.displays.vnc) > 1:
        yield "of several screens by VNC only the first can be told where to listen"
    if _COMMAND not in new.commands:
        yield (
            f"the new QEMU has no {_COMMAND}, so two QEMUs would listen on one port for VNC; "
            "unix:PATH can"
        )


def is_listened_at(truth: Truth, one: Listener) -> bool:
    """Return whether a socket is that of a screen."""
    ports = {address["port"] for address in _addresses(truth.displays.vnc)}
    return one.kind in {"tcp", "tcp6"} and one.address.rpartition(":")[2] in ports


def unseen(truth: Truth) -> Truth:
    """Return it as it is in a new QEMU that does not listen yet."""
    servers = [
        {
            **server,
            "server": [one for one in server.get("server", []) if one["family"] not in _FAMILIES],
        }
        for server in truth.displays.vnc
    ]
    return truth.model_copy(
        update={
            "displays": truth.displays.model_copy(update={"vnc": servers}),
            "listeners": [one for one in truth.listeners if not is_listened_at(truth, one)],
        }
    )
