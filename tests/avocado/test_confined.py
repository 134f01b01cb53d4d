# SPDX-License-Identifier: GPL-2.0-or-later
"""A QEMU that may do less than others starts its successor all the same, or says why not.

Parameters (avocado -p): as in test_upgrade.py.
"""

import sys
from pathlib import Path

import avocado
from upgrading import SECOND_QEMU, Upgrading

from lab.base.layout import Layout
from lab.model import Outcome, Result
from lab.pair import build

#: Lets all system calls pass but one, which fails with EPERM; inherited by whatever is started
#: (seccomp(2)).
_FILTER = """
import ctypes, os, struct, sys
refused = int(sys.argv.pop(1))
libc = ctypes.CDLL(None, use_errno=True)
PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS, SECCOMP_MODE_FILTER = 22, 38, 2
steps = b"".join(struct.pack("=HBBI", *step) for step in (
    (0x20, 0, 0, 0),  # BPF_LD | BPF_W | BPF_ABS: the system call's number
    (0x15, 0, 1, refused),  # BPF_JMP | BPF_JEQ | BPF_K
    (0x06, 0, 0, 0x00050001),  # BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM
    (0x06, 0, 0, 0x7FFF0000),  # BPF_RET | BPF_K, SECCOMP_RET_ALLOW
))
code = ctypes.create_string_buffer(steps, len(steps))
program = struct.pack("@HP", 4, ctypes.addressof(code))
assert libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
assert libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, program, 0, 0) == 0
os.execv(sys.argv[1], sys.argv[1:])
"""

#: x86-64's number, and one that no system call has.
_CLOSE_RANGE, _NO_SYSTEM_CALL = 436, 4000


class Confined(Upgrading, avocado.Test):
    """The old QEMU is started by something that takes a right from it.

    :avocado: tags=quick
    """

    ram = "512M"

    def flip_under(self, *wrapper: str) -> Result:
        """Upgrade a guest whose old QEMU was started by `wrapper`."""
        qemu = build.by_name(Layout.default(), self.params.get("old", default="old")).qemu
        script = Path(self.workdir) / "qemu"
        words = " ".join(f"'{word}'" for word in (*wrapper, str(qemu)))
        script.write_text(f'#!/bin/sh\nexec {words} "$@"\n', encoding="utf-8")
        script.chmod(0o755)
        # Which accelerator it has is of no matter here, and a program never seen before is tried.
        return self.upgrade("flip", 1 + 2 * SECOND_QEMU, old=str(script), accel="tcg")

    def test_no_new_privileges(self) -> None:
        """As a service manager starts it."""
        self.assertEqual(self.flip_under("setpriv", "--no-new-privs").reasons, [])

    def test_fixed_addresses(self) -> None:
        """Without ASLR both programs would want to be at the same place."""
        self.assertEqual(self.flip_under("setarch", "-R").reasons, [])

    def test_filtered(self) -> None:
        """A filter that takes nothing which the new QEMU needs, as containers have."""
        self.assertEqual(self.filtered(_NO_SYSTEM_CALL).reasons, [])

    def test_filtered_too_much(self) -> None:
        """What it does take is found out before the guest stops."""
        result = self.filtered(_CLOSE_RANGE)
        self.assertEqual(result.outcome, Outcome.ROLLED_BACK)
        self.assertEqual(result.integrity.bad_pages, 0)
        self.assertIsNone(result.pause_ms.before_stop)  # there was no STOP
        self.assertIn("close_range", " ".join(result.reasons))

    def filtered(self, refused: int) -> Result:
        """Upgrade a guest whose old QEMU is refused a system call."""
        filtering = Path(self.workdir) / "filter.py"
        filtering.write_text(_FILTER, encoding="utf-8")
        return self.flip_under(sys.executable, str(filtering), str(refused))
