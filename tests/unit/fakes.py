# SPDX-License-Identifier: GPL-2.0-or-later
"""A QMP peer of our own, and observations to judge."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from lab.base.identity import Who
from lab.live.journal import Entry

GREETING = {
    "QMP": {
        "version": {"qemu": {"micro": 0, "minor": 2, "major": 10}, "package": ""},
        "capabilities": ["oob"],
    }
}
Answer = Callable[[str, dict[str, Any]], dict[str, Any] | None]


class FakeQemu:
    """Speaks QMP on a unix socket; `answer` makes the reply, None leaves the client waiting."""

    def __init__(self, path: Path, answer: Answer) -> None:
        self._answer = answer
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(1)
        self._peer: socket.socket | None = None
        self._lock = threading.Lock()
        self.commands: list[tuple[str, dict[str, Any]]] = []
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        try:
            self._peer, _ = self._listener.accept()
        except OSError:
            return
        self.send(GREETING)
        with suppress(OSError):
            for request in self._requests(self._peer):
                command, arguments = request["execute"], request.get("arguments", {})
                self.commands.append((command, arguments))
                reply: dict[str, Any] | None = {"return": {}}
                if command != "qmp_capabilities":
                    reply = self._answer(command, arguments)
                if reply is not None:
                    self.send({**reply, **{key: request[key] for key in ("id",) if key in request}})

    @staticmethod
    def _requests(peer: socket.socket) -> Iterator[dict[str, Any]]:
        """Yield the objects of a stream that has no newlines (QMP needs none)."""
        text, decoder = "", json.JSONDecoder()
        while chunk := peer.recv(65536):
            text += chunk.decode()
            while text:
                try:
                    request, end = decoder.raw_decode(text)
                except ValueError:
                    break
                text = text[end:].lstrip()
                yield request

    def send(self, message: dict[str, Any]) -> None:
        assert self._peer is not None
        with self._lock:
            self._peer.sendall(json.dumps(message).encode() + b"\n")

    def event(self, name: str, seconds: int = 100, microseconds: int = 0, **data: Any) -> None:
        self.send(
            {
                "event": name,
                "data": data,
                "timestamp": {"seconds": seconds, "microseconds": microseconds},
            }
        )

    def close(self) -> None:
        for end in (self._peer, self._listener):
            if end:
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
                end.close()
        self._thread.join(2)


@contextmanager
def fake_qemu(path: Path, answer: Answer) -> Iterator[FakeQemu]:
    qemu = FakeQemu(path, answer)
    try:
        yield qemu
    finally:
        qemu.close()


def made_entry(**more: Any) -> Entry:
    """Return a journal of an upgrade of this process's, begun by this process."""
    who = Who.of(os.getpid())
    told: dict[str, Any] = {
        "began": "2026-01-02T03:04:05Z", "lab": who, "old": who, "mark": "/run/mark",
        "mechanism": "flip", "stops": False, "ran": True, "monitor": "/run/qmp",
        "run_directory": "/out",
    }  # fmt: skip
    return Entry(**{**told, **more})
