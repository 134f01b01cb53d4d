# SPDX-License-Identifier: GPL-2.0-or-later
"""Two processes with one address space, and what stands against it."""

from __future__ import annotations

import os
import subprocess
import sys

from lab.base import kcmp
from lab.live import joined


def test_filters_and_what_is_not_told_stand_against_it() -> None:
    assert not joined.filtered("0")
    assert joined.filtered("2")
    assert joined.filtered("")  # this kernel does not tell


def test_so_do_mappings_if_there_are_too_many() -> None:
    assert not list(joined.crowded(1000, 3024))
    (why,) = joined.crowded(1000, 3023)
    assert "need 3024 mappings" in why
    assert "vm.max_map_count is 3023" in why


def test_a_process_shares_all_memory_with_itself_only() -> None:
    other = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        assert kcmp.works()
        assert kcmp.same_memory(os.getpid(), os.getpid())
        assert not kcmp.same_memory(os.getpid(), other.pid)
        assert not kcmp.same_memory(os.getpid(), 0)
    finally:
        other.communicate(b"\n")


def test_it_is_alone_when_proc_says_its_name() -> None:
    argv = [sys.executable, "-c", "input()", "a mark"]
    with subprocess.Popen(argv, stdin=subprocess.PIPE) as other:
        joined.wait_alone(other.pid, "a mark")
        other.communicate(b"\n")
