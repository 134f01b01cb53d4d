# SPDX-License-Identifier: GPL-2.0-or-later
"""What the pause consists of by QEMU's own account: its trace events, where a mechanism is silent.

The steps are those of ``vmstate_downtime_checkpoint`` (migration/migration.c and savevm.c in QEMU):
from one to the next on the source, over to the destination, and on there.  Both stamp them with the
host's clock.
"""

from __future__ import annotations

from collections.abc import Mapping

from lab.model import Phases

#: From which step to which a phase is, the first that there are.
_PHASES = {
    "stop": (("src-downtime-start", "src-vm-stopped"),),
    "save": (("src-vm-stopped", "src-non-iterable-saved"),),
    "load": (
        ("src-non-iterable-saved", "dst-postcopy-bh-enter"),
        ("src-non-iterable-saved", "dst-precopy-bh-enter"),
    ),
    "resume": (
        ("dst-postcopy-bh-enter", "dst-postcopy-bh-vm-started"),
        ("dst-precopy-bh-enter", "dst-precopy-bh-vm-started"),
    ),
}


def steps(old: Mapping[str, float], new: Mapping[str, float]) -> dict[str, float]:
    """Return the source's steps of the old QEMU and the destination's of the new one (s)."""
    both = ((old, "src-"), (new, "dst-"))
    return {n: at for mine, prefix in both for n, at in mine.items() if n.startswith(prefix)}


def complete(told: Phases, reached: Mapping[str, float]) -> Phases:
    """Return the phases that the mechanism has told, and those it has not by the steps `reached`.

    What ends before it begins belongs to another attempt, and is not known.
    """
    more: dict[str, float] = {}
    for name, ends in _PHASES.items():
        known = [(reached[a], reached[b]) for a, b in ends if a in reached and b in reached]
        if known and getattr(told, name) is None and known[0][1] >= known[0][0]:
            more[name] = (known[0][1] - known[0][0]) * 1e3
    return told.model_copy(update=more)
