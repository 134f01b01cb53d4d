# SPDX-License-Identifier: GPL-2.0-or-later
"""What the user types: a file for each verb, thin."""
