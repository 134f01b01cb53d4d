# SPDX-License-Identifier: GPL-2.0-or-later
"""What is being done to a manager, on disk before the first step.

From it `lab.managers.recover` gives back a manager that a lab has kept away and was killed
meanwhile, with what the guests are in by then.  The guests themselves have journals of their own
(`lab.live.journal`).
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from lab.base.errors import CannotTellError, PreconditionError
from lab.base.files import flush, write_durably
from lab.base.identity import Who
from lab.live import journal
from lab.managers.daemon import Daemon
from lab.managers.threads import Places, Threads
from lab.model import Model


class Guest(Model):
    """A guest as its manager knows it, before anything is done."""

    name: str
    #: What has to be the same afterwards, in the manager's words.
    identity: str
    pid: int
    monitor: Path
    #: The program that its manager would start for it.
    emulator: Path
    #: Files that its manager opened for this process.
    own: tuple[Path, ...] = ()
    #: Where what its QEMU says ends up, if its manager has a log.
    log: Path | None = None


class Before(Model):
    """What its manager knew of a guest's threads, and where they ran."""

    threads: Threads
    places: Places
    #: The index of each of the guest's processors, by the manager's number for it.
    processors: dict[int, int]


class Errand(Model):
    """What is being done to one manager: it is kept away from some guests for a while."""

    version: Literal[1] = 1
    began: str = Field(description="UTC")
    lab: Who
    connection: str = Field(description="as --connect names it")
    daemon: Daemon
    guests: tuple[Guest, ...]
    before: dict[str, Before] = Field(default={}, description="by the guests' names")

    @property
    def path(self) -> Path:
        """Its file."""
        return _directory() / f"{self.lab.pid}-{self.lab.start}.json"

    def write(self) -> None:
        """Write it down; raise PreconditionError when that cannot be."""
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_durably(self.path, self.model_dump_json(indent=2) + "\n")
        except OSError as error:
            raise PreconditionError(
                f"what is about to be done to {self.connection} cannot be written down in "
                f"{self.path.parent}: {error.strerror}",
                hint="name another directory with XDG_STATE_HOME",
            ) from error

    def finish(self) -> None:
        """Remove it: there is nothing left to be done."""
        self.path.unlink(missing_ok=True)
        with suppress(OSError):
            flush(self.path.parent)


def _directory() -> Path:
    return journal.directory() / "managers"


def read(path: Path) -> Errand:
    """Read one; raise CannotTellError for what is none, or is another version's."""
    try:
        return Errand.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise CannotTellError(
            f"{path}: is no journal that this version reads: {str(error).splitlines()[0]}",
            hint="use the version of pageflip that wrote it; or start the manager, and remove it",
        ) from error


def left() -> list[Errand]:
    """Read all that are there and whose lab is not; raise CannotTellError."""
    found = [read(path) for path in sorted(_directory().glob("[0-9]*.json"))]
    return [one for one in found if not one.lab.there]


def check_finished(connection: str) -> None:
    """Raise PreconditionError when a lab was killed while it kept this manager away."""
    for one in left():
        if one.connection != connection:
            continue
        raise PreconditionError(
            f"an upgrade of {', '.join(guest.name for guest in one.guests)} that began at "
            f"{one.began} was not finished, and {connection} may have been left without its daemon",
            hint="./pageflip recover",
        )
