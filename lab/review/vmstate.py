# SPDX-License-Identifier: GPL-2.0-or-later
"""The static check: what each QEMU says its devices' state looks like, without running a guest.

`-dump-vmstate` writes it as JSON, and QEMU's own scripts/vmstate-static-checker.py compares two
dumps: whether what one QEMU sends can be loaded by the other.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab.base import process
from lab.base.deadline import Deadline
from lab.base.errors import CannotTellError

_DUMP_S = 60.0
_CHECKER = "scripts/vmstate-static-checker.py"
#: Differences that are named one by one.
_NAMED = 8


@dataclass(frozen=True)
class StateCheck:
    """One comparison: of what, on which machine type, whether it is as it must be, and why."""

    machine: str
    what: str
    passed: bool
    text: str


def machines(version: str) -> list[str]:
    """Return the machine types that a guest of QEMU `version` (``X.Y``) can have been given."""
    return [f"pc-q35-{version}", f"pc-i440fx-{version}"]


def dump(qemu: Path, firmware: Path, machine: str, into: Path) -> Path:
    """Have `qemu` write the state of its devices; raise CannotTellError when it does not."""
    argv: list[str | Path] = [qemu, "-L", firmware, "-machine", machine, "-accel", "tcg"]
    argv += ["-nodefaults", "-no-user-config", "-display", "none", "-dump-vmstate", into]
    process.run(argv, deadline=Deadline.after(_DUMP_S, "-dump-vmstate"))
    if not into.is_file():
        raise CannotTellError(f"{qemu} wrote no description of its devices' state")
    return into


def check(tree: Path, source: Path, destination: Path) -> str:
    """Return QEMU's checker's findings on a migration between two dumps; "" for none.

    Raises CannotTellError when it did not get to the end.
    """
    argv = [sys.executable, str(tree / _CHECKER), "-s", str(source), "-d", str(destination)]
    done = process.run(argv, deadline=Deadline.after(_DUMP_S, _CHECKER), check=False)
    said = done.stdout.strip()
    if "Traceback (most recent call last)" in said or bool(done.returncode) != _tainted(said):
        raise CannotTellError(f"{_CHECKER} failed ({done.returncode}):\n{said}")
    return said


def _tainted(said: str) -> bool:
    """Whether the checker has printed more than warnings: it then exits with their number."""
    return any(not line.startswith("Warning:") for line in said.splitlines())


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Return the sections in which two dumps differ; their order in the file means nothing."""
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))


def same_release(tree: Path, machine: str, release: str, stock: Path, patched: Path) -> StateCheck:
    """Compare a release with and without the series: the same, or fit for each other both ways."""
    what = f"{release}: stock and patched"
    changed = differences(_load(stock), _load(patched))
    if not changed:
        return StateCheck(machine, what, passed=True, text="the same dump")
    said = [check(tree, stock, patched), check(tree, patched, stock)]
    found = [f"differ: {', '.join(changed[:_NAMED])}", *filter(None, said)]
    return StateCheck(machine, what, passed=not any(said), text="\n".join(found))


def same_upgrade(machine: str, stock: str, patched: str) -> StateCheck:
    """Compare the checker's findings on old -> new for the stock pair and for the patched one."""
    what = "old -> new: the stock pair and the patched pair"
    if stock != patched:
        return StateCheck(machine, what, passed=False, text=_changed(stock, patched))
    said = (
        f"the checker says the same of both, {len(stock.splitlines())} lines:\n{stock}"
        if stock
        else "clean for both"
    )
    return StateCheck(machine, what, passed=True, text=said)


def _changed(stock: str, patched: str) -> str:
    before, after = stock.splitlines(), patched.splitlines()
    lines = [f"only stock: {line}" for line in before if line not in after]
    lines += [f"only patched: {line}" for line in after if line not in before]
    return "\n".join(lines) or "the same lines in another order or number"


def _load(path: Path) -> dict[str, Any]:
    try:
        loaded = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CannotTellError(f"{path}: is not what -dump-vmstate writes: {error}") from error
    if not isinstance(loaded, dict):
        raise CannotTellError(f"{path}: is not what -dump-vmstate writes")
    return loaded
