# SPDX-License-Identifier: GPL-2.0-or-later
"""Guest images: how they are made, and the disks that runs use."""
