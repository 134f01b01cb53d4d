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
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, RootModel, Tag

from lab.base.errors import CannotTellError, UsageError
from lab.base.files import sha256_of
from lab.base.layout import Layout, locked
from lab.base.process import run
from lab.base.progress import note
from lab.guest import compiler, initramfs, rootfs
from lab.guest.compiler import compile_agent, compile_payload
from lab.guest.rootfs import System
from lab.source import debian
from lab.source.releases import X86_64, FileName, Strict, Word, load_toml

#: Gets packages of a suite: verified .deb files by package name.
Fetch = Callable[..., Mapping[str, Path]]
#: Tells all that a system of some packages consists of.
Closure = Callable[[Layout, str, list[str]], list[str]]

_RECORD = "image.json"
#: Raised when the way images are made changes, so that old ones are not taken for new.
_FORMAT = 1


class LinuxGuest(Strict):
    """A guest that is a Linux kernel, an initramfs and the agent in it."""

    kind: Literal["linux"] = "linux"
    description: str
    architecture: Word = X86_64
    board: Word = "q35"
    cpu: str = ""
    #: The directory of its sources, where that is another guest's.
    sources: FileName | None = None
    #: What the agent is linked with, where the compiler's own libraries are for another machine.
    libraries: tuple[Word, ...] = ()
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
    architecture: Word = X86_64
    board: Word = "q35"
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
    cpu: str = ""  # what -cpu takes, where not the board's own


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

    @property
    def source(self) -> str:
        """The directory of its own sources, in `guests`."""
        return getattr(self.guest, "sources", None) or self.name

    @property
    def compiler(self) -> str:
        """The compiler of what runs in it."""
        return compiler.of(self.guest.architecture)

    def ingredients(self) -> dict[str, Any]:
        """Return all that decides what the image will be: its key is the hash of this."""
        ours = [
            path
            for part in ("agent", self.source)
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
            "compiler": compiler.version(self.compiler),
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
            linker = compiler.version("ld")
            return {"flags": [*compiler.PAYLOAD_CFLAGS, *compiler.WARNINGS], "linker": linker}
        flags = [*compiler.CFLAGS, *compiler.WARNINGS]
        # Those of another machine's are among the packages.
        ours = {} if self.guest.libraries else {"libraries": compiler.static_libraries()}
        return {"flags": flags, **ours}


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
    """Return the guests that take no more than packages.txt lists: no disk, no other compiler."""
    guests = load_guests(layout).items()
    return [
        name
        for name, one in guests
        if one.architecture == X86_64 and (isinstance(one, MultibootGuest) or not one.system)
    ]


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


def _recipe(name: str, layout: Layout, fetch: Fetch, closure: Closure) -> _ImageRecipe:
    """Return the recipe of a guest, the kernel's metapackage replaced by the kernel itself."""
    guest = named(layout, name)
    compiler.of(guest.architecture)  # before anything is fetched
    if isinstance(guest, MultibootGuest):
        return _ImageRecipe(name, guest, layout.guests, {})
    if guest.architecture != X86_64:
        fetch = partial(fetch, architecture=debian.ARCHITECTURES[guest.architecture])
    wanted = [guest.kernel, *guest.packages, *guest.libraries]
    debs = dict(fetch(layout, guest.suite, wanted))
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
            source = recipe.guests / recipe.source
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
    sysroot = compiler.sysroot(guest.architecture, unpacked) if guest.libraries else []
    agent = root / "bin" / "agent"
    compile_agent(recipe.guests / "agent", agent, compiler=recipe.compiler, extra=sysroot)
    shutil.copyfile(recipe.guests / recipe.source / "init", root / "init")
    initramfs.pack(root, out / "initrd")
    kernel = initramfs.only(unpacked.glob("boot/vmlinuz-*"), "kernel")
    shutil.copyfile(kernel, out / "kernel")
    made = {"kernel": out / "kernel", "initrd": out / "initrd", "agent": agent}
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
        recipe.guest.cpu if isinstance(recipe.guest, LinuxGuest) else "",
    )


def _parts(guest: Guest) -> list[str]:
    """Return the files that an image consists of."""
    if isinstance(guest, MultibootGuest):
        return ["kernel"]
    return ["kernel", "initrd", *(["disk"] if guest.system else [])]
