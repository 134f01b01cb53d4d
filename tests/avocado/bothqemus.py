# SPDX-License-Identifier: GPL-2.0-or-later
"""What every test has that moves guests of its own making: a place for its files, and the pair."""

from pathlib import Path

from lab import mechanisms
from lab.base.layout import Layout
from lab.vm import binary


class BothQemus:
    """A mixin for tests; parameters (avocado -p): old, new: the pair."""

    #: Whether both need the series; the test is cancelled where one has it not.
    series = False

    def setUp(self) -> None:
        """Build what is needed."""
        self.layout = Layout.default().into(Path(self.outputdir))
        self.old = binary.binary_of(self.layout, self.params.get("old", default="old"))
        self.new = binary.binary_of(self.layout, self.params.get("new", default="new"))
        if self.series and mechanisms.Flip().missing(self.old, self.new):
            self.cancel("one of both QEMUs is without the series")
