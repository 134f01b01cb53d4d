# SPDX-License-Identifier: GPL-2.0-or-later
"""A QEMU: its binary, its command line, its process, its monitor, the agents in its guest."""
