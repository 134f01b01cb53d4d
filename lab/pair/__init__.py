# SPDX-License-Identifier: GPL-2.0-or-later
"""The two QEMUs: how they are built, and what they are built and run with."""
