# SPDX-License-Identifier: GPL-2.0-or-later
"""The lines to the agent, with a guest of our own at the other end."""

from __future__ import annotations

import json
import os
import resource
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from lab.base.deadline import Deadline, DeadlineError
from lab.vm.agent import AgentError, agent_lines


@contextmanager
def guest(path: Path, replies: dict[str, list[dict[str, Any]]]) -> Iterator[socket.socket]:
    """Answer commands on the control port as `replies` says; "ID" stands for the request's id."""
    peer = socket.socket(socket.AF_UNIX)
    peer.connect(str(path))

    def serve() -> None:
        with peer.makefile("rb") as lines:
            for line in lines:
                request = json.loads(line)
                for reply in replies.get(request["cmd"], []):
                    text = json.dumps(reply).replace('"ID"', str(request["id"]))
                    peer.sendall(text.encode() + b"\n")

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield peer
    finally:
        peer.shutdown(socket.SHUT_RDWR)
        thread.join(2)
        peer.close()


def test_who_tells_of_progress_has_time(sockets: Path) -> None:
    path = sockets / "control"
    with (
        agent_lines(path, sockets / "heart") as (control, _),
        socket.socket(socket.AF_UNIX) as peer,
    ):
        peer.connect(str(path))

        def answer() -> None:
            for _ in range(4):
                time.sleep(0.3)
                peer.sendall(b'{"event": "progress"}\n')
            peer.sendall(b'{"id": 1, "ok": true}\n')

        thread = threading.Thread(target=answer)
        thread.start()
        seen: list[Any] = []
        control.call("fill", Deadline.after(0.9, "fill"), on_event=seen.append)
        thread.join()
        assert len(seen) == 4
        with pytest.raises(AgentError, match=r"not answered verify after 0\.1 s"):
            control.call("verify", Deadline.after(0.1, "check"))


def soon() -> Deadline:
    return Deadline.after(5, "agent")


def test_a_second_qemu_is_served_when_the_first_has_gone(sockets: Path) -> None:
    path = sockets / "control"
    with agent_lines(path, sockets / "heart") as (control, _):
        for number in (1, 2):
            with guest(path, {"status": [{"id": "ID", "ok": True, "which": number}]}) as peer:
                if number == 2:
                    # Before it has been heard of, a command would go to the one that has gone.
                    peer.sendall(b'{"event": "ready"}\n')
                    assert control.ready.wait(10)
                    assert control.call("status", soon())["which"] == 2


def test_many_descriptors_are_open(sockets: Path) -> None:
    """As in a long chain of upgrades; select() would not know one above 1023."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(2048, hard), hard))
    path = sockets / "control"
    try:
        with ExitStack() as many:
            for _ in range(1024):
                many.enter_context(Path(os.devnull).open("rb"))
            lines = many.enter_context(agent_lines(path, sockets / "heart"))
            many.enter_context(guest(path, {"status": [{"id": "ID", "ok": True}]}))
            assert lines[0].call("status", soon())["ok"]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_call_sees_progress_and_its_own_answer_only(sockets: Path) -> None:
    replies = {
        "fill": [
            {"event": "fill", "done": 1, "total": 2},
            {"id": 999, "ok": True, "stale": True},
            {"id": "ID", "ok": True, "pages": 2},
        ]
    }
    seen: list[Any] = []
    with (
        agent_lines(sockets / "control", sockets / "heart") as (control, _),
        guest(sockets / "control", replies),
    ):
        answer = control.call("fill", soon(), on_event=seen.append, bytes=8192)
    assert answer["pages"] == 2
    assert [event["done"] for event in seen] == [1]


def test_refusal_and_silence(sockets: Path) -> None:
    with (
        agent_lines(sockets / "control", sockets / "heart") as (control, _),
        guest(sockets / "control", {"fill": [{"id": "ID", "ok": False, "error": "too much"}]}),
    ):
        with pytest.raises(AgentError, match="refused fill: too much"):
            control.call("fill", soon())
        with pytest.raises(AgentError, match="has not answered verify"):
            control.call("verify", Deadline.after(0.2, "verify"))


def test_nobody_connects(sockets: Path) -> None:
    with (
        agent_lines(sockets / "control", sockets / "heart") as (control, _),
        pytest.raises(AgentError, match="never connected"),
    ):
        control.call("ping", Deadline.after(0.1, "ping"))


def test_ready(sockets: Path) -> None:
    with (
        agent_lines(sockets / "control", sockets / "heart") as (control, _),
        guest(sockets / "control", {}) as peer,
    ):
        assert not control.ready.is_set()
        peer.sendall(b'{"event":"ready"}\n')
        assert control.ready.wait(5)


def test_heartbeats_in_pieces(sockets: Path) -> None:
    with agent_lines(sockets / "control", sockets / "heart") as (_, heart):
        peer = socket.socket(socket.AF_UNIX)
        peer.connect(str(sockets / "heart"))
        with peer:
            line = b'{"n":%d,"mono_ns":5,"real_ns":6}\n'
            peer.sendall(line % 1 + (line % 2)[:9])
            heart.wait(1, soon(), lambda: None)
            peer.sendall((line % 2)[9:] + b"rubbish\n" + line % 3)
            heart.wait(3, soon(), lambda: None)
        assert [beat.n for beat in heart.beats] == [1, 2, 3]
        assert heart.beats[0].host_ns <= heart.beats[2].host_ns
        assert heart.torn == [b"rubbish"]
        with pytest.raises(DeadlineError):
            heart.wait(4, Deadline.after(0.1, "beats"), lambda: None)


def test_answers_keep_coming_however_fast_the_questions(sockets: Path) -> None:
    """Sending must not end the thread that receives: it did once in some hundred quick calls."""
    paths = (sockets / "c", sockets / "h")
    with (
        agent_lines(*paths) as (control, _),
        guest(paths[0], {"ping": [{"id": "ID", "ok": True}]}),
    ):
        for _ in range(3000):
            control.call("ping", Deadline.after(5, "ping"))
