# SPDX-License-Identifier: GPL-2.0-or-later
"""How results are shown: on the screen, as tables, as a page."""
