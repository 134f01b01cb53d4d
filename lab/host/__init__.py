# SPDX-License-Identifier: GPL-2.0-or-later
"""The machine the lab runs on: what it is, and what it can give."""
