# SPDX-License-Identifier: GPL-2.0-or-later
"""What no command line says, told to the new QEMU before the guest is committed to it."""

from __future__ import annotations

from lab.live.truth import Truth
from lab.live.truth.ask import Asker
from lab.live.truth.block import limits
from lab.vm.monitor import Monitor

#: What block_set_io_throttle always wants (BlockIOThrottle in QEMU's qapi/block-core.json).
_RATES = ("bps", "bps_rd", "bps_wr", "iops", "iops_rd", "iops_wr")


def amend(old: Truth, new: Monitor) -> None:
    """Set the limits of drives (throttling) as they are in the old QEMU.

    Raises QmpError, MonitorError and DeadlineError.
    """
    drives = {one["device"] or one.get("qdev", ""): one for one in Asker(new).one("query-block")}
    for name, drive in old.block.drives.items():
        there = drives.get(name)
        if there is None or limits(there.get("inserted", {})) == drive.limits:
            continue
        which = {"device": name} if there["device"] else {"id": name}
        rates = {**dict.fromkeys(_RATES, 0), **drive.limits}
        if not rates.get("group"):
            rates.pop("group", None)
        new.execute("block_set_io_throttle", {**which, **rates})
