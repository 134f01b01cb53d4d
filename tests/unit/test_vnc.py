# SPDX-License-Identifier: GPL-2.0-or-later
"""A screen by VNC on a port: where the new QEMU listens, and from when on."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from made_truth import truth

from lab.live import compare, vnc
from lab.live.truth.model import Displays, Listener, Truth
from lab.live.vnc import Screen
from lab.vm.binary import Binary
from lab.vm.monitor import Monitor, QmpError


def server(host: str, port: str, family: str = "ipv4", *, websocket: bool = False) -> Any:
    return {"host": host, "service": port, "family": family, "websocket": websocket}


def shown(*servers: Any) -> Displays:
    return Displays(vnc=[{"id": "default", "auth": "none", "server": list(servers)}], spice={})


BOTH = shown(server("0.0.0.0", "5901"), server("::", "5901", "ipv6"))


class Qmp:
    """A monitor that listens where it is told to."""

    def __init__(self, there: Displays, refuses: bool = False) -> None:
        self.there, self.refuses = there, refuses
        self.told: list[Any] = []

    def execute(self, command: str, arguments: Any = None) -> Any:
        if command == "query-vnc-servers":
            return self.there.vnc
        assert command == "display-update"
        if self.refuses:
            raise QmpError("Address in use")
        self.told.append(arguments)
        return {}


def test_the_new_qemu_listens_where_the_old_one_did() -> None:
    qmp = Qmp(shown())
    journaled = Screen.read(Screen.of(BOTH).resource())
    assert journaled.restore(cast("Monitor", qmp)) == []
    address = {"type": "inet", "port": "5901"}
    assert qmp.told == [
        {
            "type": "vnc",
            "addresses": [
                {**address, "host": "0.0.0.0", "ipv4": True, "ipv6": False},
                {**address, "host": "::", "ipv6": True, "ipv4": False},
            ],
        }
    ]


def test_one_that_listens_there_is_left_alone() -> None:
    there = Qmp(shown(*reversed(BOTH.vnc[0]["server"])))
    assert Screen.of(BOTH).restore(cast("Monitor", there)) == []
    by_file = shown(server("/run/v", "", "unix"))
    nowhere = Qmp(shown())
    assert Screen.of(by_file).restore(cast("Monitor", nowhere)) == []
    assert there.told == nowhere.told == []


def test_a_port_that_somebody_else_has_is_told() -> None:
    failed = Screen.of(BOTH).restore(cast("Monitor", Qmp(shown(), refuses=True)))
    assert "Address in use" in failed[0]


def old(displays: Displays) -> Truth:
    listeners = [
        Listener(kind="tcp", address="0.0.0.0:5901"),
        Listener(kind="tcp", address="127.0.0.1:4444"),
        Listener(kind="unix", address="/run/5901"),
    ]
    return truth().model_copy(update={"displays": displays, "listeners": listeners})


def test_only_what_listens_later_may_be_missing_before() -> None:
    one = old(BOTH)
    waiting = one.model_copy(update={"displays": shown(), "listeners": one.listeners[1:]})
    assert compare.differences(vnc.unseen(one), waiting, committed=False) == []
    assert compare.differences(one, waiting, committed=True)
    deaf = waiting.model_copy(update={"listeners": one.listeners[2:]})
    (found,) = compare.differences(vnc.unseen(one), deaf, committed=False)
    assert "4444" in str(found)
    gone = waiting.model_copy(update={"displays": Displays(vnc=[], spice={})})
    assert compare.differences(vnc.unseen(one), gone, committed=False)


def test_who_cannot_be_told() -> None:
    able = Binary(Path("/q"), "10.0.13", "0" * 64, None, frozenset({"display-update"}), frozenset())
    unable = Binary(Path("/q"), "7.0.0", "0" * 64, None, frozenset(), frozenset())
    assert list(vnc.refusals(old(BOTH), able)) == []
    assert "has no display-update" in next(vnc.refusals(old(BOTH), unable))
    two = Displays(vnc=BOTH.vnc * 2, spice={})
    assert "several" in next(vnc.refusals(old(two), able))
    assert "several" in next(vnc.refusals(None, able))
