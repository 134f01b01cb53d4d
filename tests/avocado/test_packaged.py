# SPDX-License-Identifier: GPL-2.0-or-later
"""What distributions ship, moved from one release to the next, as their users do it."""

from __future__ import annotations

import avocado
from upgrading import Upgrading

from lab.base.errors import CannotTellError
from lab.base.layout import Layout
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
            for name in ("debian:12", "debian:13"):
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
