# SPDX-License-Identifier: GPL-2.0-or-later
"""The pages for people: links lead somewhere, and every verb is in the list of commands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lab.base.layout import CHECKOUT
from lab.cli import VERBS

PAGES = sorted([*CHECKOUT.glob("*.md"), *(CHECKOUT / "docs").glob("*.md")])
_LINK = re.compile(r"\]\((?!https?:)([^)#]*)(?:#([^)]*))?\)")


def anchors(page: Path) -> set[str]:
    """Return what headings are called in links."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for name, anchor in _LINK.findall(page.read_text(encoding="utf-8")):
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), f"{page.name}: {name}"
        assert not anchor or anchor in anchors(target), f"{page.name}: {name}#{anchor}"


def test_every_verb_is_in_the_list_of_commands() -> None:
    text = (CHECKOUT / "docs" / "commands.md").read_text(encoding="utf-8")
    missing = [verb for verb in VERBS if f"| `{verb}` |" not in text]
    assert not missing
