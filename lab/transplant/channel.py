# SPDX-License-Identifier: GPL-2.0-or-later
"""How the lab and the helper talk; the other end, and the format, is ``transplant/protocol.h``."""

from __future__ import annotations

import enum
import itertools
import socket
import struct
from collections.abc import Callable

from lab.base.deadline import Deadline
from lab.base.errors import CannotTellError

MAGIC, VERSION, REPLY, MOST = 0x50465450, 3, 0x8000, 1 << 20
_HEADER = struct.Struct("<IHHII")
_NUMBER = struct.Struct("<Q")


class HelperError(CannotTellError):
    """The helper refused, or is gone."""


class Order(enum.IntEnum):
    """What may be asked."""

    HELLO = 1
    EXAMINE = 2
    START = 3
    ADOPT = 4
    DELTA = 5
    HOLD = 6
    FINISH = 7
    ABANDON = 8
    COLLAPSE = 9


def pack(fields: tuple[int | str, ...]) -> bytes:
    """Return the payload of a frame."""
    parts = []
    for field in fields:
        if isinstance(field, int):
            parts.append(_NUMBER.pack(field))
        else:
            text = field.encode(errors="surrogateescape") + b"\0"
            parts.append(_NUMBER.pack(len(text)) + text)
    return b"".join(parts)


class Answer:
    """The fields of an answer, taken one by one; raises HelperError when there are no more."""

    def __init__(self, payload: bytes) -> None:
        self._rest = memoryview(payload)

    def _take(self, size: int) -> bytes:
        if size > len(self._rest):
            raise HelperError("the helper's answer is cut off")
        taken, self._rest = bytes(self._rest[:size]), self._rest[size:]
        return taken

    def number(self) -> int:
        """Return the next field, a number."""
        return int(_NUMBER.unpack(self._take(_NUMBER.size))[0])

    def text(self) -> str:
        """Return the next field, a text."""
        return self._take(self.number())[:-1].decode(errors="surrogateescape")


class Channel:
    """The lab's end of the socket pair; `end_of` says how the helper ended, once it has."""

    def __init__(self, end: socket.socket, end_of: Callable[[], str]) -> None:
        self._end = end
        self._end_of = end_of
        self._serials = itertools.count(1)

    def ask(self, request: Order, *fields: int | str, deadline: Deadline) -> Answer:
        """Ask, and return the answer.

        Raises HelperError with the helper's words when it refuses, or when it is gone, and
        DeadlineError when it does not answer in time.
        """
        serial = next(self._serials)
        payload = pack(fields)
        if len(payload) > MOST:
            raise HelperError(f"{request.name}: a request of {len(payload)} bytes is too long")
        self._end.settimeout(max(deadline.left, 0.001))
        try:
            header = _HEADER.pack(MAGIC, VERSION, request, len(payload), serial)
            self._end.sendall(header + payload)
            answer = Answer(self._receive(request, serial, deadline))
        except TimeoutError:
            deadline.check()
            raise HelperError(f"{request.name}: the helper does not answer") from None
        except OSError as error:
            raise HelperError(f"{request.name}: {self._end_of()}") from error
        if answer.number():
            raise HelperError(answer.text())
        return answer

    def _receive(self, request: Order, serial: int, deadline: Deadline) -> bytes:
        magic, version, kind, length, answered = _HEADER.unpack(
            self._exactly(_HEADER.size, request, deadline)
        )
        wanted = (MAGIC, VERSION, request | REPLY, serial)
        if (magic, version, kind, answered) != wanted or length > MOST:
            raise HelperError(f"{request.name}: the helper's answer is none")
        return self._exactly(length, request, deadline)

    def _exactly(self, size: int, request: Order, deadline: Deadline) -> bytes:
        have = b""
        while len(have) < size:
            self._end.settimeout(max(deadline.left, 0.001))
            more = self._end.recv(size - len(have))
            if not more:
                raise HelperError(f"{request.name}: {self._end_of()}")
            have += more
        return have
