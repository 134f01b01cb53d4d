# SPDX-License-Identifier: GPL-2.0-or-later
"""Fixtures that several modules use."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from lab.base.layout import locked, socket_directory
from lab.base.process import GIT_LOCAL
from lab.guest.images import compile_agent

# Called by a git hook or `git rebase --exec`, the tests' own git must not write to that repository.
for _name in GIT_LOCAL:
    os.environ.pop(_name, None)

# A shell starts what is to run in the background with Ctrl-C ignored, and programs inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

# A busy host is no test's business: how long an example takes is not looked at.
settings.register_profile("pageflip", deadline=None)
settings.load_profile("pageflip")


@pytest.fixture(scope="session")
def compile_once(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Callable[..., None]:
    """As `compile_agent`, but the same sources are compiled once for all tests and all workers."""
    own = tmp_path_factory.getbasetemp()
    kept = (own if worker_id == "master" else own.parent) / "compiled"

    def compile_(source: Path, target: Path, **asked: object) -> None:
        assert asked in ({}, {"compiler": "cc", "extra": []})
        digest = hashlib.sha256()
        for path in sorted(source.iterdir()):
            digest.update(f"{path.name}\0".encode() + path.read_bytes())
        place = kept / digest.hexdigest()
        with locked(place):
            if not place.exists():
                made = place.with_suffix(".part")
                compile_agent(source, made, extra=["-Werror"])
                made.rename(place)
        shutil.copy(place, target)

    return compile_


@pytest.fixture
def sockets() -> Iterator[Path]:
    """A directory whose name is short enough for unix sockets."""
    with socket_directory() as directory:
        yield directory


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where journals are, for this test alone."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state"
