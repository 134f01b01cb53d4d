# SPDX-License-Identifier: GPL-2.0-or-later
"""One upgrade for each variant of a matrix: matrix.yaml or quick.yaml says how it is called.

Parameters: mechanism, guest, ram, workload, machine, cpus, pages, old, new, and those of
test_upgrade.py.  Without a matrix it is one ordinary upgrade, of a guest with two processors.
"""

import avocado
from upgrading import Upgrading


class Matrix(Upgrading, avocado.Test):
    """The assertions of every upgrade, whatever it consists of.

    :avocado: tags=medium
    """

    timeout = 1200
    ram = "512M"
    cpus = 2

    def test(self) -> None:
        """Nothing is lost, the pause ends, memory does not double where it need not."""
        name = self.params.get("mechanism", default="flip")
        ratio = self.memory_ratio(name, self.params.get("ram", default=self.ram))
        more = {key: self.params.get(key, default="") for key in ("pages", "workload")}
        self.passes(name, ratio, **more)
