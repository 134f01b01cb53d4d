# SPDX-License-Identifier: GPL-2.0-or-later
"""Guest images: a kernel and an initramfs, the same to the bit for the same ingredients.

Nothing is installed and nothing needs root: packages are unpacked into a private directory, the
in-guest agent is linked statically, and the image goes into the cache under the SHA-256 of
everything that it was made from.
"""

from __future__ import annotations

import hashlib
import json
import lzma
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import RootModel

from lab import debian
from lab.config import FileName, Strict, Word, load_toml
from lab.errors import CannotTellError, UsageError
from lab.layout import Layout, locked
from lab.progress import note
from lab.run import run

#: Gets packages of a suite: verified .deb files by package name.
Fetch = Callable[[Layout, str, list[str]], Mapping[str, Path]]

#: The agent's sources must compile with these without a word.
WARNINGS = ("-Wall", "-Wextra")
CFLAGS = ("-std=gnu11", "-O2", "-pthread", "-static", "-s", "-Wl,--build-id=none")
_STATIC_LIBRARIES = ("libc.a", "libjansson.a")
_RECORD = "image.json"
#: Raised when the way images are made changes, so that old ones are not taken for new.
_FORMAT = 1


class Guest(Strict):
    """One table of guests/guests.toml, which says what the keys mean."""

    description: str
    suite: Word
    kernel: Word
    packages: tuple[Word, ...]
    modules: tuple[Word, ...]
    append: str
    files: dict[str, str]


class _Guests(RootModel[dict[FileName, Guest]]):
    """All of guests/guests.toml."""


@dataclass(frozen=True)
class GuestImage:
    """A guest that can be booted with -kernel, -initrd and -append."""

    name: str
    kernel: Path
    initrd: Path
    append: str
    packages: dict[str, str]  # version by package
    key: str
    sha256s: dict[str, str]  # of "kernel", "initrd" and "agent"


@dataclass(frozen=True)
class _Recipe:
    """What one image is made from: the guest, our own sources, and .deb files by package name."""

    name: str
    guest: Guest
    guests: Path
    debs: Mapping[str, Path]

    def ingredients(self) -> dict[str, Any]:
        """Return all that decides what the image will be: its key is the hash of this."""
        ours = [
            path
            for part in ("agent", self.name)
            for path in (self.guests / part).rglob("*")
            if path.is_file()
        ]
        return {
            "format": _FORMAT,
            "guest": self.guest.model_dump(),
            "debs": {package: _sha256(deb) for package, deb in self.debs.items()},
            "packages": {package: _field(deb, "Version") for package, deb in self.debs.items()},
            "files": {str(path.relative_to(self.guests)): _sha256(path) for path in ours},
            "flags": [*CFLAGS, *WARNINGS],
            "compiler": run(["cc", "--version"]).stdout.splitlines()[0],
            "libraries": {lib: _sha256(path) for lib, path in static_libraries().items()},
        }


def load_guests(layout: Layout) -> dict[str, Guest]:
    """Return every guest of guests.toml by name."""
    return load_toml(layout.guests / "guests.toml", _Guests).root


def named(layout: Layout, name: str) -> Guest:
    """Return a guest of guests.toml; raise UsageError when there is none of that name."""
    guests = load_guests(layout)
    if name not in guests:
        raise UsageError(f"there is no guest {name!r}", hint=f"one of: {', '.join(sorted(guests))}")
    return guests[name]


def build(
    name: str, layout: Layout, progress: Callable[[str], None] = note, *, fetch: Fetch | None = None
) -> GuestImage:
    """Return the image of guest `name`, made now unless the cache has it."""
    recipe = _recipe(name, layout, fetch or debian.fetch_packages)
    ingredients = recipe.ingredients()
    key = hashlib.sha256(json.dumps(ingredients, sort_keys=True).encode()).hexdigest()
    place = layout.images / key
    with locked(place, f"waiting for another run that builds guest {name}"):
        image = _cached(place, recipe)
        if image is None:
            progress(f"building guest {name}")
            _make(place, recipe, ingredients)
            image = _cached(place, recipe)
    if image is None:
        raise CannotTellError(f"guest image {place} was damaged right after it was built")
    return image


def compile_agent(source: Path, target: Path, *, extra: Iterable[str] = ()) -> None:
    """Link the in-guest agent statically from the directory `source` into the file `target`."""
    sources = sorted(path.name for path in source.glob("*.c"))
    # Relative names: no path of this machine gets into the file.
    run(
        ["cc", *CFLAGS, *WARNINGS, *extra, *sources, "-ljansson", "-o", target],
        cwd=source,
        hint="the agent needs the packages gcc, libc6-dev and libjansson-dev",
    )


def static_libraries() -> dict[str, Path]:
    """Return the static libraries that the agent is linked with, by name."""
    found = {
        name: Path(run(["cc", f"-print-file-name={name}"]).stdout.strip())
        for name in _STATIC_LIBRARIES
    }
    for name, path in found.items():
        if not path.is_absolute():
            raise CannotTellError(
                f"the compiler finds no {name}",
                hint="install the packages libc6-dev and libjansson-dev",
            )
    return found


def _recipe(name: str, layout: Layout, fetch: Fetch) -> _Recipe:
    """Return the recipe of a guest, the kernel's metapackage replaced by the kernel itself."""
    guest = named(layout, name)
    debs = dict(fetch(layout, guest.suite, [guest.kernel, *guest.packages]))
    depends = _field(debs[guest.kernel], "Depends")
    if real := re.search(r"\blinux-image-\d[\w.+~-]*", depends):
        del debs[guest.kernel]
        debs |= fetch(layout, guest.suite, [real.group()])
    return _Recipe(name, guest, layout.guests, debs)


def _field(deb: Path, field: str) -> str:
    return run(["dpkg-deb", "--field", deb, field]).stdout.strip()


def _make(place: Path, recipe: _Recipe, ingredients: Mapping[str, Any]) -> None:
    """Build the image beside `place` and rename it into place: it is there whole or not at all."""
    shutil.rmtree(place, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix="making-", dir=place.parent) as scratch:
        unpacked, root, out = (Path(scratch) / part for part in ("unpacked", "root", "out"))
        for directory in (unpacked, root / "bin", root / "modules", out):
            directory.mkdir(parents=True)
        for deb in recipe.debs.values():
            run(["dpkg-deb", "--extract", deb, unpacked])
        _put_files(unpacked, root, recipe.guest.files)
        _put_modules(unpacked, root, recipe.guest.modules)
        compile_agent(recipe.guests / "agent", root / "bin" / "agent")
        shutil.copyfile(recipe.guests / recipe.name / "init", root / "init")
        _pack(root, out / "initrd")
        shutil.copyfile(_only(unpacked.glob("boot/vmlinuz-*"), "kernel"), out / "kernel")
        record = {
            "ingredients": ingredients,
            "sha256s": {
                "kernel": _sha256(out / "kernel"),
                "initrd": _sha256(out / "initrd"),
                "agent": _sha256(root / "bin" / "agent"),
            },
        }
        (out / _RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        out.rename(place)


def _cached(place: Path, recipe: _Recipe) -> GuestImage | None:
    """Return the image at `place`, or None when there is none or its files have changed."""
    try:
        record = json.loads((place / _RECORD).read_text(encoding="utf-8"))
        sha256s: dict[str, str] = record["sha256s"]
        packages: dict[str, str] = record["ingredients"]["packages"]
        if any(_sha256(place / part) != sha256s[part] for part in ("kernel", "initrd")):
            return None
    except (OSError, ValueError, KeyError):
        return None
    return GuestImage(
        recipe.name,
        place / "kernel",
        place / "initrd",
        recipe.guest.append,
        packages,
        place.name,
        sha256s,
    )


def _put_files(unpacked: Path, root: Path, files: Mapping[str, str]) -> None:
    for target, source in files.items():
        (root / target).parent.mkdir(parents=True, exist_ok=True)
        try:
            shutil.copyfile(unpacked / source, root / target)
        except OSError as error:
            raise CannotTellError(f"the guest's packages have no {source}") from error


def _put_modules(unpacked: Path, root: Path, wanted: Iterable[str]) -> None:
    """Put the modules into root/modules and their load order into root/modules/list.

    Uncompressed, for insmod.  A kernel package has no modules.dep, which is made when it is
    installed: the dependencies are read from the modules themselves.
    """
    tree = _only(
        unpacked.glob("usr/lib/modules/*"),
        "directory of kernel modules",
        unpacked.glob("lib/modules/*"),
    )
    builtin = {
        _module_name(line)
        for line in (tree / "modules.builtin").read_text(encoding="utf-8").split()
    }
    available = {_module_name(path.name): path for path in tree.rglob("*.ko*")}
    order: list[str] = []

    def add(module: str) -> None:
        if module in builtin or module in order:
            return
        if module not in available:
            raise CannotTellError(f"the guest's kernel has no module {module}")
        content = _module_content(available[module])
        for needed in _module_depends(content):
            add(needed)
        (root / "modules" / f"{module}.ko").write_bytes(content)
        order.append(module)

    for module in wanted:
        add(module)
    (root / "modules" / "list").write_text(
        "".join(f"{module}.ko\n" for module in order), encoding="ascii"
    )


def _module_name(path: str) -> str:
    return Path(path).name.split(".")[0].replace("-", "_")


def _module_content(path: Path) -> bytes:
    match path.suffix:
        case ".ko":
            return path.read_bytes()
        case ".xz":
            return lzma.decompress(path.read_bytes())
        case suffix:
            raise CannotTellError(f"{path.name}: do not know how to unpack {suffix}")


def _module_depends(content: bytes) -> list[str]:
    """Return what a module needs, from the NUL-separated key=value strings of its .modinfo."""
    found = re.search(rb"\0depends=([^\0]*)\0", content)
    return (
        [_module_name(name) for name in found.group(1).decode().split(",") if name] if found else []
    )


def _pack(root: Path, initrd: Path) -> None:
    """Write the tree as a cpio archive that depends on nothing but names and contents.

    Not compressed: under TCG unpacking costs more than QEMU's loading of the larger file.
    """
    names = sorted(str(path.relative_to(root)) for path in root.rglob("*"))
    for name in names:
        path = root / name
        executable = path.is_dir() or name == "init" or name.startswith("bin/")
        path.chmod(0o755 if executable else 0o644)
        os.utime(path, (0, 0))
    run(
        [
            "cpio",
            "--create",
            "--null",
            "--format=newc",
            "--reproducible",
            "--owner=+0:+0",
            "--quiet",
            "-O",
            initrd,
        ],
        cwd=root,
        stdin="\0".join(names) + "\0",
        hint="install the package cpio",
    )


def _only(paths: Iterable[Path], what: str, otherwise: Iterable[Path] = ()) -> Path:
    found = list(paths) or list(otherwise)
    if len(found) != 1:
        raise CannotTellError(
            f"the guest's packages have {len(found)} of what should be one: {what}"
        )
    return found[0]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
