# SPDX-License-Identifier: GPL-2.0-or-later
"""The static check of the devices' state; the checker is a stand-in with QEMU's manners."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lab.base.errors import CannotTellError
from lab.review import vmstate

SECTION: dict[str, Any] = {"Name": "x", "version_id": 1, "Description": {"Fields": []}}
_CHECKER = """
import json, sys
source, destination = json.load(open(sys.argv[2])), json.load(open(sys.argv[4]))
missing = [name for name in source if name not in destination]
if "broken" in source:
    raise KeyError("broken")
if "warned" in source:
    print("Warning: checking incompatible machine types")
if "mute" in source:
    sys.exit(1)
for name in missing:
    print(f'Section "{name}" does not exist in dest')
sys.exit(len(missing))
"""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "vmstate-static-checker.py").write_text(_CHECKER)
    return tmp_path


def dumped(tree: Path, name: str, *sections: str) -> Path:
    path = tree / f"{name}.json"
    path.write_text(json.dumps(dict.fromkeys(sections, SECTION)))
    return path


def test_differences_are_named_and_order_means_nothing() -> None:
    one = {"a": SECTION, "b": SECTION, "c": SECTION}
    assert vmstate.differences(one, dict(reversed(one.items()))) == []
    other = {"b": {**SECTION, "version_id": 2}, "a": SECTION, "d": SECTION}
    assert vmstate.differences(one, other) == ["b", "c", "d"]


def test_the_same_dump_needs_no_checker(tree: Path) -> None:
    one, other = dumped(tree, "one", "broken", "b"), dumped(tree, "other", "b", "broken")
    found = vmstate.same_release(tree, "pc", "old", one, other)
    assert (found.passed, found.text) == (True, "the same dump")


@pytest.mark.parametrize("swapped", [False, True])
def test_a_section_that_only_one_has_breaks_one_way(tree: Path, swapped: bool) -> None:
    pair = [dumped(tree, "one", "a"), dumped(tree, "other", "a", "more")]
    stock, patched = reversed(pair) if swapped else pair
    found = vmstate.same_release(tree, "pc", "old", stock, patched)
    assert not found.passed
    assert found.text == 'differ: more\nSection "more" does not exist in dest'


def test_what_the_checker_lets_pass_both_ways_passes(tree: Path) -> None:
    one, other = dumped(tree, "one", "a"), dumped(tree, "other", "a")
    other.write_text(json.dumps({"a": {**SECTION, "Name": "y"}}))
    found = vmstate.same_release(tree, "pc", "old", one, other)
    assert (found.passed, found.text) == (True, "differ: a")


def test_a_warning_is_no_error(tree: Path) -> None:
    one = dumped(tree, "one", "warned")
    assert vmstate.check(tree, one, one).startswith("Warning:")


@pytest.mark.parametrize("name", ["broken", "mute"])
def test_a_checker_that_breaks_is_the_labs_trouble(tree: Path, name: str) -> None:
    one = dumped(tree, "one", name)
    with pytest.raises(CannotTellError, match="vmstate-static-checker"):
        vmstate.check(tree, one, one)


@pytest.mark.parametrize("text", ["{", "[]"])
def test_a_dump_that_is_none_is_told(tree: Path, text: str) -> None:
    one = dumped(tree, "one", "a")
    one.write_text(text)
    with pytest.raises(CannotTellError, match="is not what -dump-vmstate writes"):
        vmstate.same_release(tree, "pc", "old", one, one)


def test_a_qemu_that_writes_nothing_is_told(tmp_path: Path) -> None:
    with pytest.raises(CannotTellError, match="wrote no description"):
        vmstate.dump(Path("/bin/true"), tmp_path, "pc", tmp_path / "dump")


def test_both_upgrades_must_read_the_same() -> None:
    assert vmstate.same_upgrade("pc", "", "").text == "clean for both"
    same = vmstate.same_upgrade("pc", "a\nb", "a\nb")
    assert (same.passed, same.text) == (True, "the checker says the same of both, 2 lines:\na\nb")
    changed = vmstate.same_upgrade("pc", "a\nb", "b\nc")
    assert (changed.passed, changed.text) == (False, "only stock: a\nonly patched: c")
    assert not vmstate.same_upgrade("pc", "a\nb", "b\na").passed


def test_machines_are_pinned() -> None:
    assert vmstate.machines("10.0") == ["pc-q35-10.0", "pc-i440fx-10.0"]
