# SPDX-License-Identifier: GPL-2.0-or-later
"""The checks around a live upgrade: both QEMUs compared, and migration's settings given back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from lab.base.deadline import DeadlineError
from lab.base.errors import CannotTellError
from lab.live import amend, compare, truth, vnc
from lab.live.aside import SUFFIXES
from lab.live.compare import Mismatch
from lab.live.journal import Owner, Resource
from lab.live.truth import Truth, kernel
from lab.live.truth.model import Migration
from lab.live.vnc import Screen
from lab.vm.monitor import Monitor, MonitorError, QmpError
from lab.vm.qemu import Qemu


class DifferentError(CannotTellError):
    """The new QEMU is not what the old one is; the guest was not moved."""


class Sameness:
    """Compares the new QEMU with the old one, before the guest is committed and after."""

    def __init__(self, old: Qemu, own: Sequence[Path], sockets: Path) -> None:
        #: What another QEMU has none of: the pid file, and what is between both.
        self._own = frozenset(f"{path}{suffix}" for path in own for suffix in SUFFIXES)
        # The new one may have the old one's standard error by another number until it runs.
        self._own |= {kernel.standard_error(old.pid)} - {""}
        self._sockets = sockets
        self.old = self._take(old)

    def _take(self, qemu: Qemu) -> Truth:
        found = truth.take(qemu.pid, qemu.monitor, self._own)
        between = str(self._sockets)
        return found.model_copy(
            update={
                "listeners": [one for one in found.listeners if between not in one.address],
                "files": [one for one in found.files if between not in one.name],
            }
        )

    def before(self, new: Qemu) -> None:
        """Raise DifferentError unless the new QEMU, which waits for the guest, is the same.

        What can still be told to it is told first.
        """
        amend.amend(self.old, new.monitor)
        old = vnc.unseen(self.old)
        if found := compare.differences(old, self._take(new), committed=False):
            raise DifferentError(f"the new QEMU is not the same: {in_words(found)}")

    def after(self, new: Qemu) -> list[str]:
        """Return what the new QEMU, which has the guest, has not in common with the old one.

        What can still be told to it is told first: it may not have been there before.
        """
        amend.amend(self.old, new.monitor)
        found = compare.differences(self.old, self._take(new), committed=True)
        return [str(one) for one in found]

    def resources(self) -> Iterator[Resource]:
        """Yield for a journal what `restore` sets."""
        yield Settings(self.old.migration).resource()
        yield Screen.of(self.old.displays).resource()

    def restore(self, qemu: Qemu) -> list[str]:
        """Set in the one that has the guest what it could not have before; return what fails."""
        both = Settings(self.old.migration), Screen.of(self.old.displays)
        try:
            return [text for one in both for text in one.restore(qemu.monitor)]
        except (MonitorError, QmpError, DeadlineError) as error:
            return [error.message]


class Settings:
    """Migration's settings as a resource of a journal: they are set again in who has the guest."""

    kind = "migration"

    def __init__(self, wanted: Migration) -> None:
        self._wanted = wanted

    @classmethod
    def read(cls, resource: Resource) -> Settings:
        """Return what a journal has."""
        return cls(Migration.model_validate_json(str(resource.facts["wanted"])))

    def resource(self) -> Resource:
        """Return it for a journal."""
        facts = {"wanted": self._wanted.model_dump_json()}
        return Resource(kind=self.kind, name="settings", facts=facts)

    def pass_on(self) -> None:
        """Do nothing: each QEMU has its own."""

    def settle(self, _owner: Owner) -> None:
        """Do nothing: a monitor is needed."""

    def restore(self, monitor: Monitor) -> list[str]:
        """Set migration as it was; return what could not be set."""
        return restore(monitor, self._wanted)


def restore(monitor: Monitor, wanted: Migration) -> list[str]:
    """Set a QEMU's migration as it is wanted, and return what it refuses.

    What it has never heard of is left out: it is a setting of another version's.
    """
    refused = []
    told = monitor.execute("query-migrate-capabilities")
    there = {one["capability"]: one["state"] for one in told}
    wrong = [
        {"capability": name, "state": state}
        for name, state in wanted.capabilities.items()
        if there.get(name, state) != state
    ]
    if wrong:
        try:
            monitor.execute("migrate-set-capabilities", {"capabilities": wrong})
        except QmpError as error:
            refused.append(error.message)
    parameters = monitor.execute("query-migrate-parameters")
    for name, value in wanted.parameters.items():
        if parameters.get(name, value) != value:
            try:
                monitor.execute("migrate-set-parameters", {name: value})
            except QmpError as error:
                refused.append(error.message)
    return refused


def in_words(found: Sequence[Mismatch], most: int = 5) -> str:
    """Return the differences, but not more than can be read."""
    more = f"; and {len(found) - most} more" if len(found) > most else ""
    return "; ".join(map(str, found[:most])) + more
