# SPDX-License-Identifier: GPL-2.0-or-later
"""Reviewing a patch series: it is collected, checked, built, tried and compared with its base."""
