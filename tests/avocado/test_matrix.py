# SPDX-License-Identifier: GPL-2.0-or-later
"""One upgrade for each variant of a matrix: matrix.yaml or quick.yaml says how it is called.

Parameters: mechanism, guest, ram, workload, machine, cpus, pages, old, new, and those of
test_upgrade.py.  Without a matrix it is one ordinary upgrade, of a guest with two processors.
"""

import avocado
from upgrading import SECOND_QEMU, Upgrading

from lab import mechanisms, options

#: Freed in pieces, a huge page stays the kernel's until memory is short (docs/architecture.md).
_OTHERS = {"postcopy": 2.0}


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
        mechanism = mechanisms.named(name)
        ram = options.size(self.params.get("ram", default=self.ram))
        ratio = 2.0 if mechanism and mechanism.doubles else _OTHERS.get(name, 1.0)
        # What is not the guest's RAM weighs more the smaller that is.
        ratio += SECOND_QEMU * max(1.0, 2**30 / ram)
        more = {key: self.params.get(key, default="") for key in ("pages", "workload")}
        self.passes(name, ratio, **more)
