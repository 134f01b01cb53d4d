# SPDX-License-Identifier: GPL-2.0-or-later
"""What is measured: the pause, the memory, the integrity.  Arithmetic apart from observation."""
