# SPDX-License-Identifier: GPL-2.0-or-later
"""The two lines to the agent in the guest: its control port and its heartbeat.

The lab listens before QEMU starts and QEMU connects while it makes the port, so the host's end is
there when a migrated virtio-serial device is loaded and no byte finds its port closed.
"""

from __future__ import annotations

import json
import os
import queue
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab.base.deadline import Deadline
from lab.base.errors import CannotTellError

_CHUNK = 65536
#: How urgent it is to read what a guest says (a nice value, setpriority(2)).
_PRIORITY = -10


@dataclass(frozen=True)
class Beat:
    """A heartbeat: its number, its arrival on the host, the guest's clocks (all ns)."""

    n: int
    host_ns: int
    mono_ns: int
    real_ns: int


class AgentError(CannotTellError):
    """The agent refused a command or does not answer."""


class Port:
    """A listening unix socket; every complete line that arrives is handed to `on_line`.

    One QEMU at a time is connected; when it has gone, the next one may be.

    `on_line(line, host_ns)` runs in the port's own thread, with the time of arrival on the host's
    monotonic clock (ns).
    """

    def __init__(self, path: Path, on_line: Callable[[bytes, int], None]) -> None:
        self._on_line = on_line
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(path))
        self._listener.listen(1)
        self._peer: socket.socket | None = None
        self._connected = threading.Event()
        self._thread = threading.Thread(target=self._serve, name=f"port-{path.name}", daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        # On a busy host a reader that waits its turn lets the guest's port run full.
        with suppress(OSError):  # only root may
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _PRIORITY)
        with suppress(OSError):
            while True:  # a QEMU that only rehearsed was here, and goes
                peer, _ = self._listener.accept()
                self._peer = peer
                self._connected.set()
                self._read(peer)

    def _read(self, peer: socket.socket) -> None:
        rest = b""
        with suppress(OSError):
            while chunk := peer.recv(_CHUNK):
                now = time.monotonic_ns()
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    self._on_line(line, now)

    def send(self, data: bytes, deadline: Deadline) -> None:
        """Send `data`; raise AgentError when nobody is connected in time."""
        if not self._connected.wait(deadline.left) or self._peer is None:
            raise AgentError(f"{deadline.what}: QEMU never connected to the agent's port")
        try:
            _send(self._peer, data, deadline)
        except OSError as error:
            raise AgentError(f"{deadline.what}: the agent's port is closed ({error})") from error

    def close(self) -> None:
        """Close both ends and wait for the thread."""
        for end in (self._listener, self._peer):
            if end:
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
                end.close()
        self._thread.join(2)


def _send(peer: socket.socket, data: bytes, deadline: Deadline) -> None:
    """Send all of `data` in time; raise OSError.

    Without the socket's own timeout: to set that makes the descriptor non-blocking for the thread
    that is about to receive from it, too, and ends it.
    """
    rest = memoryview(data)
    poller = select.poll()  # select() knows the first 1024 descriptors only
    poller.register(peer, select.POLLOUT)
    while rest:
        if not poller.poll(max(deadline.left * 1000, 1)):
            raise TimeoutError("nobody reads")
        rest = rest[peer.send(rest, socket.MSG_DONTWAIT) :]


class Control:
    """Commands to the agent and their answers: one JSON object on each line."""

    def __init__(self, path: Path) -> None:
        self._answers: queue.Queue[dict[str, Any]] = queue.Queue()
        self._id = 0
        self._port = Port(path, self._receive)
        self.ready = threading.Event()

    def _receive(self, line: bytes, _host_ns: int) -> None:
        try:
            message = json.loads(line)
        except ValueError:
            return  # half a line, from the instant that the guest left this QEMU
        if message.get("event") == "ready":
            self.ready.set()
        self._answers.put(message)

    def call(
        self,
        command: str,
        deadline: Deadline,
        *,
        on_event: Callable[[Mapping[str, Any]], None] | None = None,
        alive: Callable[[], None] = lambda: None,
        **arguments: Any,
    ) -> dict[str, Any]:
        """Ask the agent and return its answer; raise AgentError when it says no or says nothing.

        With `on_event` the deadline begins anew with each event.
        """
        self._id += 1
        request = {"id": self._id, "cmd": command, **arguments}
        self._port.send(json.dumps(request).encode() + b"\n", deadline)
        while True:
            try:
                message = self._answers.get(timeout=min(0.2, max(deadline.left, 0.001)))
            except queue.Empty:
                alive()
                if deadline.expired:
                    raise AgentError(
                        f"{deadline.what}: the agent in the guest has not answered "
                        f"{command} after {deadline.seconds:g} s"
                    ) from None
                continue
            if "event" in message and on_event:
                on_event(message)
                deadline = Deadline.after(deadline.seconds, deadline.what)
            if message.get("id") == self._id:
                if not message.get("ok"):
                    raise AgentError(
                        f"the agent in the guest refused {command}: "
                        f"{message.get('error', 'no reason given')}"
                    )
                return message

    def close(self) -> None:
        """Close the port."""
        self._port.close()


class Heart:
    """The heartbeats of one QEMU, each with its time of arrival."""

    def __init__(self, path: Path) -> None:
        self.beats: list[Beat] = []
        self.torn: list[bytes] = []
        self._port = Port(path, self._receive)

    def _receive(self, line: bytes, host_ns: int) -> None:
        try:
            beat = json.loads(line)
            self.beats.append(Beat(beat["n"], host_ns, beat["mono_ns"], beat["real_ns"]))
        except (ValueError, KeyError, TypeError):
            self.torn.append(line)

    def wait(self, count: int, deadline: Deadline, alive: Callable[[], None]) -> None:
        """Wait until `count` beats have come; raise DeadlineError or what `alive` raises."""
        for _ in deadline.poll(0.005):
            alive()
            if len(self.beats) >= count:
                return

    def close(self) -> None:
        """Close the port."""
        self._port.close()


@contextmanager
def agent_lines(control: Path, heartbeat: Path) -> Iterator[tuple[Control, Heart]]:
    """Listen for a QEMU's agent ports for as long as the block lasts."""
    line = Control(control)
    try:
        heart = Heart(heartbeat)
        try:
            yield line, heart
        finally:
            heart.close()
    finally:
        line.close()
