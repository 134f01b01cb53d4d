# SPDX-License-Identifier: GPL-2.0-or-later
"""Where a QEMU release's source comes from, and that it is what was pinned.

The first of these that has it: the cache, the directory that PAGEFLIP_SOURCES names, the submodule,
the Debian source package, Debian's snapshot archive, upstream's tarball.  Nothing is unpacked that
has not verified; a user's own file that does not verify ends the search, so that nobody believes
that it was used.
"""

from __future__ import annotations

import enum
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from lab.base import process
from lab.base.deadline import Deadline
from lab.base.errors import CannotTellError, RefusedError, UsageError
from lab.base.files import key_of
from lab.base.layout import Layout, locked
from lab.base.progress import note, step
from lab.source import debian, fetch, gnupatch, mirror
from lab.source.releases import DebianSource, PinnedFile, PinnedTarball, Release, load_releases

_UNPACK_S = 600.0
#: Part of the key: raised when the same files are unpacked into another tree than before.
_RECIPE = 1


class Kind(enum.StrEnum):
    """In what form the source came."""

    DEBIAN = "debian"
    SUBMODULE = "submodule"
    UPSTREAM = "upstream"


@dataclass(frozen=True)
class Source:
    """A release's source, verified.

    ``origin`` says which step had it, ``sha256`` is by file name, ``commit`` is set (and ``files``
    empty) when it comes from the git repository ``repository``.
    """

    release: str
    version: str
    kind: Kind
    origin: str
    files: tuple[Path, ...] = ()
    sha256: dict[str, str] = field(default_factory=dict)
    commit: str = ""
    repository: Path | None = None

    @property
    def key(self) -> str:
        """What identifies the tree that this source unpacks into."""
        parts = [str(_RECIPE), self.kind, self.version, self.commit]
        parts += [f"{name}={value}" for name, value in sorted(self.sha256.items())]
        return key_of(*parts)

    def record(self) -> dict[str, object]:
        """Return it as the run directory records it (1-sources.json)."""
        return {
            "release": self.release,
            "version": self.version,
            "kind": self.kind.value,
            "origin": self.origin,
            "sha256": self.sha256,
            "commit": self.commit or None,
        }


@dataclass(frozen=True)
class _Search:
    """One release being looked for."""

    layout: Layout
    release: Release
    releases_url: str

    def source(self, kind: Kind, origin: str, files: Sequence[fetch.Pinned]) -> Source:
        return Source(
            self.release.name,
            self.release.version,
            kind,
            origin,
            tuple(fetch.kept(self.layout, file) for file in files),
            {file.name: file.sha256 for file in files},
        )

    @property
    def debian(self) -> DebianSource:
        if self.release.debian is None:
            raise CannotTellError("no Debian source package is pinned for this release")
        return self.release.debian

    @property
    def debian_files(self) -> tuple[PinnedFile, ...]:
        """What is unpacked; the .dsc only lists these."""
        return (self.debian.orig, self.debian.packaging)

    @property
    def tarball(self) -> PinnedTarball:
        upstream = self.release.upstream
        if upstream is None or upstream.sha256 is None:
            raise CannotTellError(
                f"the SHA-256 of upstream's tarball of {self.release.version} is not known here"
            )
        return PinnedTarball(name=upstream.name, sha256=upstream.sha256)

    def forms(self) -> Iterator[tuple[Kind, tuple[fetch.Pinned, ...]]]:
        """Yield the forms in which the release can be had as files."""
        if self.release.debian:
            yield Kind.DEBIAN, self.debian_files
        if self.release.upstream and self.release.upstream.sha256:
            yield Kind.UPSTREAM, (self.tarball,)


def _cache(search: _Search) -> Source:
    for kind, files in search.forms():
        if all(fetch.from_cache(search.layout, file) for file in files):
            return search.source(kind, "cache", files)
    raise CannotTellError("not there yet")


def _directory(search: _Search) -> Source:
    named = os.environ.get("PAGEFLIP_SOURCES")
    if not named:
        raise CannotTellError("PAGEFLIP_SOURCES is not set")
    directory = Path(named)
    if not directory.is_dir():
        raise UsageError(
            f"PAGEFLIP_SOURCES={named}: not a directory", hint="name one, or unset the variable"
        )
    for kind, files in search.forms():
        if all((directory / file.name).is_file() for file in files):
            hint = "replace it by the file that was pinned, or unset PAGEFLIP_SOURCES"
            for file in files:
                fetch.keep(search.layout, directory / file.name, file, hint)
            return search.source(kind, f"PAGEFLIP_SOURCES={named}", files)
    wanted = " and ".join(file.name for _, files in search.forms() for file in files)
    raise CannotTellError(f"{directory} has not all of {wanted}")


def _submodule(search: _Search) -> Source:
    repository, release = search.layout.checkout / "qemu", search.release
    if not (repository / ".git").exists():
        raise CannotTellError("not populated (git submodule update --init qemu)")
    argv = ["git", "-C", str(repository), "rev-parse", "--verify", "--quiet"]
    asked = process.run([*argv, f"refs/tags/{release.tag}^{{commit}}"], check=False)
    commit = asked.stdout.strip()
    if asked.returncode != 0 or not re.fullmatch(r"[0-9a-f]{40}", commit):
        raise CannotTellError(
            f"qemu/ has no tag {release.tag} (git -C qemu fetch --tags) {commit}".rstrip()
        )
    if release.commit and commit != release.commit:
        raise RefusedError(
            f"{repository}: refused, the tag {release.tag} is not the one that was pinned\n"
            f"    expected commit {release.commit}\n    found           {commit}",
            hint="fetch the tag from upstream again, or leave the submodule empty",
        )
    source = search.source(Kind.SUBMODULE, "submodule", ())
    return replace(source, commit=commit, repository=repository)


def _debian(search: _Search) -> Source:
    layout, package = search.layout, search.debian
    with fetch.scratch(layout.downloads / "source") as directory:
        for file in search.debian_files:
            # apt checks these and does not fetch them again.
            if kept := fetch.from_cache(layout, file):
                shutil.copyfile(kept, directory / file.name)
        found = debian.fetch_source(layout, package, directory)
        for file in search.debian_files:
            if file.name not in found:
                raise CannotTellError(f"the package has no {file.name}")
            fetch.keep(layout, found[file.name], file, "the mirror does not serve what was pinned")
    return search.source(Kind.DEBIAN, f"Debian {package.suite}", search.debian_files)


def _snapshot(search: _Search) -> Source:
    files = search.debian_files
    base = mirror.snapshot_base()
    for file in files:
        if fetch.from_cache(search.layout, file) is None:
            debian.fetch_from_snapshot(search.layout, file, base)
    return search.source(Kind.DEBIAN, "Debian's snapshot archive", files)


def _upstream(search: _Search) -> Source:
    tarball = search.tarball
    fetch.download(search.layout, f"{search.releases_url}/{tarball.name}", tarball)
    return search.source(Kind.UPSTREAM, "upstream", (tarball,))


_STEPS: tuple[tuple[str, Callable[[_Search], Source]], ...] = (
    ("cache", _cache),
    ("a directory of yours", _directory),
    ("submodule", _submodule),
    ("Debian source package", _debian),
    ("Debian's snapshot archive", _snapshot),
    ("upstream tarball", _upstream),
)
#: In these a file that does not verify is the user's own, and is not passed over.
_USERS_OWN = (_directory, _submodule)


def resolve(layout: Layout, release: Release, releases_url: str = "") -> Source:
    """Return the release's source from the first place that has it.

    `releases_url` is where upstream publishes ("": as ``releases.toml`` says).  Raises RefusedError
    when the user's own file is not what was pinned, and CannotTellError, with every place and why
    it had nothing, when there is none.
    """
    url = releases_url or load_releases(layout.patches / "releases.toml").upstream.releases
    search = _Search(layout, release, url)
    why: list[str] = []
    with locked(layout.downloads / release.version, "waiting for another run's download"):
        for name, look in _STEPS:
            try:
                return look(search)
            except CannotTellError as error:
                if isinstance(error, RefusedError):
                    if look in _USERS_OWN:
                        raise
                    note(str(error))
                why.append(f"    {name}: {error}")
    raise CannotTellError(
        f"the source of QEMU {release.version} is nowhere to be had:\n" + "\n".join(why),
        hint="put its files into a directory and name that in PAGEFLIP_SOURCES",
    )


def unpack(source: Source, into: Path) -> None:
    """Unpack `source` as the directory `into`, with Debian's own patches when it is Debian's.

    `into` appears complete or not at all.  Raises CannotTellError (disk full, patch missing).
    """
    with fetch.scratch(into) as directory, step(f"unpacking QEMU {source.version}"):
        tree = directory / f"qemu-{source.version}"
        tree.mkdir()
        if source.repository:
            archive = directory / "archive.tar"
            argv = ["git", "-C", str(source.repository), "archive", "--format=tar"]
            process.run([*argv, f"--output={archive}", source.commit])
            untar(archive, tree, strip=0)
        for file in source.files:
            # Debian's own tarball holds one directory, debian/, which stays.
            untar(file, tree, strip=0 if file.name.endswith(".debian.tar.xz") else 1)
        if source.kind is Kind.DEBIAN:
            _apply_debian_patches(tree)
        tree.rename(into)


def untar(archive: Path, tree: Path, strip: int) -> None:
    """Unpack a tarball into `tree` without its first `strip` directories.

    Raises CannotTellError when tar fails.
    """
    argv = ["tar", "--extract", "--no-same-owner", f"--strip-components={strip}"]
    argv += [f"--directory={tree}", f"--file={archive}"]
    process.run(
        argv,
        deadline=Deadline.after(_UNPACK_S, f"unpacking {archive.name}"),
        hint="is there room on the disk? df -h; the archive itself has verified",
    )


def _apply_debian_patches(tree: Path) -> None:
    directory = tree / "debian" / "patches"
    listed = directory / "series"
    if not listed.is_file():
        return  # a package without patches of its own
    for line in listed.read_text(encoding="utf-8").splitlines():
        name = line.split("#", 1)[0].strip()
        if name:
            gnupatch.apply(tree, directory / name)


def stock_tree(layout: Layout, source: Source) -> Path:
    """Return the unpacked source without our patches, from the cache: to read, not to edit."""
    tree = layout.trees / f"{source.version}-{source.key[:16]}"
    if not tree.is_dir():
        with locked(tree, f"waiting for another run that is unpacking {tree.name}"):
            if not tree.is_dir():
                unpack(source, tree)
    return tree
