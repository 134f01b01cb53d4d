# SPDX-License-Identifier: GPL-2.0-or-later
"""What the user sees while waiting.  Everything goes to stderr: stdout is for results."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

console = Console(stderr=True, highlight=False, soft_wrap=True)

#: Tell how far a step is: done, total (0: not known).
Tick = Callable[[int, int], None]


def note(text: str) -> None:
    """Print one line of progress."""
    console.print(text, style="dim", markup=False)


@functools.cache
def note_once(text: str) -> None:
    """Print one line of progress, once however often it is called."""
    note(text)


#: The display that is on the screen: of a step, or of the steps inside of overall().
_shown: list[Progress] = []


@contextmanager
def overall(title: str) -> Iterator[Callable[[int, int, str], None]]:
    """Show how many are done, of how many, and a few words; the steps inside are drawn below it.

    Where there is no terminal nothing of all this is shown: the notes have to say enough.
    """
    inside = bool(_shown)
    with _bars() as bar:
        task = bar.add_task(title, total=None, n="")

        def told(done: int, total: int, words: str) -> None:
            bar.update(task, completed=done, total=total, n=f"{done}/{total}  {words}")

        try:
            yield told
        finally:
            if inside:
                bar.remove_task(task)


@contextmanager
def step(title: str) -> Iterator[Tick]:
    """Show `title` with a bar and the time it takes; plain lines where there is no terminal."""
    inside = bool(_shown)
    if not console.is_terminal:
        yield (lambda _done, _total: None) if inside else _plain(title)
        return
    with _bars() as bar:
        task = bar.add_task(title, total=None, n="")

        def tick(done: int, total: int) -> None:
            bar.update(
                task, completed=done, total=total or None, n=f"{done}/{total}" if total else ""
            )

        try:
            yield tick
        finally:
            if inside:
                bar.remove_task(task)


@contextmanager
def _bars() -> Iterator[Progress]:
    if _shown:
        yield _shown[-1]
        return
    with Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[n]}"),
        TimeElapsedColumn(),
        console=console,
        disable=not console.is_terminal,
    ) as bar:
        _shown.append(bar)
        try:
            yield bar
        finally:
            _shown.remove(bar)


def _plain(title: str) -> Tick:
    note(title)
    shown = -1

    def tick(done: int, total: int) -> None:
        nonlocal shown
        tenth = done * 10 // total if total else -1
        if tenth > shown:
            shown = tenth
            note(f"{title}: {done}/{total}")

    return tick
