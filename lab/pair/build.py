# SPDX-License-Identifier: GPL-2.0-or-later
"""QEMU, built from a verified source and a series.

A build is kept under a key of everything that goes into it.  It is made in its own directory, the
marker ``built.json`` written last: what has no marker is unfinished, and is taken up where it was
left.  The compiler sees relative paths only, so the same key gives the same bytes anywhere.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from lab.base import process
from lab.base.errors import CannotTellError
from lab.base.files import key_of, write_whole
from lab.base.layout import Layout, locked
from lab.base.progress import Tick, note, step
from lab.pair import firmware, toolchain
from lab.source import fetch, naming
from lab.source.releases import BuildOptions, Release
from lab.source.resolve import Kind, Source, resolve
from lab.source.series import Series, patched_tree

#: Part of the key: raised when the same ingredients are built in another way than before.
_RECIPE = 1
#: Unpacked source, objects and binaries of one build, and some room (bytes).
_NEEDED_BYTES = 1 << 30
_NINJA_LINE = re.compile(r"^\[(\d+)/(\d+)\]")
_TELLING = re.compile(
    r"\b(?:fatal )?error\b:|undefined reference|^FAILED: |^ERROR: |No space left on device"
    r"|internal compiler error|Killed signal",
)
_SHOWN_LINES = 12
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
    #: The features that it lacks for want of packages, with those.
    left_out: dict[str, list[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class _BuildRecipe:
    """Everything that goes into one build, and where it is made."""

    layout: Layout
    release: Release
    source: Source
    series: Series
    options: BuildOptions

    @cached_property
    def left_out(self) -> dict[str, list[str]]:
        """The features that cannot be built here, with the packages that they lack."""
        return toolchain.left_out(self.options.libraries)

    @cached_property
    def libraries(self) -> dict[str, tuple[str, ...]]:
        """The features that can be, with their packages."""
        wanted = self.options.libraries
        return {name: its for name, its in wanted.items() if name not in self.left_out}

    @cached_property
    def tools(self) -> toolchain.Toolchain:
        return toolchain.find(one for its in self.libraries.values() for one in its)

    @property
    def configure(self) -> tuple[str, ...]:
        # Debian's tarballs hold the subprojects; upstream's git has meson fetch them, by commit.
        extra = ("--disable-download",) if self.source.kind is Kind.DEBIAN else ()
        features = (f"--enable-{name}" for name in self.libraries)
        wanted = (*self.options.configure, *features, *self.release.configure)
        return ("--prefix=/usr", *wanted, *extra)

    @cached_property
    def series_digest(self) -> str:
        """What the series was when the build began: somebody may be editing it."""
        return self.series.digest

    @property
    def key(self) -> str:
        parts = [
            str(_RECIPE),
            self.source.key,
            self.series_digest,
            *self.configure,
            *self.options.targets,
            *self.tools.identity,
        ]
        return key_of(*parts)

    @property
    def title(self) -> str:
        flavour = self.options.flavour
        return f"QEMU {self.release.version} ({self.series_title}, {flavour})"

    @property
    def series_title(self) -> str:
        number = len(self.series.patches)
        return f"{number} patches" if number else "stock"

    @property
    def directory(self) -> Path:
        name = f"{self.release.version}-{self.series.name}-{self.key[:16]}"
        return self.layout.builds / name

    @property
    def log(self) -> Path:
        return self.directory / "build.log"


def by_name(layout: Layout, name: str) -> Built:
    """Build, or find built, what `name` says (lab.source.naming).

    Raises UsageError for a release that is not known, CannotTellError when it cannot be built.
    """
    release, source, series, options = _named(layout, name)
    return build(layout, release, source, series, options)


def _named(layout: Layout, name: str) -> tuple[Release, Source, Series, BuildOptions]:
    asked = naming.named(layout, name)
    source = resolve(layout, asked.release, asked.releases.upstream.releases)
    return asked.release, source, asked.series, asked.options


def driver(layout: Layout, name: str) -> Path:
    """Return the program migration-test of what `name` says (see `by_name`), built if need be.

    It runs QEMUs that it is given and is a build of its own: theirs is not changed by it.
    """
    # It needs nothing that a flavour is about, and is quick to build without.
    release, source, series, options = _named(layout, naming.slim(name))
    options = options.model_copy(update={"targets": (_DRIVER,)})
    recipe = _BuildRecipe(layout, release, source, series, options)
    kept = recipe.directory / Path(_DRIVER).name
    with _making(recipe, f"the migration tests of {recipe.title}"):
        if not kept.is_file():
            objects = _compiled(recipe)
            (objects / _DRIVER).replace(kept)
            _clear(recipe)
    return kept


def build(
    layout: Layout, release: Release, source: Source, series: Series, options: BuildOptions
) -> Built:
    """Return the build of `source` with `series`, made if it is not there yet.

    Raises CannotTellError without a compiler or disk, or when QEMU does not compile; the message
    has the compiler's own words and the log's place.
    """
    recipe = _BuildRecipe(layout, release, source, series, options)
    if built := _read(recipe.directory):
        return built
    with _making(recipe, recipe.title):
        if built := _read(recipe.directory):
            return built
        if recipe.left_out:
            note(f"{recipe.title} is built {without(recipe.left_out)}")
        _keep(recipe, _compiled(recipe))
        _clear(recipe)
    built = _read(recipe.directory)
    if built is None:
        raise CannotTellError(f"{recipe.directory} was changed by somebody else", "build it again")
    return built


def without(left_out: Mapping[str, Sequence[str]]) -> str:
    """Return in words what a build lacks, and what to install for it."""
    packages = dict.fromkeys(one for its in left_out.values() for one in its)
    names = ", ".join(name.partition("=")[0] for name in left_out)
    return f"without {names}: apt-get install {' '.join(packages)}"


@contextmanager
def _making(recipe: _BuildRecipe, title: str) -> Iterator[None]:
    """Make the recipe's directory our own, and leave none behind that is empty."""
    with locked(recipe.directory, f"waiting for another run that is building {title}"):
        try:
            yield
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            raise _disk_full(recipe.layout) from error
        finally:
            with suppress(OSError):  # it has something in it, most of the time
                recipe.directory.rmdir()


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


def _disk_full(layout: Layout) -> CannotTellError:
    return CannotTellError(
        f"the disk that holds {layout.cache} is full",
        hint=f"a build needs about {_NEEDED_BYTES >> 20} MiB: make room, or set XDG_CACHE_HOME to "
        "a directory on another disk",
    )


def _compiled(recipe: _BuildRecipe) -> Path:
    """Unpack, patch, configure, compile: each step begins where the last run ended.

    Returns the directory of the objects.
    """
    recipe.directory.mkdir(parents=True, exist_ok=True)
    if shutil.disk_usage(recipe.directory).free < _NEEDED_BYTES:
        raise _disk_full(recipe.layout)
    tree, objects = recipe.directory / "src", recipe.directory / "obj"
    if not tree.is_dir():
        for line in patched_tree(recipe.source, recipe.series, tree):
            note(line)
        if recipe.series.digest != recipe.series_digest:
            shutil.rmtree(tree)
            raise CannotTellError(
                f"{recipe.title}: the series changed during the build", "build again"
            )
    if recipe.source.kind is not Kind.DEBIAN:
        firmware.keep_upstream(recipe.layout, tree)
    if not _is_configured(objects):
        _configure(recipe, objects)
    _compile(recipe, objects)
    return objects


def _clear(recipe: _BuildRecipe) -> None:
    """Remove what the key has no use for: it is twenty times the size of what is kept."""
    for name in ("obj", "src"):
        shutil.rmtree(recipe.directory / name, ignore_errors=True)


def _environment(recipe: _BuildRecipe) -> dict[str, str]:
    """Return what the build sees: nothing of the user's that would change the result."""
    tools = Path(sys.executable).parent
    return {
        "PATH": f"{tools}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        "LC_ALL": "C",
        "CFLAGS": "",
        "CPPFLAGS": "",
        "LDFLAGS": "",
        "SOURCE_DATE_EPOCH": "1",
        "CCACHE_DIR": str(recipe.layout.ccache),
        "CCACHE_BASEDIR": str(recipe.directory),
        "CCACHE_NOHASHDIR": "1",
        "CCACHE_COMPILERCHECK": "content",
    }


def _is_configured(objects: Path) -> bool:
    """Whether it is, with the Python that runs this: another checkout's may be gone by now."""
    try:
        return (objects / "configured").read_text(encoding="utf-8") == sys.executable
    except FileNotFoundError:
        return False


def _configure(recipe: _BuildRecipe, objects: Path) -> None:
    if objects.exists():
        shutil.rmtree(objects)
    objects.mkdir()
    with step(f"configuring {recipe.title}"):
        _run(
            recipe,
            [
                "sh",
                "../src/configure",
                f"--python={sys.executable}",
                f"--cc={recipe.tools.command}",
                *recipe.configure,
            ],
            objects,
            "configure",
        )
    (objects / "configured").write_text(sys.executable, encoding="utf-8")


def _compile(recipe: _BuildRecipe, objects: Path) -> None:
    ninja = shutil.which("ninja", path=_environment(recipe)["PATH"])
    if ninja is None:
        raise CannotTellError("ninja is not there", hint="run ./pageflip, which installs it")
    jobs = len(os.sched_getaffinity(0))
    with step(f"compiling {recipe.title}") as tick:
        argv = [ninja, f"-j{jobs}", *recipe.options.targets]
        _run(recipe, argv, objects, "compile", on_line=_progress(tick))


def _progress(tick: Tick) -> Callable[[str], None]:
    def on_line(line: str) -> None:
        if match := _NINJA_LINE.match(line):
            tick(int(match[1]), int(match[2]))

    return on_line


def _run(
    recipe: _BuildRecipe,
    argv: process.Argv,
    cwd: Path,
    what: str,
    on_line: Callable[[str], None] | None = None,
) -> None:
    try:
        process.run(argv, cwd=cwd, env=_environment(recipe), log=recipe.log, on_line=on_line)
    except process.CommandError as error:
        if "No space left on device" in error.output:
            raise _disk_full(recipe.layout) from error
        raise CannotTellError(
            f"{recipe.title} does not {what}:\n{telling(error.output) or error}\n"
            f"    (all of it: {recipe.log})",
            hint="a package missing? ./pageflip doctor; a patch? the file and line are above",
        ) from error


def telling(output: str) -> str:
    """Return the lines that say why a build failed, out of all that it printed."""
    lines = output.splitlines()
    found = [line for line in lines if _TELLING.search(line)] or lines
    return "\n".join(f"    {line}" for line in found[:_SHOWN_LINES])


def _keep(recipe: _BuildRecipe, objects: Path) -> None:
    """Move the binaries to where they stay, and write the marker."""
    names = {"qemu": "qemu-system-x86_64", "qemu_img": "qemu-img"}
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
        "left_out": recipe.left_out,
        "sizes": {name: (recipe.directory / name).stat().st_size for name in names.values()},
    }
    write_whole(recipe.directory / _MARKER, json.dumps(kept, indent=2) + "\n")
