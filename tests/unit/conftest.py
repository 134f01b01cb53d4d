# SPDX-License-Identifier: GPL-2.0-or-later
"""Fixtures that several modules use."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.base.layout import socket_directory
from lab.base.process import GIT_LOCAL

# Called by a git hook or `git rebase --exec`, the tests' own git must not write to that repository.
for _name in GIT_LOCAL:
    os.environ.pop(_name, None)


@pytest.fixture
def sockets() -> Iterator[Path]:
    """A directory whose name is short enough for unix sockets."""
    with socket_directory() as directory:
        yield directory
