# SPDX-License-Identifier: GPL-2.0-or-later
"""One pair of QEMUs for each variant of a matrix that ``pageflip pairs --variants`` writes.

Each test leaves its part of the table, which ``pageflip pairs --gather`` puts together.  Parameters
are the options of ``pageflip upgrade``, and the round.
"""

from __future__ import annotations

from pathlib import Path

import avocado

from lab import options, pairs
from lab.base.layout import Layout
from lab.options import UpgradeOptions
from lab.results.pairing import PairAnswer, PairTrial

#: Without a matrix: a small guest from old to new.
_DEFAULTS = {"ram": "256M", "touch": "50%", "dirty_rate": "10M", "mechanism": "precopy"}


class Pairs(avocado.Test):
    """A guest is moved, or nothing happens to it.

    :avocado: tags=medium
    """

    timeout = 600

    def test(self) -> None:
        """What is refused is cancelled, with the reason; a guest that is lost or harmed fails."""
        asked = {
            name: self.params.get(name, default=_DEFAULTS.get(name, field.default))
            for name, field in UpgradeOptions.model_fields.items()
        }
        trial = PairTrial(asked=options.of(**asked), round=self.params.get("round", default=1))
        layout = Layout.default().into(Path(self.outputdir))
        session = pairs.session(layout, [trial], trial.asked.reproduce)
        pairs.prepare(session)
        session.go()
        (run,) = session.grid.runs
        why = "; ".join(run.reasons)
        if run.answer in {PairAnswer.REFUSED, PairAnswer.ROLLED_BACK}:
            self.cancel(f"{run.answer}: {why}")
        self.assertEqual((run.answer, why), (PairAnswer.PASS, ""))
