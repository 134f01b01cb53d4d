# SPDX-License-Identifier: GPL-2.0-or-later
"""What the user sees while waiting.  Everything goes to stderr: stdout is for results."""

from __future__ import annotations

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


@contextmanager
def step(title: str) -> Iterator[Tick]:
    """Show `title` with a bar and the time it takes; plain lines where there is no terminal."""
    if not console.is_terminal:
        yield _plain(title)
        return
    with Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[n]}"),
        TimeElapsedColumn(),
        console=console,
    ) as bar:
        task = bar.add_task(title, total=None, n="")

        def tick(done: int, total: int) -> None:
            bar.update(
                task, completed=done, total=total or None, n=f"{done}/{total}" if total else ""
            )

        yield tick


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
