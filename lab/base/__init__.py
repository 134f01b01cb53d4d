# SPDX-License-Identifier: GPL-2.0-or-later
"""What every room stands on: processes, time, errors, places, progress, records."""
