# SPDX-License-Identifier: GPL-2.0-or-later
"""Guest images: what -kernel boots, the same to the bit for the same ingredients.

Two kinds: a Linux kernel with an initramfs of our own, and a payload that needs no Linux.  Nothing
is installed and nothing needs root: packages are unpacked into a private directory, the in-guest
agent is linked statically, and the image goes into the cache under the SHA-256 of everything that
it was made from.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, RootModel, Tag

from lab.base.errors import CannotTellError, UsageError
from lab.base.files import sha256_of
from lab.base.layout import Layout, locked
from lab.base.process import run
from lab.base.progress import note
from lab.guest import initramfs, rootfs
from lab.guest.rootfs import System
from lab.source import debian
from lab.source.releases import FileName, Strict, Word, load_toml

#: Gets packages of a suite: verified .deb files by package name.
Fetch = Callable[[Layout, str, list[str]], Mapping[str, Path]]
#: Tells all that a system of some packages consists of.
Closure = Callable[[Layout, str, list[str]], list[str]]

#: The agent's sources must compile with these without a word.
WARNINGS = ("-Wall", "-Wextra")
CFLAGS = ("-std=gnu11", "-O2", "-pthread", "-static", "-s", "-Wl,--build-id=none")
#: A payload has no C library, and some of its code runs where nothing saves SSE registers.
PAYLOAD_CFLAGS = (
    *("-std=gnu11", "-O2", "-ffreestanding", "-nostdlib", "-static", "-fno-pie", "-no-pie"),
    *("-mgeneral-regs-only", "-mno-red-zone", "-fno-stack-protector", "-fcf-protection=none"),
    *("-Wl,--build-id=none", "-Wl,-z,noexecstack", "-Wl,-z,max-page-size=4096"),
    "-Wl,--no-warn-rwx-segments",
)
#: QEMU's multiboot loader wants a 32-bit file, even for 64-bit code.
_PAYLOAD_FORMAT = "elf32-i386"
_STATIC_LIBRARIES = ("libc.a", "libjansson.a")
_RECORD = "image.json"
#: Raised when the way images are made changes, so that old ones are not taken for new.
_FORMAT = 1


class LinuxGuest(Strict):
    """A guest that is a Linux kernel, an initramfs and the agent in it."""

    kind: Literal["linux"] = "linux"
    description: str
    smallest_ram_mib: int = Field(default=256, gt=0)
    reserve_mib: int = Field(default=128, gt=0)
    suite: Word
    kernel: Word
    packages: tuple[Word, ...]
    modules: tuple[Word, ...]
    append: str
    files: dict[str, str]
    #: What is on its disk, which it then boots from.
    system: System | None = None


class MultibootGuest(Strict):
    """A guest that is one file: our own payload, which speaks the agent's protocol itself."""

    kind: Literal["multiboot"]
    description: str
    smallest_ram_mib: int = Field(gt=0)
    reserve_mib: int = Field(gt=0)
    shared: tuple[str, ...]


def _kind(value: Any) -> str:
    return str(value.get("kind", "linux")) if isinstance(value, dict) else str(value.kind)


#: One table of guests/guests.toml, which says what the keys mean.
Guest = LinuxGuest | MultibootGuest
_Table = Annotated[
    Annotated[LinuxGuest, Tag("linux")] | Annotated[MultibootGuest, Tag("multiboot")],
    Discriminator(_kind),
]


class _Guests(RootModel[dict[FileName, _Table]]):
    """All of guests/guests.toml."""


@dataclass(frozen=True)
class GuestImage:
    """A guest that can be booted with -kernel, and -initrd and -append where it has them."""

    name: str
    kernel: Path
    initrd: Path | None
    append: str
    disk: Path | None  # what its disk begins with (qcow2)
    packages: dict[str, str]  # version by package
    key: str
    sha256s: dict[str, str]  # of "kernel", for Linux of "initrd" and "agent", and of a "disk"


@dataclass(frozen=True)
class _ImageRecipe:
    """What one image is made from: the guest, our own sources, and .deb files by package name.

    ``debs`` are unpacked for the kernel and the initramfs, ``system`` is installed on the disk.
    """

    name: str
    guest: Guest
    guests: Path
    debs: Mapping[str, Path]
    system: Mapping[str, Path] = field(default_factory=dict)

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
            "debs": {package: sha256_of(deb) for package, deb in self.debs.items()},
            "packages": rootfs.versions(self.system)
            | {package: _field(deb, "Version") for package, deb in self.debs.items()},
            "files": {str(path.relative_to(self.guests)): sha256_of(path) for path in ours},
            "compiler": run(["cc", "--version"]).stdout.splitlines()[0],
            **self._toolchain(),
            **self._disk(),
        }

    def _disk(self) -> dict[str, Any]:
        if not self.system:
            return {}
        debs = {package: sha256_of(deb) for package, deb in self.system.items()}
        return {"system": debs, "tools": rootfs.tools()}

    def _toolchain(self) -> dict[str, Any]:
        if isinstance(self.guest, MultibootGuest):
            linker = run(["ld", "--version"]).stdout.splitlines()[0]
            return {"flags": [*PAYLOAD_CFLAGS, *WARNINGS], "linker": linker}
        libraries = {lib: sha256_of(path) for lib, path in static_libraries().items()}
        return {"flags": [*CFLAGS, *WARNINGS], "libraries": libraries}


def load_guests(layout: Layout) -> dict[str, Guest]:
    """Return every guest of guests.toml by name."""
    return load_toml(layout.guests / "guests.toml", _Guests).root


def named(layout: Layout, name: str) -> Guest:
    """Return a guest of guests.toml; raise UsageError when there is none of that name."""
    guests = load_guests(layout)
    if name not in guests:
        raise UsageError(f"there is no guest {name!r}", hint=f"one of: {', '.join(sorted(guests))}")
    return guests[name]


def plain(layout: Layout) -> list[str]:
    """Return the guests without a disk, for which packages.txt lists all that they take."""
    guests = load_guests(layout).items()
    return [name for name, one in guests if isinstance(one, MultibootGuest) or not one.system]


def build(
    name: str,
    layout: Layout,
    progress: Callable[[str], None] = note,
    *,
    fetch: Fetch | None = None,
    closure: Closure | None = None,
) -> GuestImage:
    """Return the image of guest `name`, made now unless the cache has it.

    Raises PreconditionError when this machine lacks what it is made with.
    """
    fetch, closure = fetch or debian.fetch_packages, closure or debian.closure
    recipe = _recipe(name, layout, fetch, closure)
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


def compile_payload(source: Path, target: Path, shared: Iterable[str]) -> None:
    """Link the payload in the directory `source`, and what it shares, into the file `target`."""
    own = sorted(path.name for pattern in ("*.S", "*.c") for path in source.glob(pattern))
    theirs = [f"../{name}" for name in shared]
    include = sorted({f"-I{Path(name).parent}" for name in theirs})
    hint = "a payload needs the packages gcc, binutils and libc6-dev"
    options = [*PAYLOAD_CFLAGS, *WARNINGS, *include, "-Wl,-T,link.ld"]
    # Relative names: no path of this machine gets into the file.
    run(["cc", *options, *own, *theirs, "-o", target], cwd=source, hint=hint)
    run(["objcopy", "--strip-all", "-O", _PAYLOAD_FORMAT, target], hint=hint)


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


def _recipe(name: str, layout: Layout, fetch: Fetch, closure: Closure) -> _ImageRecipe:
    """Return the recipe of a guest, the kernel's metapackage replaced by the kernel itself."""
    guest = named(layout, name)
    if isinstance(guest, MultibootGuest):
        return _ImageRecipe(name, guest, layout.guests, {})
    debs = dict(fetch(layout, guest.suite, [guest.kernel, *guest.packages]))
    depends = _field(debs[guest.kernel], "Depends")
    if real := re.search(r"\blinux-image-\d[\w.+~-]*", depends):
        del debs[guest.kernel]
        debs |= fetch(layout, guest.suite, [real.group()])
    if guest.system is None:
        return _ImageRecipe(name, guest, layout.guests, debs)
    rootfs.require(layout.guests / name)
    wanted = closure(layout, guest.suite, list(guest.system.packages))
    return _ImageRecipe(name, guest, layout.guests, debs, fetch(layout, guest.suite, wanted))


def _field(deb: Path, field: str) -> str:
    return run(["dpkg-deb", "--field", deb, field]).stdout.strip()


def _make(place: Path, recipe: _ImageRecipe, ingredients: Mapping[str, Any]) -> None:
    """Build the image beside `place` and rename it into place: it is there whole or not at all."""
    shutil.rmtree(place, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix="making-", dir=place.parent) as scratch:
        out = Path(scratch) / "out"
        out.mkdir()
        if isinstance(recipe.guest, MultibootGuest):
            source = recipe.guests / recipe.name
            compile_payload(source, out / "kernel", recipe.guest.shared)
            made = {"kernel": out / "kernel"}
        else:
            made = _make_linux(Path(scratch), out, recipe, recipe.guest)
        sha256s = {part: sha256_of(path) for part, path in made.items()}
        record = json.dumps({"ingredients": ingredients, "sha256s": sha256s}, indent=2)
        (out / _RECORD).write_text(record + "\n", encoding="utf-8")
        out.rename(place)


def _make_linux(
    scratch: Path, out: Path, recipe: _ImageRecipe, guest: LinuxGuest
) -> dict[str, Path]:
    """Put kernel and initramfs into `out`; return what is worth a checksum."""
    unpacked, root = scratch / "unpacked", scratch / "root"
    for directory in (unpacked, root / "bin", root / "modules"):
        directory.mkdir(parents=True)
    for deb in recipe.debs.values():
        run(["dpkg-deb", "--extract", deb, unpacked])
    initramfs.put_files(unpacked, root, guest.files)
    initramfs.put_modules(unpacked, root, guest.modules)
    compile_agent(recipe.guests / "agent", root / "bin" / "agent")
    shutil.copyfile(recipe.guests / recipe.name / "init", root / "init")
    initramfs.pack(root, out / "initrd")
    kernel = initramfs.only(unpacked.glob("boot/vmlinuz-*"), "kernel")
    shutil.copyfile(kernel, out / "kernel")
    made = {"kernel": out / "kernel", "initrd": out / "initrd", "agent": root / "bin" / "agent"}
    if guest.system:
        source = recipe.guests / recipe.name
        disk = out / "disk"
        rootfs.build(source, guest.system, guest.suite, recipe.system, made["agent"], disk)
        made["disk"] = disk
    return made


def _cached(place: Path, recipe: _ImageRecipe) -> GuestImage | None:
    """Return the image at `place`, or None when there is none or its files have changed."""
    try:
        record = json.loads((place / _RECORD).read_text(encoding="utf-8"))
        sha256s: dict[str, str] = record["sha256s"]
        packages: dict[str, str] = record["ingredients"]["packages"]
        parts = _parts(recipe.guest)
        if any(sha256_of(place / part) != sha256s[part] for part in parts):
            return None
    except (OSError, ValueError, KeyError):
        return None
    return GuestImage(
        recipe.name,
        place / "kernel",
        place / "initrd" if isinstance(recipe.guest, LinuxGuest) else None,
        recipe.guest.append if isinstance(recipe.guest, LinuxGuest) else "",
        place / "disk" if "disk" in parts else None,
        packages,
        place.name,
        sha256s,
    )


def _parts(guest: Guest) -> list[str]:
    """Return the files that an image consists of."""
    if isinstance(guest, MultibootGuest):
        return ["kernel"]
    return ["kernel", "initrd", *(["disk"] if guest.system else [])]
