# SPDX-License-Identifier: GPL-2.0-or-later
"""QEMUs as distributions ship them, with their own loader, libraries and firmware.

The packages are unpacked below the cache; nothing of them is installed.  The host's libraries are
others, so the emulator is told its own: in what is unpacked its interpreter and its search path are
set (patchelf).  Started as ``ld.so --library-path ... qemu`` it would do without, but /proc/PID/exe
would be the loader, and nobody who looks at the process, or executes that, would have this QEMU.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from lab.base import process
from lab.base.errors import CannotTellError, UsageError
from lab.base.files import key_of, write_whole
from lab.base.layout import Layout, locked
from lab.base.progress import step
from lab.pair import firmware
from lab.source import debian, fetch
from lab.source.debian import Package
from lab.source.naming import Packaged
from lab.source.releases import X86_64

#: Part of the key: raised when the same packages give another directory than before.
_RECIPE = 1
_MARKER = "unpacked.json"
_EMULATOR = "usr/bin/qemu-system-"
_LOADER = "ld-linux-x86-64.so.2"
_LIBRARIES = ("usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu")
#: Nothing that runs reads these.
_UNREAD = ("usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/lintian")


@dataclass(frozen=True)
class Unpacked:
    """A distribution's QEMU.  ``sha256`` is the emulator's, as it was packaged."""

    name: str
    suite: str
    version: str
    qemu: Path
    firmware: Path
    sha256: str
    packages: dict[str, str]
    #: What its guests are.
    architecture: str = X86_64


def prepare(layout: Layout, asked: Packaged, architecture: str = X86_64) -> Unpacked:
    """Return the QEMU that `asked` says, fetched and unpacked if it is not there yet.

    It runs guests of `architecture`.

    The newest of its suite when it is first asked for; afterwards the same one, from the cache.
    Raises CannotTellError when it cannot be had.
    """
    if not (wanted := asked.packages.get(architecture)):
        raise UsageError(f"{asked.name}: no packages for guests of {architecture} are known here")
    names = debian.closure(layout, asked.suite, wanted, essential=False)
    packages = debian.packages(layout, asked.suite, names)
    parts = [str(_RECIPE), *(f"{one.file}={one.sha256}" for one in packages.values())]
    stem = _named(asked, packages[wanted[0]].version)
    directory = layout.packaged / f"{stem}-{key_of(*parts)[:16]}"
    found = _read(directory)
    if found is None:
        with locked(directory, f"waiting for another run that is unpacking {asked.name}"):
            found = _read(directory) or _unpack(layout, asked, architecture, packages, directory)
    return found


def existing(layout: Layout, asked: Packaged, architecture: str = X86_64) -> Unpacked | None:
    """Return what of `asked` is in the cache, for guests of `architecture`; nothing is fetched."""
    if not (wanted := asked.packages.get(architecture)):
        return None
    known = debian.known(layout, asked.suite)
    version = known[wanted[0]].version if wanted[0] in known else ""
    markers = layout.packaged.glob(f"{_named(asked, version)}-*/{_MARKER}")
    unpacked = (found for one in markers if (found := _read(one.parent)))
    return next((one for one in unpacked if one.architecture == architecture), None)


def _named(asked: Packaged, version: str) -> str:
    return f"{asked.name}-{version}".replace(":", "-")


def _read(directory: Path) -> Unpacked | None:
    """Return what is in `directory`, if all of it is, and the directory where it was made."""
    try:
        kept = json.loads((directory / _MARKER).read_text(encoding="utf-8"))
        place = Path(kept.pop("place"))
        size = kept.pop("size")
        emulator = _EMULATOR + kept.get("architecture", X86_64)
        found = Unpacked(qemu=directory / emulator, firmware=directory / "firmware", **kept)
        whole = found.qemu.stat().st_size == size and place == directory
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if whole else None


def _unpack(
    layout: Layout,
    asked: Packaged,
    architecture: str,
    packages: dict[str, Package],
    directory: Path,
) -> Unpacked:
    """Make `directory`, its marker last."""
    if shutil.which("patchelf") is None:
        raise CannotTellError(
            f"{asked.name} cannot be started here: patchelf is not there, which tells it its own "
            "libraries",
            hint="apt-get install patchelf",
        )
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    with step(f"unpacking {asked.name} ({len(packages)} packages)") as tick:
        for number, one in enumerate(packages.values(), 1):
            process.run(["dpkg-deb", "--extract", str(fetch.kept(layout, one)), str(directory)])
            tick(number, len(packages))
    for name in _UNREAD:
        shutil.rmtree(directory / name, ignore_errors=True)
    emulator = directory / (_EMULATOR + architecture)
    if not emulator.is_file():
        raise CannotTellError(f"the packages of {asked.name} hold no {_EMULATOR}{architecture}")
    sha256 = fetch.sha256_of(emulator)
    _tell_libraries(emulator, directory)
    firmware.collect(directory, directory / "firmware")
    found = Unpacked(
        name=asked.name,
        suite=asked.suite,
        version=packages[asked.packages[architecture][0]].version,
        qemu=emulator,
        firmware=directory / "firmware",
        sha256=sha256,
        packages={name: one.version for name, one in packages.items()},
        architecture=architecture,
    )
    kept = {
        "name": found.name,
        "suite": found.suite,
        "version": found.version,
        "sha256": found.sha256,
        "packages": found.packages,
        "architecture": architecture,
        "place": str(directory),
        "size": emulator.stat().st_size,
    }
    write_whole(directory / _MARKER, json.dumps(kept, indent=2) + "\n")
    return found


def _tell_libraries(emulator: Path, root: Path) -> None:
    """Have `emulator` use the loader and the libraries below `root`, and only those.

    By DT_RPATH rather than DT_RUNPATH: the libraries' own libraries, and modules, are looked for in
    there as well (ld.so(8)).
    """
    loaders = [one for one in root.rglob(_LOADER) if one.is_file() and not one.is_symlink()]
    if len(loaders) != 1:
        raise CannotTellError(f"the packages hold {len(loaders)} loaders named {_LOADER}, not one")
    path = ":".join(str(root / name) for name in _LIBRARIES)
    argv = ["patchelf", "--set-interpreter", str(loaders[0]), "--force-rpath", "--set-rpath", path]
    process.run([*argv, str(emulator)])
