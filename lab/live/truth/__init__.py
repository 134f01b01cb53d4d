# SPDX-License-Identifier: GPL-2.0-or-later
"""What a running QEMU is: asked of its monitor, of the kernel and of /proc.

Nothing here comes from a command line.
"""

from __future__ import annotations

from lab.live.truth.model import Truth
from lab.live.truth.take import take

__all__ = ["Truth", "take"]
