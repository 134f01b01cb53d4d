# SPDX-License-Identifier: GPL-2.0-or-later
"""Files that people write, read into models: ``patches/releases.toml``.

Everything is checked when it is read; an error names the file and the key.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, model_validator

from lab.base.errors import UsageError

#: A file's own name: it is put below directories of ours, so nothing that could leave them.
FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9.+~_-]*$")]
Sha1 = Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
#: The architecture of guests that nothing is said of, as QEMU calls it.
X86_64 = "x86_64"
# What follows is put on command lines: nothing that a program could take for an option.
Word = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9.+~:_-]*$")]


class Strict(BaseModel):
    """A model that nobody changes, and that knows every key there is."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class PinnedFile(Strict):
    """One file to fetch: `size` in bytes, and what it must hash to."""

    name: FileName
    size: int = Field(gt=0)
    sha256: Sha256
    sha1: Sha1


class DebianSource(Strict):
    """A Debian source package: a .dsc, the upstream tarball and Debian's own patches."""

    package: Word
    version: Word
    suite: Word
    files: tuple[PinnedFile, ...]

    def _one(self, suffix: str) -> PinnedFile:
        return next(file for file in self.files if file.name.endswith(suffix))

    @property
    def orig(self) -> PinnedFile:
        """The upstream tarball."""
        return self._one(".orig.tar.xz")

    @property
    def packaging(self) -> PinnedFile:
        """The tarball that holds ``debian/``, Debian's patches among it."""
        return self._one(".debian.tar.xz")

    @model_validator(mode="after")
    def _complete(self) -> Self:
        for suffix in (".dsc", ".orig.tar.xz", ".debian.tar.xz"):
            found = [file.name for file in self.files if file.name.endswith(suffix)]
            if len(found) != 1:
                raise ValueError(f"files: want one that ends in {suffix}, found {len(found)}")
        return self


class PinnedTarball(Strict):
    """A tarball whose checksum is known."""

    name: FileName
    sha256: Sha256


class UpstreamTarball(Strict):
    """A release tarball of upstream's; not used while its checksum is unknown."""

    name: FileName
    sha256: Sha256 | None = None


class Release(Strict):
    """One QEMU release.  ``name`` is its key in the file, and its series' directory."""

    version: Word
    tag: Word
    commit: Sha1 | None = None
    debian: DebianSource | None = None
    upstream: UpstreamTarball | None = None
    configure: tuple[str, ...] = ()
    _name: str = PrivateAttr(default="")

    @property
    def name(self) -> str:
        """The release series, such as ``10.0``."""
        return self._name


class Roles(Strict):
    """Which releases are meant where the user names none, or says ``old`` or ``new``."""

    old: Word
    new: Word


class Flavour(Strict):
    """What is asked of QEMU's configure in one flavour, beyond what every build is.

    ``libraries`` are features, as ``--enable-`` has them, with the packages that each takes: one
    whose packages are missing is left out.
    """

    configure: tuple[str, ...] = ()
    libraries: dict[str, tuple[Word, ...]] = {}


class BuildOptions(Flavour):
    """What is asked of QEMU's configure, and of ninja; in the file, in every flavour.

    ``flavour`` is in the file the usual one, in `Releases.options` the one they are of; so is
    ``architecture``, the guest's.  Without the features ``needed`` nothing can be built.
    """

    targets: tuple[Word, ...]
    flavour: Word
    architecture: Word = X86_64
    needed: tuple[str, ...] = ()


class Architecture(Strict):
    """What QEMU cannot be built without for guests of one architecture: as in a `Flavour`."""

    libraries: dict[str, tuple[Word, ...]] = {}


class Distribution(Strict):
    """QEMUs as a distribution ships them: the packages to take, and its suites by their names.

    The packages are those of the guest's architecture.
    """

    packages: dict[Word, tuple[Word, ...]]
    suites: dict[Word, Word]


class Upstream(Strict):
    """Where upstream publishes."""

    releases: str = Field(pattern=r"^https://")


class Releases(Strict):
    """All of ``releases.toml``."""

    roles: Roles
    build: BuildOptions
    flavours: dict[Word, Flavour]
    architectures: dict[Word, Architecture] = {X86_64: Architecture()}
    distributions: dict[Word, Distribution] = {}
    upstream: Upstream
    releases: dict[Word, Release]

    def get(self, name: str) -> Release:
        """Return a release by its name, its version, or its role; raise UsageError."""
        name = {"old": self.roles.old, "new": self.roles.new}.get(name, name)
        for key, release in self.releases.items():
            if name in (key, release.version):
                return release
        known = ", ".join(f"{key} ({one.version})" for key, one in self.releases.items())
        raise UsageError(
            f"no QEMU release {name!r} is known here", hint=f"one of: {known}; or old, new"
        )

    @property
    def old(self) -> Release:
        """The release that guests run under."""
        return self.get(self.roles.old)

    @property
    def new(self) -> Release:
        """The release that they are moved to."""
        return self.get(self.roles.new)

    def options(self, flavour: str, architecture: str = X86_64) -> BuildOptions:
        """Return what a build of `flavour` is asked for, both being among those of the file."""
        its, guest = self.flavours[flavour], self.architectures[architecture]
        wanted = (*self.build.configure, *its.configure)
        return BuildOptions(
            configure=(f"--target-list={architecture}-softmmu", *wanted),
            libraries=self.build.libraries | its.libraries | guest.libraries,
            needed=tuple(guest.libraries),
            targets=(f"qemu-system-{architecture}", *self.build.targets),
            flavour=flavour,
            architecture=architecture,
        )

    @model_validator(mode="after")
    def _known(self) -> Self:
        for role, name in (("old", self.roles.old), ("new", self.roles.new)):
            if name not in self.releases:
                raise ValueError(f"roles: {role} = {name!r} is none of the releases")
        if self.build.flavour not in self.flavours:
            raise ValueError(f"build: flavour = {self.build.flavour!r} is none of the flavours")
        for name, release in self.releases.items():
            release._name = name  # a name is written once, as the key
        return self


Model = TypeVar("Model", bound=BaseModel)


def load_toml(path: Path, model: type[Model]) -> Model:
    """Read `path` into `model`.  Raise UsageError that names the file and the key."""
    try:
        with path.open("rb") as file:
            data: Mapping[str, object] = tomllib.load(file)
    except OSError as error:
        raise UsageError(
            f"cannot read {path}: {error.strerror}", hint="is the checkout complete? git status"
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: {error}", hint="correct the file") from error
    try:
        return model.model_validate(data)
    except ValidationError as error:
        said = "; ".join(
            f"{'.'.join(map(str, one['loc'])) or 'file'}: {one['msg']}" for one in error.errors()
        )
        raise UsageError(f"{path}: {said}", hint="correct these keys") from error


def load_releases(path: Path) -> Releases:
    """Read ``releases.toml``."""
    return load_toml(path, Releases)
