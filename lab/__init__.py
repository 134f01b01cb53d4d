# SPDX-License-Identifier: GPL-2.0-or-later
"""pageflip: a lab that upgrades a running QEMU and proves that nothing was lost."""

__version__ = "0.1.0"
