# SPDX-License-Identifier: GPL-2.0-or-later
"""A patch series of somebody's: taken in, checked, built, tried, compared with what was there."""
