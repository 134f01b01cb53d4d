# SPDX-License-Identifier: GPL-2.0-or-later
"""What docs/measuring.md says of KVM when memory gets a new owner, on this host."""

import platform
import subprocess
from pathlib import Path
from statistics import median

import avocado

from lab.base.layout import CHECKOUT

_SOURCE = CHECKOUT / "tests" / "kvm" / "memory.c"
_MIB, _ROUNDS = 64, 5
_UNSUPPORTED = 77


class Kvm(avocado.Test):
    """A guest of tests/kvm/memory.c's own, without QEMU.

    :avocado: tags=quick
    """

    def test_memory_at_another_address(self) -> None:
        """With pages of 4 KiB a moved guest faults each of them in, as a new VM's does."""
        if platform.machine() != "x86_64":
            self.cancel("its guest is one for x86-64")
        program = Path(self.workdir) / "memory"
        subprocess.run(["cc", "-O2", _SOURCE, "-o", program], check=True)
        ran = subprocess.run(
            [program, str(_MIB), str(_ROUNDS), "4k"],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        if ran.returncode == _UNSUPPORTED:
            self.cancel(f"KVM does not run it here: {ran.stderr.strip()}")
        self.assertEqual(ran.returncode, 0, ran.stderr)
        rounds = [[float(ms) for ms in line.split()] for line in ran.stdout.splitlines()[1:]]
        self.log.info("%s", ran.stdout)
        self.assertEqual(len(rounds), _ROUNDS)
        warm, new, then, moved, again, _ = map(median, zip(*rounds, strict=True))
        self.assertGreater(new, 3 * warm)
        self.assertGreater(moved, 3 * warm)
        self.assertGreater(new, 3 * then)
        self.assertGreater(moved, 3 * again)
