# SPDX-License-Identifier: GPL-2.0-or-later
"""The lab's end of `transplant/`: the helper that takes guests out of QEMUs without the series."""
