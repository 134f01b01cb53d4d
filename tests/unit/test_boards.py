# SPDX-License-Identifier: GPL-2.0-or-later
"""Which machine type a guest is given."""

from __future__ import annotations

import pytest

from lab.base.errors import UsageError
from lab.vm import boards

_OLD = [
    "pc-q35-9.0",
    "pc-q35-9.2",
    "pc-q35-10.0",
    "pc-i440fx-9.2",
    "microvm",
    "none",
    "pc-q35-rhel9",
]
_NEW = ["pc-q35-9.2", "pc-q35-10.0", "pc-q35-10.2", "pc-q35-11.0", "microvm", "none", "isapc"]


@pytest.mark.parametrize(
    ("wanted", "old", "new", "found"),
    [
        ("q35", _OLD, _NEW, "pc-q35-10.0"),  # by number: 9.2 is not above 10.0
        ("q35", _NEW, _OLD, "pc-q35-10.0"),
        ("q35", _NEW, _NEW, "pc-q35-11.0"),
        ("i440fx", _OLD, _OLD, "pc-i440fx-9.2"),
        ("pc-q35-9.2", _OLD, _NEW, "pc-q35-9.2"),
        ("microvm", _OLD, _NEW, "microvm"),
        ("virt", ["virt-10.0", "virt-9.2"], ["virt-10.0", "virt-11.0"], "virt-10.0"),
    ],
)
def test_the_newest_that_both_have(wanted: str, old: list[str], new: list[str], found: str) -> None:
    assert boards.common(wanted, old, new) == found


def test_two_that_share_no_version_are_told_apart_by_their_newest() -> None:
    with pytest.raises(UsageError) as caught:
        boards.common("i440fx", _OLD, _NEW)
    assert "the newest of the old one is pc-i440fx-9.2, of the new one none" in caught.value.message


@pytest.mark.parametrize(
    ("wanted", "lacking"),
    [
        ("pc-q35-11.0", "the old QEMU"),
        ("pc-q35-9.0", "the new QEMU"),
        ("x", "old and the new QEMU"),
    ],
)
def test_a_type_that_one_lacks_is_answered_with_what_both_have(wanted: str, lacking: str) -> None:
    with pytest.raises(UsageError) as caught:
        boards.common(wanted, _OLD, _NEW)
    assert lacking in caught.value.message
    assert "pc-q35-10.0" in caught.value.hint
