# SPDX-License-Identifier: GPL-2.0-or-later
"""The lab's exceptions and exit codes.

::

    LabError                what went wrong, where, and what to do next
     +-- UsageError         exit 2: the user asked for something that cannot be
     +-- CannotTellError    exit 3: the lab could not do its work, QEMU was not judged
          +-- RefusedError  exit 3: something that was to be trusted did not verify
          +-- PreconditionError  exit 3: this host or this pair lacks what was asked for

A failed upgrade is not an exception: it is a verdict (exit 1).  Anything that is not a LabError is
a bug of the lab's, shown with its traceback, and exits with 3 as well: a broken lab must never
read as a broken QEMU.
"""

from __future__ import annotations

import enum


class ExitCode(enum.IntEnum):
    """What the process says to the shell."""

    PASS = 0
    FAIL = 1
    USAGE = 2
    CANNOT_TELL = 3
    INTERRUPTED = 130


class LabError(Exception):
    """Base of everything the lab raises on purpose.

    ``hint`` says what the user can do about it.
    """

    exit_code = ExitCode.CANNOT_TELL

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(LabError):
    """The command line, or a file the user wrote, is wrong."""

    exit_code = ExitCode.USAGE


class CannotTellError(LabError):
    """The lab could not do its work: no compiler, no memory, a refused download."""


class PreconditionError(CannotTellError):
    """This host, or this pair of QEMUs, cannot do it; a test that needs it is cancelled."""


class RefusedError(CannotTellError):
    """Something did not verify against what was pinned, and was not used."""
