# SPDX-License-Identifier: GPL-2.0-or-later
"""The one-screen verdict."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from lab.base.record import BUNDLE
from lab.model import Block, Findings, Result, VerdictKind

_MIB = 2**20


def show(result: Result, console: Console | None = None) -> None:
    """Print the verdict of `result` to stdout."""
    console = console or Console(highlight=False)
    passed = result.verdict is VerdictKind.PASS
    console.print(
        Text.assemble(
            ("PASS" if passed else "FAIL", "bold green" if passed else "bold red"),
            f"  {result.guest} guest, {result.ram_bytes // _MIB} MiB, {result.mechanism}: "
            f"QEMU {result.old.version} -> {result.new.version}, {result.outcome}",
        )
    )
    for reason in result.reasons:
        console.print(Text("  because: " + reason, style="red"))
    for remark in result.notes:
        console.print(Text("  note: " + remark, style="yellow"))
    table = Table(show_header=False, box=None, pad_edge=True)
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    for name, value in rows(result):
        table.add_row(name, Text(value))
    console.print(table)


def rows(result: Result) -> list[tuple[str, str]]:
    """Return what was measured, name by name, in words."""
    pause, integrity, memory = result.pause_ms, result.integrity, result.memory
    rows = [
        (
            "pause",
            f"{_ms(pause.qmp)} STOP to RESUME, {_ms(pause.outside)} outside, "
            f"{_ms(pause.inside)} inside (outside before: {_ms(pause.outside_before)})",
        ),
        ("total", _ms(result.total_ms)),
    ]
    if memory:
        rows.append(
            (
                "memory",
                f"{memory.ratio:.3f} x ({memory.before_bytes // _MIB} MiB before, peak "
                f"{memory.peak_bytes // _MIB} MiB by {memory.method}; "
                f"{memory.pss_ratio:.3f} x by PSS)",
            )
        )
    else:
        rows.append(("memory", "not measured"))
    rows += [
        (
            "integrity",
            f"{integrity.bad_pages} bad of {integrity.pages_checked} pages checked "
            f"({integrity.pages_checked_after} after the upgrade, {integrity.pages_dirtied} "
            f"rewritten); {integrity.heartbeats} heartbeats, {integrity.heartbeats_lost} lost",
        ),
        *((found.name, _figures(found)) for found in result.workloads),
        ("moved", "; ".join(_moved(block) for block in largest(result.blocks)) or "nothing"),
        (
            "accelerator",
            result.accel
            + (
                " (times under TCG are comparable only with each other)"
                if result.accel.startswith("tcg")
                else ""
            ),
        ),
        ("run directory", result.run_directory),
        *([] if result.verdict is VerdictKind.PASS else [("to pass on", _bundle(result))]),
        ("again", result.reproduce),
        ("exit code", "0" if result.verdict is VerdictKind.PASS else "1"),
    ]
    return rows


def _bundle(result: Result) -> str:
    return str(Path(result.run_directory) / BUNDLE)


def _figures(found: Findings) -> str:
    return ", ".join(
        f"{key} {value:.1f}" if isinstance(value, float) else f"{key} {value}"
        for key, value in found.figures.items()
    )


def largest(blocks: list[Block], keep: int = 3) -> list[Block]:
    """Return the few blocks that moved most."""
    return sorted(blocks, key=lambda b: b.used_bytes or 0, reverse=True)[:keep]


def _moved(block: Block) -> str:
    parts = [
        f"{size / _MIB:.1f} MiB {word}"
        for word, size in (
            ("flipped", block.flipped_bytes),
            ("handed over", block.handed_over_bytes),
            ("remapped", block.remapped_bytes),
            ("gifted", block.gifted_bytes),
            ("copied", block.copied_bytes),
            ("faulted", block.faulted_bytes),
            ("zero", block.zero_bytes),
            ("untouched", block.untouched_bytes),
        )
        if size
    ]
    return f"{block.name} by {block.mechanism}" + (f" ({', '.join(parts)})" if parts else "")


def _ms(value: float | None) -> str:
    return "not known" if value is None else f"{value:.1f} ms"
