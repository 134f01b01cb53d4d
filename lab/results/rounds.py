# SPDX-License-Identifier: GPL-2.0-or-later
"""Which run comes when: rounds of every mechanism, interleaved and balanced.  Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from lab import options
from lab.options import GuestOptions, UpgradeOptions
from lab.results.figures import WARM_UP, Load, Request

#: Marks a mechanism that is run without sampling memory.
_UNSAMPLED = ":unsampled"
#: What stands between the two QEMUs of a label.
PAIR = "::"


def order(names: Sequence[str], number: int) -> list[str]:
    """Return `names` in the order of round `number`.

    A rotation alone would have nearly every mechanism always follow the same one.  These are the
    rows of a Latin square that is balanced for the one before (E. J. Williams, "Experimental
    designs balanced for the estimation of residual effects of treatments", Australian Journal of
    Scientific Research A 2 (1949), 149-168): in n rounds, or 2n when n is odd, each mechanism is
    at every place, and follows every other one, equally often.
    """
    n = len(names)
    zigzag = [step // 2 + 1 if step % 2 else -(step // 2) for step in range(n)]
    row = [names[(place + number) % n] for place in zigzag]
    return row[::-1] if n % 2 and number % 2 else row


@dataclass(frozen=True)
class Slot:
    """One run of the plan."""

    round: int
    label: str
    options: UpgradeOptions
    #: It in words.
    title: str

    @property
    def load(self) -> Load:
        """What the guest is burdened with."""
        return Load(self.options.ram_bytes, self.options.dirty_bytes_s)

    @property
    def case(self) -> tuple[Load, str]:
        """What is run: load and mechanism, with its new QEMU where that has another one."""
        return self.load, self.label


def plan(request: Request) -> list[Slot]:
    """Return every run in its order; raise UsageError for a size that cannot be.

    A round has every mechanism under every dirty rate: rates can be compared as mechanisms can.
    """
    return [
        _slot(request, ram, rate, mechanism, number)
        for ram in request.ram
        for number in range(request.repeats + 1)
        for rate in order(request.rates, number)
        for mechanism in in_turn(request.mechanisms, number)
    ]


def in_turn(labels: Sequence[str], number: int) -> list[str]:
    """Return `labels` in the order of round `number`, those of one mechanism together.

    They are what is compared most closely, and a host does not stay the same for a whole round.
    """
    groups: dict[str, list[str]] = {}
    for label in labels:
        groups.setdefault(split(label).mechanism, []).append(label)
    return [label for name in order(list(groups), number) for label in order(groups[name], number)]


def _slot(request: Request, ram: str, rate: str, label: str, number: int) -> Slot:
    wanted = _upgrade_options(request, ram, rate, label)
    turn = "warm-up" if number == WARM_UP else f"round {number}"
    where = request.words(Load(wanted.ram_bytes, wanted.dirty_bytes_s))
    return Slot(number, label, wanted, f"{label}, {where}, {turn}")


class Label(NamedTuple):
    """What a label says; a QEMU that it does not name is the bench's own, and empty here."""

    mechanism: str
    old: str
    new: str


def split(label: str) -> Label:
    """Read ``MECHANISM[:unsampled]``, with ``@NEW``, ``@OLD::NEW`` or ``@OLD::`` behind it.

    A QEMU's name may hold any of ``:``, ``/``, ``+`` and ``@``, but hardly two colons in a row.
    """
    mechanism, _, pair = label.partition("@")
    old, _, new = pair.rpartition(PAIR)
    return Label(mechanism.removesuffix(_UNSAMPLED), old, new)


def _sampled(label: str) -> bool:
    return not label.partition("@")[0].endswith(_UNSAMPLED)


def _upgrade_options(request: Request, ram: str, rate: str, label: str) -> UpgradeOptions:
    """Return the request's options, and ``upgrade``'s defaults for everything else."""
    mechanism, old, new = split(label)
    shared = {name: getattr(request, name) for name in GuestOptions.model_fields}
    other = {"old": old, "new": new}
    named = {side: name for side, name in other.items() if name}
    return options.of(
        **{**shared, **named, "dirty_rate": rate},
        ram=ram,
        mechanism=mechanism,
        memory_samples=_sampled(label),
    )
