# SPDX-License-Identifier: GPL-2.0-or-later
"""A new QEMU for a look alone, where a mechanism gives no moment to compare before the commit.

It waits for a guest that never comes (``-incoming defer``), has no guest memory of its own, leaves
images alone, and is killed when it has been compared.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

from lab.base import process
from lab.base.errors import CannotTellError
from lab.base.progress import note
from lab.host import facts
from lab.live import start
from lab.live.check import Sameness
from lab.live.look import Running
from lab.live.start import CommandLine
from lab.live.successor import Successor
from lab.vm.qemu import Qemu, VmFactory


def reasons(found: Running, made: Successor) -> Iterator[str]:
    """Yield why no other QEMU can be started beside the old one just to be looked at."""
    yield from _lacking(found, made)
    for name, chardev in (found.truth.chardevs if found.truth else {}).items():
        if ":" in chardev.where and "server" not in chardev.where:
            yield f"{name} would connect to {chardev.where} once more"


def _lacking(found: Running, made: Successor) -> Iterator[str]:
    """Yield what only one of two QEMUs can have."""
    yield from made.only_child
    for name, one in (found.truth.objects if found.truth else {}).items():
        path = str(one.properties.get("mem-path") or "")
        if one.properties.get("prealloc") or one.properties.get("hugetlb"):
            yield f"{name} would take its memory once more"
        elif path and facts.filesystem(Path(path)) == "hugetlbfs":
            yield f"{name} would take its huge pages once more"


def compare(
    factory: VmFactory, found: Running, made: Successor, new: Qemu, check: Sameness
) -> None:
    """Start a QEMU like `new` and compare it, or say why that is not done.

    Raises CannotTellError when it does not start or is not the same.
    """
    if why := list(reasons(found, made)):
        note(
            f"process {found.pid} and the new QEMU are compared when the guest has moved, and not "
            f"before: {'; '.join(dict.fromkeys(why))}"
        )
        return
    with _started(factory, found, new) as trial:
        check.before(trial)


def reason(factory: VmFactory, found: Running, made: Successor, new: Qemu) -> str:
    """Return why a QEMU like `new`, which has ended before it could be asked, does not start.

    The old QEMU started that one, and what it said is where the old one's output goes: with
    -daemonize nowhere.  Empty when this cannot be found out.
    """
    if any(_lacking(found, made)):
        return ""
    try:
        with _started(factory, found, new):
            return ""
    except CannotTellError as error:
        return error.message


@contextmanager
def _started(factory: VmFactory, found: Running, new: Qemu) -> Iterator[Qemu]:
    """Start a QEMU like `new` for a guest that never comes; raises CannotTellError."""
    command = dataclasses.replace(cast("CommandLine", new.machine), incoming=("defer",))
    # The kernel forgets who is to die with whom when a process becomes another user's.
    argv = [*start.as_user(found.pid, "--pdeathsig", "KILL"), *command.argv()]
    log = new.log.with_name("trial.log")
    with process.spawned(argv, log=log, cwd=found.cwd) as child:
        try:
            trial = Qemu("trial", command, child, log)
            factory.connect(trial)
            yield trial
        finally:
            child.kill()  # it would remove sockets by their names
