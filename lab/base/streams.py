# SPDX-License-Identifier: GPL-2.0-or-later
"""stdout and stderr that do not fail: an upgrade that was done stays done, read about or not.

A reader that has gone (``| head``), a closed descriptor (``>&-``) or a full disk would otherwise
become an exception in the middle of the work, or in the interpreter's last flush.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


class _Descriptor(io.FileIO):
    """A standard descriptor; after the first error all that is written to it goes to /dev/null."""

    def __init__(self, number: int) -> None:
        super().__init__(number, "w", closefd=False)
        self.error: OSError | None = None

    def write(self, data: ReadableBuffer, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            self.error = error
            nowhere = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)
            return memoryview(data).nbytes


def steady() -> None:
    """Open the standard descriptors that are closed, and replace stdout and stderr."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:  # the lowest number that is free is what open(2) returns
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    sys.stdout = _stream(1, sys.stdout)
    sys.stderr = _stream(2, sys.stderr)


def _stream(number: int, was: TextIO | None) -> io.TextIOWrapper:
    """Return a stream like the interpreter's own, which is None where its descriptor was closed."""
    raw = _Descriptor(number)
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=was.encoding if was else "utf-8",
        errors=was.errors if was else "replace",
        line_buffering=number == 2 or raw.isatty(),
    )


def finish() -> None:
    """Write what is left, and say when not all of it could be written.

    A reader that has gone has read what it wanted.
    """
    sys.stdout.flush()
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    if isinstance(raw, _Descriptor) and raw.error and raw.error.errno != errno.EPIPE:
        say(f"not everything could be written to stdout: {raw.error.strerror}")


def say(text: str) -> None:
    """Write a line to stderr, without anything that would have to be imported for it."""
    with suppress(OSError):
        os.write(2, f"pageflip: {text}\n".encode())
