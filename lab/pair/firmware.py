# SPDX-License-Identifier: GPL-2.0-or-later
"""The firmware that both QEMUs of a pair run with.

From Debian's packages, unpacked privately: the source packages lack the blobs.  One directory, for
one `-L`.  Both QEMUs get the same: a ROM of another size would not migrate.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from lab.base import process
from lab.base.errors import CannotTellError
from lab.base.files import key_of
from lab.base.layout import Layout, locked
from lab.base.progress import note
from lab.source import debian, fetch

_PACKAGES = ("seabios", "ipxe-qemu", "qemu-system-data")
_DIRECTORIES = ("usr/share/qemu", "usr/share/seabios", "usr/lib/ipxe/qemu")
#: What an x86_64 guest loads (the packages hold every architecture's), and the keymaps, without
#: which no VNC server starts.
_WANTED = ("*.bin", "*.rom", "keymaps/*")
#: Part of the key: raised when the same packages give another directory than before.
_RECIPE = 2


def prepare(layout: Layout) -> Path:
    """Return the directory of firmware for QEMU's `-L`.

    Where Debian's packages cannot be had, what came with an upstream source serves.  Raises
    CannotTellError when there is neither.
    """
    try:
        packages = debian.packages(layout, debian.SUITE, _PACKAGES)
    except CannotTellError as error:
        if not (own := from_upstream(layout)).is_dir():
            raise
        note(f"the firmware is the one that came with QEMU's source: {error}")
        return own
    parts = [str(_RECIPE), *(f"{one.file}={one.sha256}" for one in packages.values())]
    target = layout.firmware / key_of(*parts)[:16]
    if not target.is_dir():
        with locked(target):
            if not target.is_dir():
                _unpack([fetch.kept(layout, one) for one in packages.values()], target)
    return target


def from_upstream(layout: Layout) -> Path:
    """Return where the firmware of an upstream source is kept (it may not be there)."""
    return layout.firmware / "upstream"


def keep_upstream(layout: Layout, tree: Path) -> None:
    """Keep the firmware of an unpacked upstream source, for hosts without Debian's packages."""
    target = from_upstream(layout)
    with locked(target):
        if (tree / "pc-bios" / "bios-256k.bin").is_file() and not target.is_dir():
            with fetch.scratch(target) as directory:
                _collect([tree / "pc-bios"], directory / "all")
                (directory / "all").rename(target)


def _unpack(debs: list[Path], target: Path) -> None:
    with fetch.scratch(target) as directory:
        for deb in debs:
            process.run(["dpkg-deb", "--extract", str(deb), str(directory / "root")])
        collect(directory / "root", directory / "all")
        if not (directory / "all" / "bios-256k.bin").is_file():
            raise CannotTellError("the firmware packages hold no bios-256k.bin")
        (directory / "all").rename(target)


def collect(root: Path, target: Path) -> None:
    """Make `target` a directory of the firmware of packages that were unpacked in `root`."""
    _collect([root / name for name in _DIRECTORIES], target)


def _collect(sources: list[Path], target: Path) -> None:
    target.mkdir()
    for source in sources:
        for pattern in _WANTED:
            for file in sorted(source.glob(pattern)):
                if file.is_file():
                    copy = target / file.relative_to(source)
                    copy.parent.mkdir(exist_ok=True)
                    shutil.copyfile(file, copy)  # a link becomes what it points to
