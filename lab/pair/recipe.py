# SPDX-License-Identifier: GPL-2.0-or-later
"""What goes into one build of QEMU, and how it is compiled.

It is made in its own directory, in steps, each of which begins where an earlier run ended.  The
compiler sees relative paths only, so that the same ingredients give the same bytes anywhere.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from lab.base import process
from lab.base.errors import CannotTellError
from lab.base.files import key_of
from lab.base.layout import Layout, locked
from lab.base.progress import Tick, note, step
from lab.pair import firmware, toolchain
from lab.source.releases import BuildOptions, Release
from lab.source.resolve import Kind, Source
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


class CompileError(CannotTellError):
    """QEMU does not compile, or cannot be configured."""


@dataclass(frozen=True)
class BuildRecipe:
    """Everything that goes into one build, and where it is made."""

    layout: Layout
    release: Release
    source: Source
    series: Series
    options: BuildOptions
    #: Where it is made, if not in a directory of its key.
    at: Path | None = None

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
        """The compiler, and what its result depends on beside the sources."""
        return toolchain.find(one for its in self.libraries.values() for one in its)

    @property
    def configure(self) -> tuple[str, ...]:
        """The arguments of QEMU's configure."""
        # Debian's tarballs hold the subprojects; upstream's git has meson fetch them, by commit.
        extra = ("--disable-download",) if self.source.kind is Kind.DEBIAN else ()
        features = (f"--enable-{name}" for name in self.libraries)
        wanted = (*self.options.configure, *features, *self.release.configure)
        return ("--prefix=/usr", *wanted, *extra)

    @cached_property
    def series_digest(self) -> str:
        """What the series was when the build began: somebody may be editing it."""
        return self.series.digest

    def check_unedited(self) -> None:
        """Raise CannotTellError where the series is not what it was when the build began."""
        if self.series.digest != self.series_digest:
            raise CannotTellError(
                f"{self.title}: the series changed during the build", "build again"
            )

    @property
    def key(self) -> str:
        """The hash of all that goes in."""
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
        """What it is called while it is made."""
        number = len(self.series.patches)
        series = f"{number} patches" if number else "stock"
        return f"QEMU {self.release.version} ({series}, {self.options.flavour})"

    @property
    def directory(self) -> Path:
        """Where it is made, and kept."""
        if self.at:
            return self.at
        name = f"{self.release.version}-{self.series.name}-{self.key[:16]}"
        return self.layout.builds / name

    @property
    def tree(self) -> Path:
        """The source with the series on it, while it is being compiled."""
        return self.directory / "src"

    @property
    def log(self) -> Path:
        """What configure and the compiler said."""
        return self.directory / "build.log"


@contextmanager
def making(recipe: BuildRecipe, title: str) -> Iterator[None]:
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


def compiled(recipe: BuildRecipe) -> Path:
    """Unpack, patch, configure, compile: each step begins where the last run ended.

    Returns the directory of the objects.
    """
    recipe.directory.mkdir(parents=True, exist_ok=True)
    if shutil.disk_usage(recipe.directory).free < _NEEDED_BYTES:
        raise _disk_full(recipe.layout)
    objects = recipe.directory / "obj"
    if not recipe.tree.is_dir():
        for line in patched_tree(recipe.source, recipe.series, recipe.tree):
            note(line)
        try:
            recipe.check_unedited()
        except CannotTellError:
            shutil.rmtree(recipe.tree)
            raise
    if recipe.source.kind is not Kind.DEBIAN:
        firmware.keep_upstream(recipe.layout, recipe.tree)
    if not _is_configured(objects):
        _configure(recipe, objects)
    _compile(recipe, objects)
    return objects


def clear(recipe: BuildRecipe) -> None:
    """Remove what the key has no use for: it is twenty times the size of what is kept."""
    for name in ("obj", "src"):
        shutil.rmtree(recipe.directory / name, ignore_errors=True)


def _environment(recipe: BuildRecipe) -> dict[str, str]:
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


def _configure(recipe: BuildRecipe, objects: Path) -> None:
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


def _compile(recipe: BuildRecipe, objects: Path) -> None:
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
    recipe: BuildRecipe,
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
        raise CompileError(
            f"{recipe.title} does not {what}:\n{telling(error.output) or error}\n"
            f"    (all of it: {recipe.log})",
            hint="a package missing? ./pageflip doctor; a patch? the file and line are above",
        ) from error


def telling(output: str) -> str:
    """Return the lines that say why a build failed, out of all that it printed."""
    lines = output.splitlines()
    found = [line for line in lines if _TELLING.search(line)] or lines
    return "\n".join(f"    {line}" for line in found[:_SHOWN_LINES])


def _disk_full(layout: Layout) -> CannotTellError:
    return CannotTellError(
        f"the disk that holds {layout.cache} is full",
        hint=f"a build needs about {_NEEDED_BYTES >> 20} MiB: make room, or set XDG_CACHE_HOME to "
        "a directory on another disk",
    )
