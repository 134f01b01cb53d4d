# SPDX-License-Identifier: GPL-2.0-or-later
"""``pageflip recover``: managers that a lab has kept away, and was killed meanwhile."""

from __future__ import annotations

from lab.base.errors import CannotTellError
from lab.base.progress import note
from lab.managers import named
from lab.managers.journal import Errand
from lab.managers.upgrade import adopt


def recover(errand: Errand) -> None:
    """Give a manager back, with what the guests are in by now; it can be done again.

    Who runs each guest has been settled before (`lab.live.recover`).  Raises CannotTellError; what
    is left to be done stays on disk then.
    """
    if errand.lab.there:
        raise CannotTellError(
            f"another lab, process {errand.lab.pid}, is at work at {errand.connection}",
            hint="wait until it has ended",
        )
    manager = named(errand.connection)
    with manager.resumed(errand):
        found = adopt(manager, errand.guests)
    for guest in errand.guests:
        if guest.name in found:
            manager.verify(guest, found[guest.name])
    errand.finish()
    note(f"{errand.connection} is managed again")
