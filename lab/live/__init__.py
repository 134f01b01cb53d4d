# SPDX-License-Identifier: GPL-2.0-or-later
"""QEMUs that the lab did not start: examined, and upgraded."""
