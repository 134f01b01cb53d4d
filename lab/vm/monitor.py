# SPDX-License-Identifier: GPL-2.0-or-later
"""QMP, as the lab needs it: commands with deadlines, and every event kept with its time.

The protocol itself is qemu.qmp's.  That library is asynchronous; the lab is not, so one event loop
runs in a thread of its own and the methods here wait for it.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qemu.qmp import ExecInterruptedError, ExecuteError, Message, QMPClient, QMPError

from lab.base.deadline import Deadline, DeadlineError
from lab.base.errors import CannotTellError

_COMMAND_S = 30.0
#: How often it is looked whether waiting has become vain (s).
_LOOK_S = 0.1
# The lab keeps its own log of what is said; with the library's, thousands of questions take minutes
# wherever somebody listens to all loggers, as avocado does.
logging.getLogger("qemu.qmp").setLevel(logging.CRITICAL)


class MonitorError(CannotTellError):
    """The monitor could not be reached, or went away."""


class QmpError(CannotTellError):
    """QEMU refused a command; the message is QEMU's own."""


@dataclass(frozen=True)
class Event:
    """A QMP event; `at` is QEMU's own stamp (s since the epoch, microsecond steps)."""

    name: str
    data: Mapping[str, Any]
    at: float


class Monitor:
    """One QEMU's monitor, or with ``greets=False`` the agent in its guest."""

    def __init__(self, name: str, log: Callable[[str], None], *, greets: bool = True) -> None:
        self.name = name
        self.log = log
        self._client = QMPClient(name)
        self._client.await_greeting = self._client.negotiate = greets
        self._events: list[Event] = []
        self._news = threading.Condition()
        self._loop = asyncio.new_event_loop()
        self._pump_task: asyncio.Task[None] | None = None
        self._thread = threading.Thread(
            target=self._loop.run_forever, name=f"qmp-{name}", daemon=True
        )

    def _wait(
        self, coroutine: Any, deadline: Deadline, alive: Callable[[], None] = lambda: None
    ) -> Any:
        future: Future[Any] = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            while True:
                with suppress(FutureTimeoutError):
                    return future.result(max(min(deadline.left, _LOOK_S), 0.001))
                if deadline.expired:
                    raise DeadlineError(
                        f"{self.name}: {deadline.what}: no answer after {deadline.seconds:g} s"
                    )
                alive()
        finally:
            future.cancel()

    def connect(self, path: Path, deadline: Deadline, alive: Callable[[], None]) -> None:
        """Connect to the socket that QEMU is about to make; `alive` raises when QEMU has ended."""
        for left in deadline.poll(0.005):
            alive()
            try:
                # Who listens may answer later, or never: management passes sockets to two QEMUs.
                self._wait(
                    self._client.connect(str(path)),
                    Deadline.after(left, "connect to the monitor"),
                    alive,
                )
            except (QMPError, AssertionError):
                # qemu.qmp asserts that who has just been connected to is still there.
                self._wait(self._reset(), deadline)
                continue
            self._wait(self._listen(), deadline)
            return

    async def _reset(self) -> None:
        with suppress(QMPError, EOFError, OSError):  # it raises what ended the connection
            await self._client.disconnect()

    async def _listen(self) -> None:
        self._pump_task = asyncio.create_task(self._pump())

    async def _pump(self) -> None:
        async for message in self._client.events:
            said: dict[str, Any] = dict(message)
            stamp = said["timestamp"]
            at = stamp["seconds"] + stamp["microseconds"] / 1e6
            self.log(f"{self.name} < {message}")
            with self._news:
                self._events.append(Event(said["event"], said.get("data", {}), at))
                self._news.notify_all()

    def execute(
        self,
        command: str,
        arguments: Mapping[str, Any] | None = None,
        deadline: Deadline | None = None,
    ) -> Any:
        """Run a command and return its answer; raise QmpError, MonitorError or DeadlineError."""
        deadline = deadline or Deadline.after(_COMMAND_S, command)
        self.log(f"{self.name} > {command} {dict(arguments or {})}")
        try:
            message: Message = self._client.make_execute_msg(command, arguments)
            answer = self._wait(self._client.execute_msg(message), deadline)
        except ExecuteError as error:
            self.log(f"{self.name} ! {error}")
            raise QmpError(f"{self.name}: {command}: {error}") from error
        except (QMPError, ExecInterruptedError, OSError) as error:
            raise MonitorError(f"{self.name}: {command}: the monitor is gone ({error})") from error
        self.log(f"{self.name} = {answer}")
        return answer

    def execute_all(
        self, commands: Sequence[tuple[str, Mapping[str, Any]]], deadline: Deadline
    ) -> list[Any]:
        """Run commands without waiting for each, and return the answers in order.

        In place of an answer there is a QmpError for what QEMU refuses; raises MonitorError or
        DeadlineError.
        """
        self.log(f"{self.name} > {len(commands)} commands, the first {commands[:1]}")
        try:
            answers: list[Any] = self._wait(self._execute_all(commands), deadline)
        except (QMPError, ExecInterruptedError, OSError) as error:
            raise MonitorError(f"{self.name}: the monitor is gone ({error})") from error
        return answers

    async def _execute_all(self, commands: Sequence[tuple[str, Mapping[str, Any]]]) -> list[Any]:
        async def one(command: str, arguments: Mapping[str, Any]) -> Any:
            try:
                message = self._client.make_execute_msg(command, arguments)
                return await self._client.execute_msg(message)
            except ExecuteError as error:
                return QmpError(f"{self.name}: {command}: {error}")

        return list(await asyncio.gather(*(one(*command) for command in commands)))

    def give(self, name: str, descriptor: int) -> None:
        """Give QEMU a descriptor under a name (the command getfd); raises as `execute` does."""
        self.execute_with(descriptor, "getfd", {"fdname": name})

    def execute_with(
        self,
        descriptor: int,
        command: str,
        arguments: Mapping[str, Any] | None = None,
        deadline: Deadline | None = None,
    ) -> Any:
        """Run a command that takes a descriptor (getfd, add-fd); raises as `execute` does."""
        deadline = deadline or Deadline.after(_COMMAND_S, command)
        try:
            self._wait(self._send(descriptor), deadline)
        except (QMPError, OSError) as error:
            raise MonitorError(f"{self.name}: {command}: the monitor is gone ({error})") from error
        return self.execute(command, arguments, deadline)

    async def _send(self, descriptor: int) -> None:
        self._client.send_fd_scm(descriptor)

    @property
    def events(self) -> list[Event]:
        """All events so far, oldest first."""
        with self._news:
            return list(self._events)

    def last(self, name: str) -> Event | None:
        """Return the newest event of that name, or None."""
        return next((event for event in reversed(self.events) if event.name == name), None)

    def wait_for(
        self,
        wanted: Callable[[Event], bool],
        deadline: Deadline,
        alive: Callable[[], None] = lambda: None,
    ) -> Event:
        """Wait for an event, past ones included; `alive` raises when waiting has become vain."""
        with self._news:
            while True:
                for event in self._events:
                    if wanted(event):
                        return event
                alive()
                deadline.check()
                self._news.wait(min(0.05, deadline.left))

    def close(self) -> None:
        """Drop the connection; never raises."""
        if not self._thread.is_alive():
            return
        with suppress(Exception):
            self._wait(self._shut(), Deadline.after(2, "close the monitor"))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(2)
        self._loop.close()

    async def _shut(self) -> None:
        if self._pump_task:
            self._pump_task.cancel()
            await asyncio.gather(self._pump_task, return_exceptions=True)
        await self._reset()

    def start(self) -> None:
        """Start the thread that the event loop runs in."""
        self._thread.start()


@contextmanager
def monitor(
    name: str,
    path: Path,
    deadline: Deadline,
    alive: Callable[[], None],
    log: Callable[[str], None],
    *,
    greets: bool = True,
) -> Iterator[Monitor]:
    """Connect to a QEMU's monitor for as long as the block lasts."""
    connected = Monitor(name, log, greets=greets)
    connected.start()
    try:
        connected.connect(path, deadline, alive)
        yield connected
    finally:
        connected.close()
