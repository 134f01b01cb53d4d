# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether QEMU compiles after every patch of a series.

In one tree, onto which the patches are put one after another: the compiler sees again only what a
patch has touched.  What has compiled is remembered by all that went into it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from lab.base.files import key_of, write_whole
from lab.base.layout import Layout
from lab.pair import recipe as recipes
from lab.pair.recipe import BuildRecipe, CompileError
from lab.source import gnupatch
from lab.source.gnupatch import PatchError
from lab.source.releases import BuildOptions, Release
from lab.source.resolve import Source
from lab.source.series import Series

_REMEMBERED = "compiled.json"


def not_compiling(
    layout: Layout, release: Release, source: Source, series: Series, options: BuildOptions
) -> list[str]:
    """Compile QEMU, all its tests and tools after each patch; return the findings.

    A run that was stopped goes on at the first patch that has not compiled.  Raises CannotTellError
    where nothing can be compiled here, or the series is edited meanwhile.
    """
    if not series.patches:
        return []
    # All that its build has: a test that nobody compiles is not seen to be broken.
    options = options.model_copy(update={"targets": ()})
    place = layout.builds / f"{release.version}-{series.name}-each-{key_of(source.key)[:16]}"
    parts = [
        BuildRecipe(
            layout,
            release,
            source,
            Series(f"{series.name}-upto-{number}", series.patches[:number]),
            options,
            at=place,
        )
        for number in range(1, len(series.patches) + 1)
    ]
    with recipes.making(parts[0], f"QEMU {release.version} after every patch"):
        try:
            return list(_compile(parts, place / _REMEMBERED))
        finally:
            recipes.clear(parts[0])


def _compile(parts: Sequence[BuildRecipe], remembered: Path) -> Iterator[str]:
    """Yield why a part does not compile; what does is remembered."""
    compiled = _read(remembered)
    # All keys are told now, as the series is when this begins: it may be edited in an hour.
    todo = [part for part in parts if part.key not in compiled]
    try:
        for part in _prepared(todo):
            try:
                recipes.compiled(part)
            except CompileError as error:
                yield f"{part.release.name}/{part.series.patches[-1].name}: {error}"
                continue
            part.check_unedited()
            compiled.append(part.key)
            write_whole(remembered, json.dumps(compiled) + "\n")
    except PatchError as error:  # those after it build on it
        yield str(error)


def _prepared(parts: Iterable[BuildRecipe]) -> Iterator[BuildRecipe]:
    """Yield each part with its patches, and no others, on the tree."""
    applied = 0
    for part in parts:
        if applied:
            for patch in part.series.patches[applied:]:
                gnupatch.apply(part.tree, patch)
        else:
            recipes.clear(part)  # of a run that was killed, with patches that nobody knows
        applied = len(part.series.patches)
        yield part


def _read(remembered: Path) -> list[str]:
    """Return the keys of what has compiled."""
    try:
        return list(json.loads(remembered.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return []
