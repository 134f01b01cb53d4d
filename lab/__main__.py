# SPDX-License-Identifier: GPL-2.0-or-later
"""``python -m lab``."""

import sys

from lab.cli import main

sys.exit(main())
