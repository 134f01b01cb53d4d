# SPDX-License-Identifier: GPL-2.0-or-later
"""Who manages QEMUs that the lab did not start: libvirt, Proxmox."""

from __future__ import annotations

from lab.managers.base import Manager
from lab.managers.journal import Guest
from lab.managers.libvirt import Libvirt
from lab.managers.proxmox import Proxmox

__all__ = ["Guest", "Manager", "named"]


def named(connection: str) -> Manager:
    """Return the manager of a connection as ``--connect`` names it; raise UsageError."""
    return Proxmox() if connection == Proxmox.name else Libvirt(connection)
