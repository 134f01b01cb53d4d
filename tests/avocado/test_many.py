# SPDX-License-Identifier: GPL-2.0-or-later
"""One guest after the other is upgraded, and nothing is left of any of them.

Parameters (avocado -p): as in test_upgrade.py; guests (8).
"""

import gc
import os
import tempfile
import threading
import time
from pathlib import Path

import avocado
from upgrading import SECOND_QEMU, Upgrading

from lab.base.layout import abandoned
from lab.host import cgroup
from lab.measure import memory

#: What the lab itself may have grown by, in all (bytes).
_GROWTH = 32 << 20
#: What is younger may be about to be used (lab.base.layout).
_YOUNG_S = 10.0


class Many(Upgrading, avocado.Test):
    """What one upgrade leaks, many show.

    :avocado: tags=thorough
    """

    timeout = 1800
    ram = "256M"
    touch = "30%"

    def test(self) -> None:
        """Descriptors, threads, children, memory, directories and memory groups of the lab's."""
        seen = []
        for number in range(int(self.params.get("guests", default="8"))):
            mechanism = ("flip", "gift")[number % 2]
            result = self.upgrade(mechanism, 1 + 4 * SECOND_QEMU)
            self.assertEqual(result.reasons, [])
            gc.collect()
            seen.append((self.left(), memory.pss(os.getpid())))
            self.log.info("guest %d: %s", number + 1, seen[-1])
        # Each mechanism has been tried once after two: what is there to stay is there.
        for left, _ in seen[2:]:
            self.assertEqual(left, seen[1][0])
        self.assertLess(seen[-1][1] - seen[1][1], _GROWTH)
        time.sleep(_YOUNG_S + 1)
        for base in (Path(tempfile.gettempdir()), cgroup.groups_directory()):
            self.assertEqual(list(abandoned(base, "pageflip-*")), [])

    def left(self) -> dict[str, object]:
        """Return what could be left over in this process."""
        mine = Path("/proc/self")
        return {
            "descriptors": len(list((mine / "fd").iterdir())),
            "threads": threading.active_count(),
            "children": [file.read_text(encoding="ascii") for file in mine.glob("task/*/children")],
        }
