# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest's disk for one run, and what is wrong with it, as seen from outside."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from lab.base.layout import socket_directory
from lab.base.process import Argv, run

_SBIN = "/usr/sbin:/sbin"
_HINT = "install the package qemu-utils; is there room on the file system?"


def overlay(base: Path | None, directory: Path) -> Path | None:
    """Make a disk in `directory` that begins as `base` and takes what is written (both qcow2).

    Returns None for a guest that has none.
    """
    if base is None:
        return None
    disk = directory / "disk.qcow2"
    how = ["-q", "-f", "qcow2", "-F", "qcow2", "-b", str(base)]
    run(["qemu-img", "create", *how, disk], hint=_HINT)
    return disk


def damage(disk: Path) -> list[str]:
    """Say what is wrong with a qcow2 disk and the ext4 file system on it.

    A QEMU may have it open, but stands still with everything written, the file system frozen.
    """
    checked = run(["qemu-img", "check", "-U", "-q", "-f", "qcow2", disk], check=False, hint=_HINT)
    if checked.returncode:
        return [f"qemu-img check: {_last(checked.stdout)}"]
    with socket_directory(roomy=True) as scratch:
        raw = scratch / "disk.raw"
        run(["qemu-img", "convert", "-U", "-f", "qcow2", "-O", "raw", disk, raw], hint=_HINT)
        # It is where an ordinary user's PATH does not lead.
        e2fsck = shutil.which("e2fsck", path=f"{os.environ.get('PATH', os.defpath)}:{_SBIN}")
        argv: Argv = (e2fsck or "e2fsck", "-f", "-n", raw)
        checked = run(argv, check=False, hint="install e2fsprogs")
    return [f"e2fsck: {_last(checked.stdout)}"] if checked.returncode else []


def _last(output: str) -> str:
    return "; ".join(output.split("\n")[-6:]).strip("; ")
