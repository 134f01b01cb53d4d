# SPDX-License-Identifier: GPL-2.0-or-later
"""Which mechanism is taken, and what is said when there is none."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from lab.base.errors import PreconditionError, UsageError
from lab.base.layout import CHECKOUT
from lab.mechanisms import (
    MECHANISMS,
    Copy,
    Flip,
    Handover,
    Remap,
    backing,
    choose,
    localhost_block,
    why,
)
from lab.model import Pages
from lab.vm.binary import Binary
from lab.vm.cmdline import Backing

STOCK = Binary(
    Path("/q"),
    "10.0.13",
    "0" * 64,
    None,
    frozenset({"migrate"}),
    frozenset({"normal", "cpr-transfer"}),
)
OURS = dataclasses.replace(
    STOCK,
    commands=frozenset({"migrate", "localhost-migrate"}),
    localhost_mechanisms=frozenset({"copy", "gift", "handover"}),
)
FLIPS = dataclasses.replace(
    OURS, localhost_mechanisms=frozenset({"copy", "gift", "handover", "flip"})
)


def test_who_moves_the_pools_pages() -> None:
    assert backing(Handover(), Pages.THP) is Backing.MEMFD
    assert backing(Flip(), Pages.HUGETLB) is Backing.HUGETLB
    with pytest.raises(PreconditionError, match="copy does not move private huge pages") as caught:
        backing(Copy(), Pages.HUGETLB)
    assert "one of flip, flip-late, precopy," in caught.value.hint


def test_the_best_that_both_have() -> None:
    assert choose("auto", OURS, OURS).name == "gift"
    assert choose("auto", FLIPS, FLIPS).name == "flip"
    every = {"copy", "gift", "handover", "flip", "remap"}
    able = dataclasses.replace(FLIPS, localhost_mechanisms=frozenset(every))
    assert choose("auto", able, able).name == "flip"
    assert choose("remap", able, able).joins
    with pytest.raises(PreconditionError, match=r"localhost-migrate of the new QEMU .* flip"):
        choose("flip-late", FLIPS, OURS)


def test_auto_takes_a_way_that_can_go_back_while_there_is_one() -> None:
    assert choose("auto", STOCK, OURS).name == "precopy"
    said = why(choose("precopy", STOCK, OURS), STOCK, OURS)
    assert said.startswith("mechanism precopy: ")
    assert "not flip, flip-late, remap, gift, copy: the old QEMU (10.0.13)" in said
    assert "not handover: it is for guests that were started with shared memory" in said
    assert "not postcopy: it cannot go back" in said
    assert "not transplant: the old QEMU (10.0.13) has no command xen-save" in said
    # A second copy of the guest does not fit: what cannot go back is better than to be killed.
    assert choose("auto", STOCK, OURS, room=False).name == "postcopy"
    said = why(choose("postcopy", STOCK, OURS), STOCK, OURS, room=False)
    assert "if the new QEMU does not load the device state, the guest is lost" in said


def test_what_the_pair_lacks_is_said_of_the_side_that_lacks_it() -> None:
    with pytest.raises(PreconditionError, match=r"the old QEMU \(10\.0\.13\) has no command"):
        choose("gift", STOCK, OURS)
    old = dataclasses.replace(STOCK, migration_modes=frozenset({"normal"}))
    with pytest.raises(PreconditionError, match="no migration mode cpr-transfer"):
        choose("cpr-transfer", old, OURS)
    able = dataclasses.replace(OURS, migration_modes=frozenset({"normal", "cpr-exec"}))
    with pytest.raises(PreconditionError, match=r"the old QEMU .* no migration mode cpr-exec"):
        choose("cpr-exec", STOCK, able)
    with pytest.raises(PreconditionError, match=r"the new QEMU .* no migration mode cpr-exec"):
        choose("cpr-exec", able, STOCK)
    assert choose("cpr-exec", able, able).in_place


def test_handover_is_asked_of_both_binaries() -> None:
    assert choose("handover", OURS, OURS).name == "handover"
    earlier = dataclasses.replace(OURS, localhost_mechanisms=frozenset({"copy", "gift"}))
    with pytest.raises(PreconditionError, match=r"localhost-migrate of the new QEMU .* handover"):
        choose("handover", OURS, earlier)
    with pytest.raises(PreconditionError, match=r"the old QEMU \(10\.0\.13\) has no command"):
        choose("handover", STOCK, OURS)


def test_an_unknown_name_lists_the_known() -> None:
    with pytest.raises(UsageError) as caught:
        choose("teleport", OURS, OURS)
    assert "teleport" in caught.value.message
    assert all(mechanism.name in caught.value.hint for mechanism in MECHANISMS)


def test_names_are_unique_and_described() -> None:
    assert len({m.name for m in MECHANISMS}) == len(MECHANISMS)
    assert all(m.summary for m in MECHANISMS)


def test_a_block_keeps_every_counter_apart() -> None:
    block = {
        "name": "pc.ram",
        "mechanism": "gift",
        "size": 10,
        "flipped-bytes": 7,
        "handed-over-bytes": 6,
        "remapped-bytes": 8,
        "gifted-bytes": 4,
        "copied-bytes": 1,
        "faulted-bytes": 2,
        "zero-bytes": 3,
        "untouched-bytes": 5,
    }
    found = Copy().blocks({"localhost": {"blocks": [block]}}, 10)
    assert found == [localhost_block(block)]
    assert (
        found[0].flipped_bytes,
        found[0].handed_over_bytes,
        found[0].remapped_bytes,
        found[0].gifted_bytes,
        found[0].copied_bytes,
        found[0].faulted_bytes,
        found[0].zero_bytes,
        found[0].untouched_bytes,
    ) == (7, 6, 8, 4, 1, 2, 3, 5)


def test_what_had_to_be_copied_for_remap_the_new_qemu_knows() -> None:
    remap = Remap()
    old = {"status": "completed", "localhost": {"mechanism": "remap", "blocks": [{"name": "old"}]}}
    new = {"localhost": {"blocks": [{"name": "new"}]}}
    assert remap.told(old, new) == {
        "status": "completed",
        "localhost": {"mechanism": "remap", "blocks": [{"name": "new"}]},
    }
    assert remap.told(old, {}) == old  # it has not answered
    fell_back = {"localhost": {"mechanism": "flip", "fallback": "why", "blocks": []}}
    assert remap.told(fell_back, new) == fell_back
    assert remap.told({}, new) == {}  # the old QEMU has ended
    assert Flip().told(old, new) == old


def test_who_starts_the_new_qemu_has_to_pass_descriptors() -> None:
    assert choose("gift", FLIPS, FLIPS).missing_for_descriptors(FLIPS) == ""
    flip = choose("flip", FLIPS, FLIPS)
    assert "has no argument fds" in flip.missing_for_descriptors(FLIPS)
    able = dataclasses.replace(FLIPS, localhost_arguments=frozenset({"uri", "fds"}))
    assert flip.missing_for_descriptors(able) == ""


def test_an_arm64_guest_is_moved_by_every_mechanism() -> None:
    """The documents say so; the test that tries it is too long to be run each time."""
    text = (CHECKOUT / "tests" / "avocado" / "test_arm64.py").read_text(encoding="utf-8")
    tried = re.findall(r'self\.within\("([\w-]+)"', text)
    assert sorted(tried) == sorted(mechanism.name for mechanism in MECHANISMS)
