# SPDX-License-Identifier: GPL-2.0-or-later
"""Many questions to a monitor at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from lab.base.deadline import Deadline
from lab.vm.monitor import Monitor, QmpError

_ANSWER_S = 30.0


class Talks(Protocol):
    """Whoever passes QMP commands on: a monitor, or a manager's own way to one."""

    def execute(
        self,
        command: str,
        arguments: Mapping[str, Any] | None = None,
        deadline: Deadline | None = None,
    ) -> Any:
        """Run a command and return its answer; raise QmpError, MonitorError or DeadlineError."""


class Asker:
    """Asks one QEMU."""

    def __init__(self, monitor: Talks) -> None:
        self._monitor = monitor
        self._commands: frozenset[str] | None = None

    def can(self, command: str) -> bool:
        """Return whether this QEMU has a command."""
        if self._commands is None:
            self._commands = frozenset(one["name"] for one in self.one("query-commands"))
        return command in self._commands

    def all(self, asked: Sequence[tuple[str, Mapping[str, Any]]]) -> list[Any]:
        """Return the answers in order, a QmpError for each question that is refused.

        Raises MonitorError and DeadlineError.
        """
        deadline = Deadline.after(_ANSWER_S, "what a QEMU is asked about itself")
        if isinstance(self._monitor, Monitor):
            return self._monitor.execute_all(asked, deadline)
        return [self._answer(command, arguments) for command, arguments in asked]

    def _answer(self, command: str, arguments: Mapping[str, Any]) -> Any:
        try:
            return self._monitor.execute(command, arguments)
        except QmpError as error:
            return error

    def one(self, command: str, **arguments: Any) -> Any:
        """Return an answer; raise QmpError when it is refused."""
        (answer,) = self.all([(command, arguments)])
        if isinstance(answer, QmpError):
            raise answer
        return answer

    def known(self, command: str, otherwise: Any) -> Any:
        """Return an answer, or something else where this QEMU has no such command."""
        return self.one(command) if self.can(command) else otherwise
