# SPDX-License-Identifier: GPL-2.0-or-later
"""The templates of reports and pictures; whatever is put into one is escaped."""

from __future__ import annotations

from pathlib import Path

import jinja2


def environment() -> jinja2.Environment:
    """Return where templates come from."""
    loader = jinja2.FileSystemLoader(Path(__file__).parent / "templates")
    return jinja2.Environment(loader=loader, autoescape=True)
