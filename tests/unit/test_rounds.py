# SPDX-License-Identifier: GPL-2.0-or-later
"""Which run comes when."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import fake_bench
import pytest

from lab.results.rounds import in_turn, order, plan, split


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 6, 7])
def test_each_follows_every_other_equally_often(n: int) -> None:
    names = [f"m{place}" for place in range(n)]
    rounds = [order(names, number) for number in range(n if n % 2 == 0 else 2 * n)]
    assert all(sorted(row) == names for row in rounds)
    follows = Counter(pair for row in rounds for pair in pairwise(row))
    assert set(follows.values()) == ({len(rounds) // n} if n > 1 else set())
    assert len(follows) == n * (n - 1)
    places = Counter((name, place) for row in rounds for place, name in enumerate(row))
    assert set(places.values()) == {len(rounds) // n}
    assert len(places) == n * n


@pytest.mark.parametrize("n", [3, 4, 5, 6, 7])
def test_few_rounds_are_enough_for_nobody_to_follow_always_the_same(n: int) -> None:
    names = [f"m{place}" for place in range(n)]
    rounds = [order(names, number) for number in range(3)]
    before = [{row.index(name) and row[row.index(name) - 1] for row in rounds} for name in names]
    assert all(len(seen) > 1 for seen in before)


def test_a_plan_is_sizes_then_rounds_then_mechanisms() -> None:
    request = fake_bench.request("--mechanisms", "gift,copy", "--ram", "1G,2G", "--repeats", "2")
    slots = [(s.load.ram_bytes // 2**30, s.round, s.label) for s in plan(request)]
    assert slots == [
        (size, number, name)
        for size in (1, 2)
        for number, names in enumerate((("gift", "copy"), ("copy", "gift"), ("gift", "copy")))
        for name in names
    ]


def test_a_round_has_every_rate_and_they_take_turns() -> None:
    request = fake_bench.request(
        "--mechanisms", "gift,copy", "--ram", "1G", "--repeats", "1", "--dirty-rate", "0,50M"
    )
    slots = plan(request)
    assert [(s.round, s.load.dirty_rate // 2**20, s.label) for s in slots] == [
        (0, 0, "gift"), (0, 0, "copy"), (0, 50, "gift"), (0, 50, "copy"),
        (1, 50, "copy"), (1, 50, "gift"), (1, 0, "copy"), (1, 0, "gift"),
    ]  # fmt: skip
    assert slots[2].title == "gift, 1024 MiB, 50 MiB/s rewritten, warm-up"
    assert "--dirty-rate 50M" in slots[2].options.reproduce


def test_the_same_with_and_without_reading_memory() -> None:
    labels = "flip,flip:unsampled,flip:unsampled@10.0"
    request = fake_bench.request("--mechanisms", labels, "--ram", "1G", "--repeats", "1")
    found = {slot.label: slot.options for slot in plan(request)}
    assert [(o.mechanism, o.memory_samples, o.new) for o in found.values()] == [
        ("flip", True, "new"), ("flip", False, "new"), ("flip", False, "10.0"),
    ]  # fmt: skip


def test_what_is_one_mechanism_is_run_one_after_the_other() -> None:
    labels = ["flip", "gift", "flip@10.2+s", "gift@10.2+s", "copy"]
    rounds = [[label[:4] for label in in_turn(labels, number)] for number in range(6)]
    for row in rounds:
        assert abs(row.index("flip") - (4 - row[::-1].index("flip"))) == 1
        assert abs(row.index("gift") - (4 - row[::-1].index("gift"))) == 1
    whole = [in_turn(labels, number) for number in range(6)]
    first = [row.index("flip") < row.index("flip@10.2+s") for row in whole]
    assert first == [True, False, True, False, True, False]
    assert all(sorted(row) == sorted(labels) for row in whole)
    words = ("--mechanisms", ",".join(labels), "--ram", "1G", "--repeats", "1")
    assert [slot.label for slot in plan(fake_bench.request(*words))][5:] == whole[1]


def test_one_rate_is_not_mentioned() -> None:
    request = fake_bench.request("--mechanisms", "gift", "--ram", "1G", "--dirty-rate", "50M")
    assert plan(request)[-1].title == "gift, 1024 MiB, round 5"


def test_every_slot_is_the_upgrade_that_was_asked_for() -> None:
    request = fake_bench.request(
        "--mechanisms", "copy", "--ram", "1G", "--touch", "25%", "--dirty-rate", "3M",
        "--accel", "tcg", "--guest", "micro", "--old", "/a b/qemu",
    )  # fmt: skip
    for slot in plan(request):
        wanted = slot.options
        assert (wanted.touched_bytes, wanted.dirty_bytes_s) == (2**28, 3 * 2**20)
        assert (wanted.accel, wanted.guest, wanted.old) == ("tcg", "micro", "/a b/qemu")
        assert "--mechanism copy" in wanted.reproduce


@pytest.mark.parametrize(
    ("label", "says"),
    [
        ("flip", ("flip", "", "")),
        ("flip@10.2", ("flip", "", "10.2")),
        ("flip@stock:10.2+/a:b/c@d", ("flip", "", "stock:10.2+/a:b/c@d")),
        ("flip@10.0::10.2", ("flip", "10.0", "10.2")),
        ("flip@stock:10.0+../s@t::/q/qemu", ("flip", "stock:10.0+../s@t", "/q/qemu")),
        ("flip@10.0+s::", ("flip", "10.0+s", "")),
    ],
)
def test_a_label_names_the_qemus_that_are_not_the_benchs_own(
    label: str, says: tuple[str, str, str]
) -> None:
    assert split(label) == says
    (slot,) = plan(fake_bench.request("--mechanisms", label, "--repeats", "1"))[1:]
    _, old, new = says
    assert (slot.options.old, slot.options.new) == (old or "old", new or "new")
    assert slot.options.mechanism == "flip"
