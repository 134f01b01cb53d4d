# SPDX-License-Identifier: GPL-2.0-or-later
"""How workloads fit together, and what does not go together."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, cast

import pytest
from test_cmdline import OLD
from test_mechanisms import FLIPS

from lab import workloads
from lab.base.errors import PreconditionError
from lab.base.layout import CHECKOUT, Layout
from lab.guest import images
from lab.measure.downtime import Window
from lab.mechanisms import MECHANISMS, Mechanism, choose
from lab.model import Findings
from lab.vm.cmdline import Machine
from lab.workloads import WORKLOADS, Workload
from lab.workloads.base import WorkloadRun
from lab.workloads.network import Network, _NetworkRun
from lab.workloads.scripted import Disk

LAYOUT = Layout(CHECKOUT, Path("/nowhere"), Path("/nowhere"))
WINDOW = Window(0, 1)


class Noting(WorkloadRun):
    """Notes what it is asked for."""

    def __init__(self, word: str, said: list[str]) -> None:
        self.word, self.said = word, said

    def equip(self, machine: Machine) -> Machine:
        return dataclasses.replace(machine, append=f"{machine.append} {self.word}")

    def start(self, vm: Any) -> None:
        self.said.append(f"start {self.word}")

    def succeed(self, machine: Machine, mechanism: Mechanism) -> Machine:
        return dataclasses.replace(machine, append=f"{machine.append} {self.word}!")

    def check(self, survivor: Any, window: Window) -> Findings:
        return Findings(name=self.word, figures={}, problems=[])


class Noted(Workload):
    """A workload that needs nothing."""

    figures: ClassVar = {}

    def __init__(self, word: str, said: list[str]) -> None:
        self.word, self.said = word, said

    def missing(self, _guest: Any) -> str:
        return "it has no hands" if self.word == "juggle" else ""

    @contextmanager
    def opened(self, directory: Path) -> Iterator[WorkloadRun]:
        self.said.append(f"open {self.word}")
        try:
            yield Noting(self.word, self.said)
        finally:
            self.said.append(f"close {self.word}")


def test_they_run_together_and_end_last_first(tmp_path: Path) -> None:
    said: list[str] = []
    both = [Noted("one", said), Noted("two", said)]
    with workloads.opened(both, tmp_path) as work:
        assert work.equip(OLD).append == "quiet one two"
        assert work.succeed(OLD, MECHANISMS[0]).append == "quiet one! two!"
        work.start(cast("Any", None))
        assert [f.name for f in work.check(cast("Any", None), WINDOW)] == ["one", "two"]
    assert said == ["open one", "open two", "start one", "start two", "close two", "close one"]


def test_a_guest_that_cannot() -> None:
    guests = images.load_guests(LAYOUT)
    workloads.check_guest(WORKLOADS, "debian", guests["debian"])
    workloads.check_guest([Network()], "tiny", guests["tiny"])
    with pytest.raises(PreconditionError, match="disk is not possible in guest tiny: it has no"):
        workloads.check_guest([Disk()], "tiny", guests["tiny"])
    with pytest.raises(PreconditionError, match="network is not possible in guest micro: it has"):
        workloads.check_guest([Network()], "micro", guests["micro"])


def test_a_mechanism_that_cannot() -> None:
    workloads.check_mechanism(WORKLOADS, choose("gift", FLIPS, FLIPS), FLIPS)
    with pytest.raises(PreconditionError, match=r"not possible with mechanism flip: .* fds"):
        workloads.check_mechanism([Network()], choose("flip", FLIPS, FLIPS), FLIPS)


def test_every_workload_is_documented() -> None:
    page = (CHECKOUT / "docs" / "results.md").read_text(encoding="utf-8")
    assert len({workload.name for workload in WORKLOADS}) == len(WORKLOADS)
    for workload in WORKLOADS:
        assert workload.summary
        assert f"`{workload.name}`" in page
        missing = [key for key in workload.figures if f"`{key}`" not in page]
        assert not missing, f"docs/results.md says nothing of {missing}"


class Taps:
    """Gives out numbers as taps."""

    def __init__(self) -> None:
        self.last = 40

    def tap(self) -> int:
        self.last += 1
        return self.last


@pytest.mark.parametrize("mechanism", MECHANISMS, ids=lambda one: one.name)
def test_the_new_qemu_has_a_tap_of_its_own_unless_it_inherits(mechanism: Mechanism) -> None:
    running = _NetworkRun(cast("Any", Taps()))
    old = running.equip(OLD)
    new = running.succeed(old, mechanism)
    assert old.descriptors == (41,)
    assert new.descriptors == ((41,) if mechanism.inherits else (42,))
    assert [nic.mac for nic in new.nics] == [nic.mac for nic in old.nics]
