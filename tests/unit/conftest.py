# SPDX-License-Identifier: GPL-2.0-or-later
"""Fixtures that several modules use."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.layout import socket_directory


@pytest.fixture
def sockets() -> Iterator[Path]:
    """A directory whose name is short enough for unix sockets."""
    with socket_directory() as directory:
        yield directory
