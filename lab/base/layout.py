# SPDX-License-Identifier: GPL-2.0-or-later
"""Where everything lives: the checkout, the caches, and one run's directory."""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from lab.base.errors import CannotTellError

#: What our temporary directories begin with, and how young they are left alone (s).
_PREFIX = "pageflip-run-"
_YOUNG_S = 10.0


def _root(package: Path) -> Path:
    """Return where patches/ and guests/ are: beside the package, or in it when it is installed."""
    return package.parent if (package.parent / "patches").is_dir() else package / "data"


#: The checkout, or the part of it that an installed package carries.
CHECKOUT = _root(Path(__file__).resolve().parents[1])


@dataclass(frozen=True)
class Layout:
    """The directories of one user and one checkout."""

    checkout: Path
    cache: Path
    out: Path

    @classmethod
    def default(cls) -> Layout:
        """Return the layout that the environment asks for (XDG_CACHE_HOME).

        Raises CannotTellError where there is no home directory, or no current one.
        """
        try:
            base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
            return cls(CHECKOUT, base.absolute() / "pageflip", Path.cwd() / "out")
        except RuntimeError as error:
            raise CannotTellError(
                f"there is no place for the caches: {error}",
                hint="set XDG_CACHE_HOME to a directory that you may write to",
            ) from error
        except OSError as error:
            raise CannotTellError(
                f"the current directory cannot be used: {error.strerror}",
                hint="run from a directory that is there",
            ) from error

    def into(self, out: Path | None) -> Layout:
        """Return the same, but for run directories that are made in `out`, where that is named."""
        return dataclasses.replace(self, out=out.absolute()) if out else self

    def complaint(self, error: OSError) -> CannotTellError | None:
        """Return `error` in words when it is about the caches; None when it is about others.

        That a file is missing there is not the user's doing.
        """
        missing = error.errno == errno.ENOENT and self.cache.is_dir()
        if missing or not isinstance(error.filename, str | bytes | os.PathLike):
            return None
        path = Path(os.fsdecode(error.filename)).absolute()
        if not path.is_relative_to(self.cache) and not self.cache.is_relative_to(path):
            return None
        return CannotTellError(
            f"the caches in {self.cache} cannot be used: {path}: {error.strerror}",
            hint="make it a directory that you may write to, or name another one with "
            "XDG_CACHE_HOME",
        )

    @property
    def downloads(self) -> Path:
        """Verified archives, each under its SHA-256."""
        return self.cache / "downloads"

    @property
    def apt(self) -> Path:
        """The private apt root: lists, cache and sources file of our own."""
        return self.cache / "apt"

    @property
    def trees(self) -> Path:
        """Unpacked and patched source trees, each under its key."""
        return self.cache / "trees"

    @property
    def builds(self) -> Path:
        """QEMU builds, each under its key."""
        return self.cache / "builds"

    @property
    def packaged(self) -> Path:
        """Distributions' QEMUs with their libraries, each set under its key."""
        return self.cache / "packaged"

    @property
    def ccache(self) -> Path:
        """The compiler cache that all builds share."""
        return self.cache / "ccache"

    @property
    def images(self) -> Path:
        """Guest images, each under its key."""
        return self.cache / "images"

    @property
    def firmware(self) -> Path:
        """Unpacked firmware packages, each set under its key."""
        return self.cache / "firmware"

    @property
    def patches(self) -> Path:
        """The patch series, one directory for each release."""
        return self.checkout / "patches"

    @property
    def guests(self) -> Path:
        """What the guest images are made of."""
        return self.checkout / "guests"

    def new_run(self, prefix: str = "") -> Path:
        """Make and return a fresh run directory, ``out/<prefix><time>-<random>``."""
        name = f"{prefix}{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(3)}"
        run = self.out / name
        try:
            run.mkdir(parents=True)
        except OSError as error:
            raise CannotTellError(
                f"cannot make the run directory {run}: {error.strerror}",
                hint="run from a directory you may write to, or name one with --out",
            ) from error
        return run


@contextmanager
def locked(path: Path, waiting: str = "") -> Iterator[None]:
    """Hold an advisory lock beside `path`, so that two runs do not build the same thing.

    The lock is the kernel's (flock): it goes with the process, however that ends.  When somebody
    else holds it, `waiting` is logged once.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path.with_name(path.name + ".lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        from lab.base.progress import note  # noqa: PLC0415 -- only the slow path prints

        note(waiting or f"waiting for another run that is making {path.name}")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def held(directory: Path) -> Iterator[None]:
    """Mark `directory` as in use; the mark goes with the process, however that ends."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def abandoned(base: Path, pattern: str) -> Iterator[Path]:
    """Yield directories of ours in `base` whose run was killed before it could clean up."""
    for directory in base.glob(pattern):
        try:
            if time.time() - directory.stat().st_mtime < _YOUNG_S:
                continue  # its run may be about to mark it
            descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            continue  # gone, or another user's
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield directory
        except OSError:
            pass
        finally:
            os.close(descriptor)


@contextmanager
def socket_directory(*, roomy: bool = False) -> Iterator[Path]:
    """A short-named private directory for unix sockets, removed afterwards.

    A socket's path holds at most 107 bytes (unix(7)), which a deep checkout exceeds.  What a killed
    run left is removed first.  With `roomy`, files as large as a guest may lie beside the sockets:
    the user's runtime directory, which is memory, is not taken.
    """
    runtime = "" if roomy else os.environ.get("XDG_RUNTIME_DIR", "")
    base = runtime if runtime and os.access(runtime, os.W_OK) else tempfile.gettempdir()
    for stale in abandoned(Path(base), f"{_PREFIX}*"):
        shutil.rmtree(stale, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=_PREFIX, dir=base) as directory, held(Path(directory)):
        yield Path(directory)
