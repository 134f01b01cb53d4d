# SPDX-License-Identifier: GPL-2.0-or-later
"""The results of many runs: figures, rounds, statistics, conditions.  Pure."""
