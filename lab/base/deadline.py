# SPDX-License-Identifier: GPL-2.0-or-later
"""Deadlines as objects: made once, handed down, asked how much is left."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

from lab.base.errors import CannotTellError


class DeadlineError(CannotTellError):
    """Something did not happen in time."""


@dataclass(frozen=True)
class Deadline:
    """A point on the monotonic clock (s) and what is being waited for."""

    what: str
    seconds: float
    at: float

    @classmethod
    def after(cls, seconds: float, what: str) -> Deadline:
        """Return the deadline `seconds` from now."""
        return cls(what, seconds, time.monotonic() + seconds)

    @property
    def left(self) -> float:
        """Seconds left, never negative."""
        return max(0.0, self.at - time.monotonic())

    @property
    def expired(self) -> bool:
        """Whether the time is up."""
        return self.left == 0.0

    def check(self) -> None:
        """Raise DeadlineError when the time is up."""
        if self.expired:
            raise DeadlineError(f"{self.what}: not done after {self.seconds:g} s")

    def poll(self, interval: float = 0.01) -> Iterator[float]:
        """Yield the seconds left, again and again, until DeadlineError.

        For the few things that offer no event to wait for (a file that appears).
        """
        while True:
            self.check()
            yield self.left
            time.sleep(min(interval, self.left))
