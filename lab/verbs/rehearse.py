# SPDX-License-Identifier: GPL-2.0-or-later
"""The verb `rehearse`: upgrade a guest up to the last moment, and go back."""

from __future__ import annotations

import argparse

from lab.verbs import upgrade

add_arguments = upgrade.add_arguments


def run(given: argparse.Namespace) -> int:
    """Do what ``pageflip rehearse`` says; the exit code is 1 when the new QEMU cannot load it."""
    return upgrade.run(given, rehearse=True)
