# SPDX-License-Identifier: GPL-2.0-or-later
"""The options of QEMU's command line, and which of them take a value.

They are read from ``options.json``, which has them for every release in ``patches/releases.toml``.
``python tests/patches/test_options.py`` writes it from the releases' sources (qemu-options.hx).
"""

from __future__ import annotations

import json
from pathlib import Path

#: What the lab knows of each release's options: ``without`` a value, and ``with`` one.
FILE = Path(__file__).with_name("options.json")
RELEASES: dict[str, dict[str, list[str]]] = json.loads(FILE.read_text(encoding="utf-8"))

#: Options with a value that are Proxmox VE's own, which installs QEMU with them.
_PROXMOX = frozenset({"id"})

#: Options without a value.
WITHOUT = frozenset(name for one in RELEASES.values() for name in one["without"])
#: Options with one.
WITH = frozenset(name for one in RELEASES.values() for name in one["with"]) | _PROXMOX
