# SPDX-License-Identifier: GPL-2.0-or-later
"""Files and keys: a SHA-256, and a file that is written whole or not at all."""

from __future__ import annotations

import hashlib
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
