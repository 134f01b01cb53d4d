# SPDX-License-Identifier: GPL-2.0-or-later
"""Options that are the fields of a model."""

from __future__ import annotations

import argparse
import shlex
from typing import Annotated

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab.base import arguments
from lab.base.arguments import Option
from lab.model import Model, Pages


class Asked(Model):
    """One of each kind."""

    name: Annotated[str, Option("a name, 100 % of it", "NAME", compared=True)] = "plain"
    nothing: Annotated[str, Option("may be left out", live=True)] = ""
    number: Annotated[int, Option("how many", "N", live=True)] = 3
    limit: Annotated[float, Option("how much", "X")] = 1.25
    several: Annotated[tuple[str, ...], Option("some", "A,B")] = ("a", "b")
    pages: Annotated[Pages, Option("what pages", compared=True)] = Pages.THP
    kind: Annotated[str, Option("which", choices=("x", "y"))] = "x"
    on: Annotated[bool, Option("switch it off")] = True
    off: Annotated[bool, Option("switch it on")] = False
    kept: int = 0


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser()
    arguments.declare(made, Asked)
    return made


def parsed(*words: str) -> Asked:
    return Asked(**arguments.read(Asked, parser().parse_args(words)))


def test_what_is_not_given_is_the_default() -> None:
    assert parsed() == Asked()


def test_the_help_has_every_default_and_what_may_be_chosen() -> None:
    text = " ".join(parser().format_help().split())
    assert "100 % of it (default: plain)" in text
    assert "how much (default: 1.25)" in text
    assert "some (default: a,b)" in text
    assert "--pages {thp,4k,hugetlb}" in text
    assert "--no-on switch it off" in text
    assert "may be left out --" in text
    assert "--kept" not in text


@pytest.mark.parametrize("words", [("--number", "x"), ("--kind", "z"), ("--pages", "1g")])
def test_what_cannot_be_is_wrong_usage(words: tuple[str, ...]) -> None:
    with pytest.raises(SystemExit, match="2"):
        parsed(*words)


_WORD = st.text(min_size=1).filter(lambda text: not text.startswith("-") and "\0" not in text)
_ITEM = _WORD.filter(lambda text: "," not in text)


@given(
    st.builds(
        Asked,
        name=_WORD,
        nothing=st.just("") | _WORD,
        number=st.integers(min_value=0),
        limit=st.floats(min_value=0, allow_infinity=False),
        several=st.lists(_ITEM, min_size=1).map(tuple),
        pages=st.sampled_from(Pages),
        kind=st.sampled_from(["x", "y"]),
        on=st.booleans(),
        off=st.booleans(),
    )
)
def test_the_command_asks_for_the_same(asked: Asked) -> None:
    words = shlex.split(arguments.command("try", asked))
    assert words[:2] == ["./pageflip", "try"]
    assert parsed(*words[2:]) == asked


def test_what_makes_another_measurement() -> None:
    assert arguments.compared(Asked) == ["name", "pages"]


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ((), ""),
        (("--number", "4", "--nothing", "x"), ""),
        (("--number", "4", "--name", "x"), "--name"),
        (("--no-on",), "--no-on"),
        (("--off",), "--off"),
    ],
)
def test_what_does_not_apply_to_a_running_qemu(words: tuple[str, ...], found: str) -> None:
    assert arguments.foreign(Asked, parser().parse_args(words)) == found
