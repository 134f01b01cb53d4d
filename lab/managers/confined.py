# SPDX-License-Identifier: GPL-2.0-or-later
"""AppArmor and SELinux around a managed QEMU: what they would refuse its successor."""

from __future__ import annotations

import os
from contextlib import suppress
from fnmatch import fnmatchcase
from pathlib import Path

#: What AppArmor's abstractions/libvirt-qemu lets QEMU execute and map.
_PROGRAMS = (
    "/usr/bin/kvm",
    "/usr/bin/qemu-kvm",
    "/usr/bin/qemu-system-*",
    "/usr/lib/qemu/*",
    "/usr/libexec/qemu-kvm",
)
_CONTEXT = "security.selinux"


def refusal(pid: int, new: Path) -> str:
    """Return why a security module would not let process `pid` become `new`; "" for no reason.

    A new QEMU that the old one starts, or is taken out of it, has its label and its profile.
    """
    label = ""
    with suppress(OSError):  # a kernel without such a module has none (proc_pid_attr(5))
        label = Path(f"/proc/{pid}/attr/current").read_text(encoding="utf-8").strip("\0\n ")
    return of_label(label, new, _context(Path(f"/proc/{pid}/exe")), _context(new))


def of_label(label: str, new: Path, old_context: str, new_context: str) -> str:
    """Return the same, of a process's label and both programs' contexts."""
    if label.endswith(" (enforce)"):
        if any(fnmatchcase(str(new), pattern) for pattern in _PROGRAMS):
            return ""
        return (
            f"AppArmor's profile {label.removesuffix(' (enforce)')} does not let it map {new}: "
            "install the new QEMU where the distribution has its own, or allow it in "
            "/etc/apparmor.d/local/abstractions/libvirt-qemu"
        )
    if label.count(":") >= 2 and old_context != new_context:
        return (
            f"SELinux has {new} as {new_context or 'nothing'}, and the program that runs as "
            f"{old_context or 'nothing'}: restorecon {new}, or chcon --reference"
        )
    return ""


def _context(path: Path) -> str:
    try:
        return os.getxattr(path, _CONTEXT).decode().strip("\0")
    except OSError:
        return ""
