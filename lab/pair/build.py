# SPDX-License-Identifier: GPL-2.0-or-later
"""QEMU, built from a verified source and a series.

A build is kept under a key of everything that goes into it.  It is made in its own directory, the
marker ``built.json`` written last: what has no marker is unfinished, and is taken up where it was
left (lab.pair.recipe).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lab.base import process
from lab.base.errors import CannotTellError, PreconditionError
from lab.base.files import write_whole
from lab.base.layout import Layout
from lab.base.progress import note
from lab.pair.recipe import BuildRecipe, clear, compiled, making
from lab.source import fetch, naming
from lab.source.releases import X86_64, BuildOptions, Release
from lab.source.resolve import Source, resolve
from lab.source.series import Series

_MARKER = "built.json"
_DRIVER = "tests/qtest/migration-test"


@dataclass(frozen=True)
class Built:
    """A finished build.  ``sha256`` is the emulator's; ``source`` says what it was made from."""

    qemu: Path
    qemu_img: Path
    release: str
    version: str
    series: str
    key: str
    sha256: str
    qemu_img_sha256: str
    source: dict[str, object]
    #: Whose options it was made with (patches/releases.toml); builds once did not say.
    flavour: str = "slim"
    #: What its guests are.
    architecture: str = X86_64
    #: The features that it lacks for want of packages, with those.
    left_out: dict[str, list[str]] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """Its flavour, and what its guests are where they are not the usual ones."""
        usual = self.architecture == X86_64
        return self.flavour if usual else f"{self.flavour}, {self.architecture}"


def by_name(layout: Layout, name: str, architecture: str = X86_64) -> Built:
    """Build, or find built, what `name` says (lab.source.naming), for guests of `architecture`.

    Raises UsageError for a release that is not known, CannotTellError when it cannot be built.
    """
    release, source, series, options = _named(layout, name, architecture)
    return build(layout, release, source, series, options)


def _named(
    layout: Layout, name: str, architecture: str = X86_64
) -> tuple[Release, Source, Series, BuildOptions]:
    asked = naming.named(layout, name)
    source = resolve(layout, asked.release, asked.releases.upstream.releases)
    return asked.release, source, asked.series, asked.options(architecture)


def driver(layout: Layout, name: str) -> Path:
    """Return the program migration-test of what `name` says (see `by_name`), built if need be.

    It runs QEMUs that it is given and is a build of its own: theirs is not changed by it.
    """
    # It needs nothing that a flavour is about, and is quick to build without.
    release, source, series, options = _named(layout, naming.slim(name))
    options = options.model_copy(update={"targets": (_DRIVER,)})
    recipe = BuildRecipe(layout, release, source, series, options)
    kept = recipe.directory / Path(_DRIVER).name
    with making(recipe, f"the migration tests of {recipe.title}"):
        if not kept.is_file():
            objects = compiled(recipe)
            (objects / _DRIVER).replace(kept)
            clear(recipe)
    return kept


def build(
    layout: Layout, release: Release, source: Source, series: Series, options: BuildOptions
) -> Built:
    """Return the build of `source` with `series`, made if it is not there yet.

    Raises CannotTellError without a compiler or disk, or when QEMU does not compile; the message
    has the compiler's own words and the log's place.
    """
    recipe = BuildRecipe(layout, release, source, series, options)
    if built := _read(recipe.directory):
        return built
    with making(recipe, recipe.title):
        if built := _read(recipe.directory):
            return built
        if lacking := {one: its for one, its in recipe.left_out.items() if one in options.needed}:
            raise PreconditionError(
                f"{recipe.title} cannot be built for guests of {options.architecture} "
                + without(lacking),
                hint="./pageflip doctor lists what is missing",
            )
        if recipe.left_out:
            note(f"{recipe.title} is built {without(recipe.left_out)}")
        _keep(recipe, compiled(recipe))
        clear(recipe)
    built = _read(recipe.directory)
    if built is None:
        raise CannotTellError(f"{recipe.directory} was changed by somebody else", "build it again")
    return built


def without(left_out: Mapping[str, Sequence[str]]) -> str:
    """Return in words what a build lacks, and what to install for it."""
    packages = dict.fromkeys(one for its in left_out.values() for one in its)
    names = ", ".join(name.partition("=")[0] for name in left_out)
    return f"without {names}: apt-get install {' '.join(packages)}"


def existing(layout: Layout) -> list[Built]:
    """Return every finished build there is, the latest last."""
    markers = sorted(layout.builds.glob(f"*/{_MARKER}"), key=lambda path: path.stat().st_mtime)
    return [built for marker in markers if (built := _read(marker.parent))]


def _read(directory: Path) -> Built | None:
    """Return the build in `directory` if it is complete, its binaries of the size they had."""
    try:
        kept = json.loads((directory / _MARKER).read_text(encoding="utf-8"))
        sizes = kept.pop("sizes")
        found = {name: (directory / name).stat().st_size for name in sizes}
        paths = {name: directory / kept.pop(name) for name in ("qemu", "qemu_img")}
        return Built(**paths, **kept) if found == sizes else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _keep(recipe: BuildRecipe, objects: Path) -> None:
    """Move the binaries to where they stay, and write the marker."""
    names = {"qemu": f"qemu-system-{recipe.options.architecture}", "qemu_img": "qemu-img"}
    for name in names.values():
        (objects / name).replace(recipe.directory / name)
    said = process.run([recipe.directory / names["qemu"], "--version"], check=False).stdout
    if recipe.release.version not in said:
        raise CannotTellError(
            f"{recipe.title} was built, but reports another version: {said.strip() or 'nothing'}",
            hint=f"see {recipe.log}",
        )
    hashes = {key: fetch.sha256_of(recipe.directory / name) for key, name in names.items()}
    kept = {
        **names,
        "release": recipe.release.name,
        "version": recipe.release.version,
        "series": recipe.series.name,
        "key": recipe.key,
        "sha256": hashes["qemu"],
        "qemu_img_sha256": hashes["qemu_img"],
        "source": recipe.source.record(),
        "flavour": recipe.options.flavour,
        "architecture": recipe.options.architecture,
        "left_out": recipe.left_out,
        "sizes": {name: (recipe.directory / name).stat().st_size for name in names.values()},
    }
    write_whole(recipe.directory / _MARKER, json.dumps(kept, indent=2) + "\n")
