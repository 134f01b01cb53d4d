# SPDX-License-Identifier: GPL-2.0-or-later
"""Guest RAM in a file that two QEMUs open by its name, and that nobody has to remove."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lab.vm.cmdline import Backing


@contextmanager
def ram_file(backing: Backing) -> Iterator[Path | None]:
    """Have such a file for the block, where `backing` needs one.

    It is in memory and has no name but that of a descriptor of the lab's (proc_pid_fd(5)): it goes
    with its last user, however the lab ends.
    """
    if backing is not Backing.FILE:
        yield None
        return
    descriptor = os.memfd_create("pageflip-ram")
    try:
        yield Path(f"/proc/{os.getpid()}/fd/{descriptor}")
    finally:
        os.close(descriptor)
