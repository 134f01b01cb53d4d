# SPDX-License-Identifier: GPL-2.0-or-later
"""What the lab knows of QEMU's options is what the releases' sources say.

``python tests/patches/test_options.py`` writes lab/live/options.json anew.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from lab.base.layout import Layout
from lab.live import known
from lab.source.releases import load_releases
from lab.source.resolve import resolve, stock_tree

_LAYOUT = Layout.default()
_RELEASES = load_releases(_LAYOUT.patches / "releases.toml").releases
#: Whatever the host and the configuration: a line within an #ifdef counts as well.
_DEF = re.compile(r'^DEF\(\s*"([^"]+)"\s*,\s*(\w+)\s*,', re.MULTILINE)
_KINDS = {"HAS_ARG": "with", "0": "without"}


def options(definitions: str, parser: str) -> dict[str, list[str]]:
    """Return the options in the text of qemu-options.hx, and those in system/vl.c itself."""
    text = re.sub(r"^SRST.*?^ERST", "", definitions, flags=re.MULTILINE | re.DOTALL)
    table = parser.partition("QEMUOption qemu_options[] = {")[2].partition("};")[0]
    found = _DEF.findall(text) + re.findall(r'\{ "([^"]+)", (\w+), QEMU_OPTION_', table)
    assert len(_DEF.findall(text)) == len(re.findall(r"^DEF\b", text, re.MULTILINE))
    kinds: dict[str, set[str]] = {"with": set(), "without": set()}
    for name, argument in found:
        kinds[_KINDS[argument]].add(name)
    assert not kinds["with"] & kinds["without"]
    return {kind: sorted(names) for kind, names in kinds.items()}


def of_release(name: str) -> dict[str, list[str]]:
    """Return the options of a release's own source."""
    tree = stock_tree(_LAYOUT, resolve(_LAYOUT, _RELEASES[name]))
    paths: list[Path] = [tree / "qemu-options.hx", tree / "system" / "vl.c"]
    return options(*(path.read_text(encoding="utf-8") for path in paths))


@pytest.mark.parametrize("name", sorted(_RELEASES))
def test_every_option_is_known_and_whether_it_takes_a_value(name: str) -> None:
    assert known.RELEASES[name] == of_release(name), "python tests/patches/test_options.py"


if __name__ == "__main__":
    _found = {name: of_release(name) for name in sorted(_RELEASES)}
    known.FILE.write_text(json.dumps(_found, indent=1) + "\n", encoding="utf-8")
