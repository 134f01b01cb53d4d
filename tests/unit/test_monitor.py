# SPDX-License-Identifier: GPL-2.0-or-later
"""QMP against a peer of our own."""

from __future__ import annotations

import socket
import time
from pathlib import Path
from typing import Any

import pytest
from fakes import fake_qemu
from qemu.qmp import QMPClient

from lab.base.deadline import Deadline, DeadlineError
from lab.base.errors import CannotTellError
from lab.vm.monitor import MonitorError, QmpError, monitor


def fine() -> None:
    """The process is alive."""


def answer(command: str, _arguments: dict[str, Any]) -> dict[str, Any] | None:
    if command == "bad":
        return {"error": {"class": "GenericError", "desc": "no such thing as a bad command"}}
    if command == "hang":
        return None
    return {"return": {"status": "running"}}


def soon(what: str) -> Deadline:
    return Deadline.after(5, what)


def test_commands_answers_and_log(sockets: Path) -> None:
    log: list[str] = []
    with (
        fake_qemu(sockets / "qmp", answer) as qemu,
        monitor("old", sockets / "qmp", soon("connect"), fine, log.append) as qmp,
    ):
        assert qmp.execute("query-status", {"a": 1}) == {"status": "running"}
        assert qemu.commands[-1] == ("query-status", {"a": 1})
    assert any("query-status" in line for line in log)


def test_refusal_carries_qemus_own_words(sockets: Path) -> None:
    with (
        fake_qemu(sockets / "qmp", answer),
        monitor("old", sockets / "qmp", soon("connect"), fine, print) as qmp,
        pytest.raises(QmpError, match="old: bad: no such thing as a bad command"),
    ):
        qmp.execute("bad")


def test_silence_ends_at_the_deadline(sockets: Path) -> None:
    with (
        fake_qemu(sockets / "qmp", answer),
        monitor("new", sockets / "qmp", soon("connect"), fine, print) as qmp,
    ):
        begun = time.monotonic()
        with pytest.raises(DeadlineError, match="hang"):
            qmp.execute("hang", deadline=Deadline.after(0.1, "hang"))
        assert time.monotonic() - begun < 3


def test_monitor_that_goes_away(sockets: Path) -> None:
    with (
        fake_qemu(sockets / "qmp", answer) as qemu,
        monitor("old", sockets / "qmp", soon("connect"), fine, print) as qmp,
    ):
        qemu.close()
        with pytest.raises(MonitorError, match="the monitor is gone"):
            qmp.execute("query-status", deadline=Deadline.after(2, "query-status"))


def test_events_keep_qemus_stamp_and_can_be_waited_for(sockets: Path) -> None:
    with (
        fake_qemu(sockets / "qmp", answer) as qemu,
        monitor("old", sockets / "qmp", soon("connect"), fine, print) as qmp,
    ):
        qemu.event("STOP", 100, 250_000)
        qemu.event("MIGRATION", 101, status="completed")
        event = qmp.wait_for(lambda e: e.name == "MIGRATION", soon("event"))
        assert event.data["status"] == "completed"
        stop = qmp.last("STOP")
        assert stop is not None
        assert stop.at == pytest.approx(100.25)
        assert qmp.last("RESUME") is None
        with pytest.raises(DeadlineError):
            qmp.wait_for(lambda e: e.name == "RESUME", Deadline.after(0.1, "RESUME"))


def test_connect_gives_up_when_the_process_has_ended(sockets: Path) -> None:
    def dead() -> None:
        raise CannotTellError("it has ended")

    with (
        pytest.raises(CannotTellError, match="it has ended"),
        monitor("new", sockets / "none", soon("connect"), dead, print),
    ):
        pass


def test_a_peer_that_ends_while_one_connects_is_tried_again(
    sockets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = []
    connect = QMPClient.connect

    async def first_in_vain(self: QMPClient, address: str) -> None:
        tries.append(address)
        assert len(tries) > 1
        await connect(self, address)

    monkeypatch.setattr(QMPClient, "connect", first_in_vain)
    with (
        fake_qemu(sockets / "qmp", answer),
        monitor("new", sockets / "qmp", soon("connect"), fine, print) as qmp,
    ):
        assert qmp.execute("query-status") == {"status": "running"}
    assert len(tries) == 2


def test_connect_gives_up_where_somebody_listens_and_nobody_answers(sockets: Path) -> None:
    """As when management has passed the socket to two QEMUs, and one of them has ended."""
    looks: list[float] = []

    def alive() -> None:
        looks.append(time.monotonic())
        if len(looks) > 2:
            raise MonitorError("it has ended")

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(sockets / "qmp"))
        listener.listen()
        with (
            pytest.raises(MonitorError, match="it has ended"),
            monitor("new", sockets / "qmp", soon("connect"), alive, print),
        ):
            pass
    assert looks[-1] - looks[0] < 4
