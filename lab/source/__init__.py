# SPDX-License-Identifier: GPL-2.0-or-later
"""Sources and patch series: where they come from, and that they are what was pinned."""
