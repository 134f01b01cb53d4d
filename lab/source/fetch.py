# SPDX-License-Identifier: GPL-2.0-or-later
"""Files that are trusted only by their SHA-256: check them, keep them, download them."""

from __future__ import annotations

import http.client
import shutil
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol

from lab.base import files
from lab.base.errors import CannotTellError, RefusedError
from lab.base.layout import Layout
from lab.base.progress import Tick, note, step

_CHUNK = 1 << 20
_TIMEOUT_S = 30.0
_SCRATCH = ".tmp-"
_ABANDONED_S = 24 * 3600
#: No file of ours is larger; a server that sends more is sending something else (bytes).
SIZE_LIMIT = 1 << 30


class Pinned(Protocol):
    """What identifies a file: its name, and what it must hash to."""

    @property
    def name(self) -> str:
        """The file's own name."""

    @property
    def sha256(self) -> str:
        """What it must hash to."""


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal; raise CannotTellError if it cannot be read."""
    try:
        return files.sha256_of(path)
    except OSError as error:
        raise CannotTellError(f"cannot read {path}: {error.strerror}") from error


def verify(path: Path, pinned: Pinned, hint: str = "") -> None:
    """Raise RefusedError, with both hashes, unless `path` is the file that was pinned."""
    found = sha256_of(path)
    if found != pinned.sha256:
        raise RefusedError(
            f"{path}: refused, this is not the {pinned.name} that was pinned\n"
            f"    expected SHA-256 {pinned.sha256}\n"
            f"    found             {found}",
            hint=hint or "fetch the file again, from somebody you trust",
        )


def kept(layout: Layout, pinned: Pinned) -> Path:
    """Return where the file is kept once it has verified."""
    return layout.downloads / pinned.sha256 / pinned.name


def from_cache(layout: Layout, pinned: Pinned) -> Path | None:
    """Return the kept file, verified again; None when there is none.

    A kept file that went bad is named, removed, and counts as not there.
    """
    path = kept(layout, pinned)
    if not path.is_file():
        return None
    try:
        verify(path, pinned)
    except RefusedError as error:
        note(f"{error}\n    removed from the cache, it is fetched again")
        path.unlink(missing_ok=True)
        return None
    return path


@contextmanager
def scratch(beside: Path) -> Iterator[Path]:
    """A directory on the same file system as `beside`, so that what is made there can be renamed.

    Gone afterwards, whatever happened.
    """
    beside.parent.mkdir(parents=True, exist_ok=True)
    for left in beside.parent.glob(f"{_SCRATCH}*"):  # by a lab that was killed
        with suppress(OSError):
            if time.time() - left.stat().st_mtime > _ABANDONED_S:
                shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=_SCRATCH, dir=beside.parent) as directory:
        yield Path(directory)


def keep(layout: Layout, path: Path, pinned: Pinned, hint: str = "") -> Path:
    """Verify `path` and put a copy into the cache, all of it or nothing.

    The copy is what is verified: nobody can change it between the check and the use.
    """
    target = kept(layout, pinned)
    with scratch(target.parent) as directory:
        copy = directory / pinned.name
        try:
            shutil.copyfile(path, copy)
        except OSError as error:
            raise CannotTellError(f"cannot copy {path}: {error.strerror}") from error
        found = sha256_of(copy)
        if found != pinned.sha256:
            verify(path, pinned, hint)  # says it in the words of the file that was given
            raise RefusedError(f"{path}: refused, it changed while it was being read")
        target.parent.mkdir(parents=True, exist_ok=True)
        return copy.replace(target)


def download(layout: Layout, url: str, pinned: Pinned, size: int = 0) -> Path:
    """Download `url` into the cache and return it, verified.

    `size` is how many bytes it must have (0: not known).  Raises CannotTellError when it cannot be
    had, RefusedError when it is not the file that was pinned.
    """
    target = kept(layout, pinned)
    with scratch(target.parent) as directory, step(f"downloading {pinned.name}") as tick:
        part = directory / pinned.name
        try:
            _get(url, part, size, tick)
        except (urllib.error.URLError, http.client.HTTPException, OSError, ValueError) as error:
            why = getattr(error, "reason", None) or error
            raise CannotTellError(f"cannot download {url}: {why}") from error
        verify(part, pinned, f"{url} does not serve what was pinned")
        target.parent.mkdir(parents=True, exist_ok=True)
        return part.replace(target)


def _get(url: str, into: Path, size: int, tick: Tick) -> None:
    limit = size or SIZE_LIMIT
    request = urllib.request.Request(url, headers={"User-Agent": "pageflip"})  # noqa: S310
    if request.type not in ("http", "https"):
        raise ValueError(f"{request.type}: is not fetched from")
    with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer, into.open("wb") as file:  # noqa: S310
        done = 0
        while chunk := answer.read(_CHUNK):
            done += len(chunk)
            if done > limit:
                raise ValueError(f"it is longer than {limit} bytes")
            file.write(chunk)
            tick(done, size)
    if size and done != size:
        raise ValueError(f"it ended after {done} of {size} bytes")
