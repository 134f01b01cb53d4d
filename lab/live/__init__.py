# SPDX-License-Identifier: GPL-2.0-or-later
"""QEMUs of others: looked at, and upgraded."""
