# SPDX-License-Identifier: GPL-2.0-or-later
"""No device writes to guest memory after its state was saved: one upgrade for each there is.

The old QEMU write-protects the guest's memory after the save (``--verify``), so that one that did
would crash it.  The guest has no driver for most of them: what is seen is what a device does by
itself, by its timers and its sides of QEMU's main loop.
"""

import re
import signal
from pathlib import Path

import avocado
from bothqemus import BothQemus
from upgrading import SECOND_QEMU, Upgrading

from lab.base import process
from lab.base.deadline import Deadline
from lab.live import preflight
from lab.model import Outcome
from lab.pair import firmware
from lab.vm.binary import Binary

#: What QEMU says of itself: ``name "e1000e", bus PCI, desc "..."``.
_NAME = re.compile(r'^name "([^"]+)"', re.MULTILINE)
#: Its migration to nowhere, which the monitor waits for.
_SAVE = "migrate exec:cat>/dev/null\nquit\n"
_CRASHED = {-signal.SIGSEGV, 128 + signal.SIGSEGV, -signal.SIGABRT, 128 + signal.SIGABRT}
_RATIO = 1 + 8 * SECOND_QEMU
#: Fewer than QEMU has in any flavour: a test that finds none has tested nothing.
_FEWEST = 20


class Devices(Upgrading, BothQemus, avocado.Test):
    """The guest is small and has no operating system: it is there at once.

    :avocado: tags=thorough
    """

    timeout = 3600
    series = True
    guest = "micro"
    ram = "64M"
    dirty_rate = "10M"

    def there(self, qemu: Binary, files: Path, names: set[str]) -> set[str]:
        """Return those that a QEMU has without anything else that they are told of.

        Without those that it crashes over: guests with them are refused.
        """
        options = ["-nodefaults", "-display", "none", "-S", "-monitor", "stdio", "-machine", "q35"]
        found = set()
        for name in sorted(names):
            argv = [qemu.path, "-L", files, *options, "-device", name]
            soon = Deadline.after(60, f"{name} starts")
            saved = process.run(argv, stdin=_SAVE, check=False, deadline=soon).returncode
            if saved in _CRASHED:
                self.log.info("%s crashes over %s", qemu.version, name)
                self.assertIn(name, preflight.CRASHING)
            elif saved == 0:
                found.add(name)
        return found

    def test_gift(self) -> None:
        """By the mechanism that takes all memory after the devices were saved."""
        files = firmware.prepare(self.layout)
        listed = [process.run([one.path, "-device", "help"]).stdout for one in (self.old, self.new)]
        names = set.intersection(*(set(_NAME.findall(text)) for text in listed))
        names = self.there(self.old, files, self.there(self.new, files, names))
        upgraded = []
        for name in sorted(names):
            result = self.upgrade("gift", _RATIO, verify=True, devices=name)
            self.log.info("%s: %s %s", name, result.outcome, result.reasons)
            self.assertEqual(result.integrity.bad_pages, 0, name)
            if result.outcome is Outcome.UPGRADED:
                upgraded.append(name)
            else:
                # Some cannot be migrated at all, which QEMU says.
                self.assertEqual(result.outcome, Outcome.ROLLED_BACK, name)
                self.assertNotIn("ended by itself", " ".join(result.reasons), name)
        self.assertGreater(len(upgraded), _FEWEST)
