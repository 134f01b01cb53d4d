# SPDX-License-Identifier: GPL-2.0-or-later
"""The journal of a live upgrade: on disk before the first step and after each.

From it `lab.live.recover` brings to its end what a lab that was killed has left.  A step is written
down before it is taken, so that a journal never knows less than has been done.  What QEMU does
after that is not in it: the QEMUs are asked.
"""

from __future__ import annotations

import enum
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from lab.base.errors import CannotTellError, PreconditionError
from lab.base.files import beside, flush, write_durably
from lab.base.identity import Who
from lab.base.progress import note
from lab.base.record import as_json
from lab.live import exclusion
from lab.live.exclusion import Hold
from lab.model import Model

#: In the environment of a new QEMU that the lab starts, with `Entry.mark`: it is found by that.
MARK = "PAGEFLIP_UPGRADE"
#: More than any journal needs (bytes).
_LIMIT = 1 << 20


class LiveStep(enum.StrEnum):
    """How far an upgrade has got, at the most."""

    PLANNED = "planned"  # nothing has been touched
    STARTING = "starting"  # resources are put aside, and the new QEMU is started
    MOVING = "moving"  # the old QEMU may have been told to give the guest away
    RESUMING = "resuming"  # the new QEMU may have been told to run the guest
    SETTLING = "settling"  # it is known who has the guest: `Entry.runs`


class Owner(enum.StrEnum):
    """Who runs the guest."""

    OLD = "old"
    NEW = "new"
    EITHER = "either"  # only the two QEMUs know


class Resource(Model):
    """Something that both QEMUs would have, or that is only there for the upgrade.

    Who puts one aside knows from `facts` how to bring it back: `lab.live.recover` has a table of
    the kinds.
    """

    kind: str
    name: str
    facts: Mapping[str, int | str] = Field(default_factory=dict)


class Entry(Model):
    """A journal as it is on disk."""

    version: Literal[1] = 1
    began: str = Field(description="UTC")
    lab: Who
    old: Who
    new: Who | None = Field(default=None, description="None until it is known")
    mark: str = Field(description="in the new QEMU's command line or environment, and nowhere else")
    mechanism: str
    stops: bool = Field(description="whether the lab stops the guest, and lets it run again")
    ran: bool = Field(description="whether the guest was running")
    monitor: str = Field(description="the QMP socket that both QEMUs have")
    run_directory: str
    step: LiveStep = LiveStep.PLANNED
    runs: Owner = Owner.OLD
    resources: tuple[Resource, ...] = ()

    @property
    def name(self) -> str:
        """What its files are called."""
        return f"{self.old.pid}-{self.old.start}"

    @property
    def back(self) -> bool:
        """Whether the new QEMU cannot have run the guest, wherever it is."""
        return self.stops and self.step in {LiveStep.PLANNED, LiveStep.STARTING, LiveStep.MOVING}


def directory() -> Path:
    """Return where this user's journals are.

    It has to outlive what the QEMUs outlive: a login session, whose runtime directory goes with it,
    and a cache that is emptied.  A boot they do not outlive.  With the boot and the name space that
    the process numbers belong to in its name, a home that several hosts have is told apart.
    """
    state = os.environ.get("XDG_STATE_HOME", "")
    if state:
        base = Path(state)
    elif os.geteuid() == 0:
        base = Path("/run")
    else:
        try:
            base = Path.home() / ".local" / "state"
        except RuntimeError as error:
            raise CannotTellError(
                f"there is no place for journals: {error}",
                hint="set XDG_STATE_HOME to a directory that you may write to",
            ) from error
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    space = Path("/proc/self/ns/pid").stat().st_ino
    return base.absolute() / "pageflip" / "live" / f"{boot}-{space}"


class Journal:
    """A journal that is being written."""

    def __init__(self, path: Path, entry: Entry, hold: Hold) -> None:
        self._path = path
        self.entry = entry
        self._hold = hold

    def write(
        self,
        step: LiveStep | None = None,
        *,
        runs: Owner | None = None,
        new: Who | None = None,
        resources: tuple[Resource, ...] | None = None,
    ) -> None:
        """Write down what is new, before it is done.

        When it cannot be written any more the upgrade goes on: what has been written holds, and the
        QEMUs can be asked.
        """
        told = {"step": step, "runs": runs, "new": new, "resources": resources}
        changed = {name: value for name, value in told.items() if value is not None}
        self.entry = self.entry.model_copy(update=changed)
        try:
            _write(self._path, self.entry)
        except OSError as error:
            note(f"{self._path} cannot be written, and the upgrade goes on: {error.strerror}")
        if new:
            with suppress(exclusion.BusyError):
                self._hold.also(new)

    def finish(self) -> None:
        """Remove it: there is nothing left to be done."""
        beside(self._path).unlink(missing_ok=True)
        self._path.unlink(missing_ok=True)
        with suppress(OSError):
            flush(self._path.parent)


def _write(path: Path, entry: Entry) -> None:
    write_durably(path, as_json(entry))


def now() -> str:
    """Return the time as a journal has it."""
    return f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"


@contextmanager
def begun(entry: Entry) -> Iterator[Journal]:
    """Begin an upgrade: with its journal on disk, and with no other lab at its QEMU.

    Raises PreconditionError when one is there, or was and has left its work half done, and when the
    journal cannot be written; nothing has been touched then.  It stays unless it is finished.
    """
    place = directory()
    path = place / f"{entry.name}.json"
    with ExitStack() as stack:
        try:
            place.mkdir(mode=0o700, parents=True, exist_ok=True)
            hold = stack.enter_context(exclusion.alone(entry.old, path.with_suffix(".lock")))
            check_finished(entry.old)
            _write(path, entry)
        except OSError as error:
            raise PreconditionError(
                f"the journal of the upgrade cannot be kept in {place}: {error.strerror}",
                hint="name another directory with XDG_STATE_HOME; nothing has been changed",
            ) from error
        yield Journal(path, entry, hold)


@contextmanager
def reopened(entry: Entry) -> Iterator[Journal]:
    """Go on with a journal that was left.

    Raises BusyError when its lab, or another, is at it; CannotTellError when it has gone.
    """
    path = directory() / f"{entry.name}.json"
    with exclusion.alone(entry.old, path.with_suffix(".lock")) as hold:
        if entry.new:
            hold.also(entry.new)
        if not path.exists():
            raise CannotTellError(
                f"the upgrade of process {entry.old.pid} has been brought to its end meanwhile",
                hint="nothing is left to be done",
            )
        yield Journal(path, read(path), hold)


def read(path: Path) -> Entry:
    """Read a journal; raise CannotTellError for what is none, or is another version's."""
    try:
        with path.open("rb") as file:
            text = file.read(_LIMIT + 1)
        return Entry.model_validate(json.loads(text), strict=False)
    except ValidationError as error:
        first = error.errors()[0]
        why = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    except ValueError as error:
        why = f"it is no JSON: {error}"
    except OSError as error:
        why = error.strerror or str(error)
    raise CannotTellError(
        f"{path}: is no journal that this version reads: {why}",
        hint="use the version of pageflip that wrote it; or look at both QEMUs, and remove it",
    )


@dataclass(frozen=True)
class Left:
    """All journals that there are."""

    entries: tuple[Entry, ...]
    #: What is wrong with those that cannot be read.
    damaged: tuple[CannotTellError, ...]


def left() -> Left:
    """Read every journal of this user's; those of labs that are at work are among them."""
    entries, damaged = [], []
    for path in sorted(directory().glob("*.json")):
        try:
            entries.append(read(path))
        except CannotTellError as error:
            if path.exists():  # or its lab has just finished
                damaged.append(error)
    return Left(tuple(entries), tuple(damaged))


def sweep() -> None:
    """Remove what labs have left that were killed before they had a journal, or after it."""
    place = directory()
    for file in place.glob("*.lock"):
        pid, _, start = file.stem.partition("-")
        if not file.with_suffix(".json").exists():
            with (
                suppress(exclusion.BusyError, ValueError, OSError),
                exclusion.alone(Who(pid=int(pid), start=int(start)), file),
            ):
                beside(file.with_suffix(".json")).unlink(missing_ok=True)


def check_free(who: Who) -> None:
    """Raise PreconditionError when a lab is at work at a QEMU, or has left it half done."""
    with exclusion.seen(who):
        check_finished(who)


def check_finished(who: Who) -> None:
    """Raise PreconditionError when an upgrade from or to a QEMU has been left half done."""
    for entry in left().entries:
        if who in {entry.old, entry.new}:
            raise PreconditionError(
                f"an upgrade of process {entry.old.pid} that began at {entry.began} was not "
                f"finished; it had got as far as: {entry.step}",
                hint=hint(who.pid),
            )


def hint(pid: int) -> str:
    """Return the command that brings the upgrade of a QEMU to its end."""
    return f"./pageflip recover --pid {pid}"
