# SPDX-License-Identifier: GPL-2.0-or-later
"""How devices and networks are set, as far as QEMU tells it: what makes the same once more."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from lab.live.truth.ask import Asker
from lab.live.truth.model import Truth

#: What a device's list of properties has besides settings.
_NO_SETTING = ("child<", "busnr")
#: And what is a state that cannot be set.
_STATES = frozenset({"attached"})


@dataclass(frozen=True)
class Told:
    """What is asked only of a QEMU that has more than its command line says."""

    #: The settings of each type of device with their defaults (device-list-properties); None where
    #: there is no default.
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    #: What "info network" says of each tap, once for each of its queues.
    taps: Mapping[str, list[str]] = field(default_factory=dict)
    #: The drives of which discards have reached the file.
    discarding: frozenset[str] = frozenset()


def told(ask: Asker, truth: Truth) -> Told:
    """Ask it; raises what `Asker.one` does."""
    late = {
        one.type for one in truth.devices.values() if one.asked and one.properties["hotplugged"]
    }
    return Told(
        settings={kind: _settings(ask, kind) for kind in sorted(late)},
        taps=_taps(str(ask.one("human-monitor-command", **{"command-line": "info network"}))),
        discarding=frozenset(_discarding(ask)),
    )


def _settings(ask: Asker, kind: str) -> dict[str, Any]:
    return {
        one["name"]: one.get("default-value")
        for one in ask.one("device-list-properties", typename=kind)
        if not one["type"].startswith(_NO_SETTING) and one["name"] not in _STATES
    }


def _taps(text: str) -> dict[str, list[str]]:
    """Return taps (net/tap.c: net_init_tap_one()): ``ifname=...`` or ``fd=...``."""
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        name, _, rest = line.lstrip(" \\").partition(": ")
        _, is_tap, how = rest.strip().partition("type=tap,")
        if is_tap:
            found.setdefault(name, []).append(how)
    return found


def _discarding(ask: Asker) -> Iterator[str]:
    """Yield drives with discard=unmap: QEMU does not say so, but counts what it has discarded."""
    for one in ask.one("query-blockstats"):
        node: Mapping[str, Any] | None = one
        while node:
            counted = node.get("driver-specific", {})
            if counted.get("discard-nb-ok") or counted.get("discard-nb-failed"):
                yield one.get("device") or one.get("qdev", "")
            node = node.get("parent")
