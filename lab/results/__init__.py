# SPDX-License-Identifier: GPL-2.0-or-later
"""What many runs come to: figures, rounds, statistics, conditions.  Pure."""
