# SPDX-License-Identifier: GPL-2.0-or-later
"""Files and keys: a SHA-256, and a file that is written whole or not at all."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal; raise OSError when it cannot be read."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def key_of(*parts: str) -> str:
    """Return the key of what is made from `parts`: a SHA-256, in hexadecimal."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def write_whole(path: Path, text: str) -> None:
    """Write a file such that a reader, or a run that is killed, finds the old one or the new."""
    with tempfile.TemporaryDirectory(prefix=f".{path.name}-", dir=path.parent) as directory:
        beside = Path(directory) / path.name
        beside.write_text(text, encoding="utf-8")
        beside.replace(path)


def write_durably(path: Path, text: str) -> None:
    """Write a file as `write_whole` does, for its owner only, and return when it is on disk.

    Raises OSError, and leaves the file that was there before.
    """
    new = beside(path)
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        with open(descriptor, "w", encoding="utf-8", closefd=False) as file:
            file.write(text)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    new.replace(path)
    flush(path.parent)


def beside(path: Path) -> Path:
    """Return where `write_durably` writes first: a run that is killed may leave it there."""
    return path.with_name(f".{path.name}.new")


def flush(directory: Path) -> None:
    """Return when what has been made, renamed or removed in a directory is on disk (fsync(2))."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
