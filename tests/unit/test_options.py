# SPDX-License-Identifier: GPL-2.0-or-later
"""What the user asks for."""

from __future__ import annotations

import argparse
import contextlib
import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab import options
from lab.base.errors import UsageError
from lab.model import Pages


def parsed(*words: str) -> options.UpgradeOptions:
    parser = argparse.ArgumentParser()
    options.add_arguments(parser)
    return options.parse(parser.parse_args(words))


def test_pages() -> None:
    wanted = parsed("--pages", "hugetlb", "--ram", "514M")
    assert wanted.pages is Pages.HUGETLB
    assert "--pages hugetlb" in wanted.reproduce


def test_defaults_are_those_of_the_readme() -> None:
    assert parsed() == options.UpgradeOptions()


@pytest.mark.parametrize(
    ("text", "value"),
    [("2G", 2**31), ("512M", 2**29), ("1.5GiB", 3 * 2**29), ("4096", 4096), ("0", 0), ("1k", 1024)],
)
def test_sizes(text: str, value: int) -> None:
    assert options.size(text) == value


@given(st.text(max_size=12))
def test_a_size_is_a_number_or_a_usage_error(text: str) -> None:
    with contextlib.suppress(UsageError):
        assert options.size(text) >= 0


@pytest.mark.parametrize(
    "words",
    [
        ("--ram", "2Q"),
        ("--ram", "64M"),
        ("--ram", "300.5M"),
        ("--touch", "0%"),
        ("--touch", "101%"),
        ("--touch", "x%"),
        ("--ram", "1G", "--touch", "1000M"),
        ("--limit-pause-ms", "0"),
        ("--limit-memory-ratio", "-1"),
        ("--limit-pause-ms", "nan"),
        ("--limit-memory-ratio", "inf"),
        ("--cpus", "0"),
        ("--dirty-rate", "fast"),
        ("--memory-margin", "some"),
        ("--pages", "hugetlb", "--ram", "513M"),
        ("--pages", "hugetlb", "--memory-margin", "64M"),
    ],
)
def test_what_cannot_be_is_refused(words: tuple[str, ...]) -> None:
    with pytest.raises(UsageError):
        parsed(*words)


def test_touch_is_whole_pages_of_the_ram() -> None:
    assert parsed("--ram", "1G", "--touch", "33%").touched_bytes % 4096 == 0
    assert parsed("--ram", "1G", "--touch", "256M").touched_bytes == 2**28


def test_the_reproducer_asks_for_the_same() -> None:
    first = parsed(
        "--ram", "1G", "--mechanism", "copy", "--old", "/a b/qemu", "--limit-pause-ms", "7"
    )
    words = shlex.split(first.reproduce)
    assert words[:2] == ["./pageflip", "upgrade"]
    assert parsed(*words[2:]) == first


def test_each_guest_has_a_smallest_size_of_its_own() -> None:
    assert parsed("--guest", "micro", "--ram", "64M").ram_bytes == 64 * 2**20
    with pytest.raises(UsageError, match="tiny needs at least 256M"):
        parsed("--guest", "tiny", "--ram", "64M")
    with pytest.raises(UsageError, match="micro needs at least 32M"):
        parsed("--guest", "micro", "--ram", "16M")
    with pytest.raises(UsageError, match="less than 16 MiB for itself"):
        parsed("--guest", "micro", "--ram", "64M", "--touch", "60M")
    with pytest.raises(UsageError, match="no guest 'giant'"):
        parsed("--guest", "giant")


def test_a_memory_margin_is_asked_for_and_told_again() -> None:
    assert parsed().margin_bytes is None
    wanted = parsed("--memory-margin", "256M")
    assert wanted.margin_bytes == 256 << 20
    again = shlex.split(wanted.reproduce)
    assert again[again.index("--memory-margin") + 1] == "256M"


def test_workloads_are_asked_for_and_told_again() -> None:
    assert parsed().workloads == ()
    wanted = parsed("--workload", "network,network")
    assert [workload.name for workload in wanted.workloads] == ["network"]
    assert parsed(*shlex.split(wanted.reproduce)[2:]).workloads == wanted.workloads
    with pytest.raises(UsageError, match="no workload 'juggling'") as caught:
        parsed("--workload", "network,juggling")
    assert "network " in caught.value.hint


def test_memory_need_not_be_sampled() -> None:
    assert parsed("--ram", "1G").memory_samples
    asked = parsed("--no-memory-samples")
    assert not asked.memory_samples
    assert "--no-memory-samples" in asked.reproduce
    assert "--no-memory-samples" not in parsed("--ram", "1G").reproduce
