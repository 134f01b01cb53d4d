# SPDX-License-Identifier: GPL-2.0-or-later
"""What distributions ship, moved from one release to the next, as their users do it."""

from __future__ import annotations

from pathlib import Path

import avocado
from byhand import ByHand
from upgrading import Upgrading

from lab import mechanisms, options, pipeline
from lab.base.errors import CannotTellError, PreconditionError
from lab.base.layout import Layout
from lab.live import look, planning
from lab.live.move import Mover
from lab.measure import integrity
from lab.model import Outcome
from lab.vm import binary

#: Small guests pay for the second QEMU, which is not what is looked at here.
_RATIO = 3.0


class Packaged(Upgrading, avocado.Test):
    """Debian's QEMUs, under their own libraries; without a mirror there is nothing to test.

    :avocado: tags=medium,thorough
    """

    ram = "256M"
    touch = "50%"

    def setUp(self) -> None:
        super().setUp()
        try:
            for name in ("debian:12", "debian:13", "debian:13-backports"):
                binary.binary_of(Layout.default(), name)
        except CannotTellError as error:
            self.cancel(error.message)

    def test_transplant(self) -> None:
        """From outside, with private memory changing its owner."""
        result = self.passes("transplant", _RATIO, old="debian:12", new="debian:13", accel="tcg")
        self.assertEqual((result.old.version[:3], result.machine), ("7.2", "pc-q35-7.2"))

    def test_postcopy(self) -> None:
        """By the only way of upstream's that these have and that frees memory on its way."""
        result = self.upgrade("postcopy", _RATIO, old="debian:12", new="debian:13", accel="tcg")
        self.assertEqual(result.outcome, Outcome.UPGRADED)
        self.assertEqual(result.integrity.bad_pages, 0)

    def test_what_cannot_load_is_known_beforehand(self) -> None:
        """10.0.13 to 11.1.3: a way that would lose the guest is not taken."""
        asked = options.of(
            mechanism="postcopy",
            ram=self.ram,
            touch=self.touch,
            old="debian:13",
            new="debian:13-backports",
            accel="tcg",
        )
        layout = Layout.default().into(Path(self.outputdir))
        with self.assertRaisesRegex(PreconditionError, "would lose the guest.*vring.num 1024"):
            pipeline.upgrade_once(layout, asked)

    def test_what_does_not_load_goes_back(self) -> None:
        """The same by a way that can: the guest goes on under the old QEMU."""
        for mechanism in ("precopy", "stop-copy"):
            result = self.upgrade(
                mechanism, _RATIO, old="debian:13", new="debian:13-backports", accel="tcg"
            )
            self.assertEqual(result.outcome, Outcome.ROLLED_BACK, result.reasons)
            self.assertEqual(result.integrity.bad_pages, 0)
            self.assertIn("vring.num 1024 exceeds", " ".join(result.reasons))


class PackagedByHand(ByHand):
    """A mixin: a guest that was started by hand, of a pair of Debian's QEMUs."""

    timeout = 600
    pair: tuple[str, str]

    def setUp(self) -> None:
        """Have both; cancel where they cannot be had."""
        self.layout = Layout.default().into(Path(self.outputdir))
        try:
            self.old, self.new = (binary.binary_of(self.layout, name) for name in self.pair)
        except CannotTellError as error:
            self.cancel(error.message)


class Screen(PackagedByHand, avocado.Test):
    """The guest's screen, by VNC on a port, which QEMU 7.2 cannot be told of as later ones can.

    :avocado: tags=medium,thorough
    """

    pair = ("debian:12", "debian:13")

    def test_vnc(self) -> None:
        """The new QEMU is reached where the old one was, at the port that this one had found."""
        self.screen_follows("transplant")


class Beforehand(PackagedByHand, avocado.Test):
    """A running guest that the new QEMU does not load: it is known before anything is lost.

    :avocado: tags=medium,thorough
    """

    pair = ("debian:13", "debian:13-backports")

    def test_no_way_back(self) -> None:
        """By the rehearsal, and by a way that could not go back, which is then not gone."""
        with self.by_hand() as one:
            for mechanism, rehearse in (("stop-copy", True), ("postcopy", False)):
                asked = mechanisms.Asked(rehearse=rehearse)
                plan = planning.plan(str(one.vm.pid), self.new, mechanism, asked)
                (moved,) = Mover(self.layout).all([plan], 1)
                self.assertEqual(
                    (moved.outcome, moved.mechanism), (Outcome.ROLLED_BACK, "device-load")
                )
                self.assertIn("vring.num 1024 exceeds", moved.failure)
                there = look.look(str(one.qmp))
                self.assertEqual((there.pid, there.state), (one.vm.pid, "running"))
                report = integrity.check(one.vm.control, self.touched)
                self.assertEqual(report.status["bad_pages"], 0, report)
