# SPDX-License-Identifier: GPL-2.0-or-later
"""The lab's end of `transplant/`, the helper for QEMUs without the series; and devices' state."""
