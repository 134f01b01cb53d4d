# SPDX-License-Identifier: GPL-2.0-or-later
"""Cancelling a move that QEMU makes, so that the guest never runs twice.

A new QEMU runs the guest as soon as it has everything, and the old one learns of that later: if it
is told to cancel in between, it runs the guest as well.  The new one is therefore told first not to
start by itself, and if it has started, there is nothing to cancel any more.
"""

from __future__ import annotations

from lab.mechanisms.base import Mechanism
from lab.vm.monitor import Monitor
from lab.vm.qemu import Qemu

#: A new QEMU's RunState (QAPI) as long as it waits for its guest.
_WAITING = "inmigrate"
_RUNNING, _PAUSED = "running", "paused"


def call_off(mechanism: Mechanism, old: Qemu, new: Qemu, state: str) -> bool:
    """Cancel the move of a guest in that state; return whether it was still time to.

    Raises CannotTellError when one of both does not answer.
    """
    by_itself = mechanism.resumes and not mechanism.commits and state == _RUNNING
    if by_itself and not (new.connection and held_back(new.monitor)):
        return False
    old.monitor.execute("migrate_cancel")
    return True


def held_back(new: Monitor) -> bool:
    """Tell a new QEMU not to run its guest by itself; return False when it does so already.

    As long as it waits for one, ``stop`` takes its autostart away (qmp_stop in QEMU), and the guest
    arrives paused.  QEMU takes commands and arrivals in one thread, one after the other.
    """
    new.execute("stop")
    status = new.execute("query-status")["status"]
    if status == _PAUSED:  # it had the guest, and ran it
        new.execute("cont")
    return bool(status == _WAITING)
