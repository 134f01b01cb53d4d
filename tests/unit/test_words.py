# SPDX-License-Identifier: GPL-2.0-or-later
"""The verdict in words: of a bench, and of a single upgrade."""

from __future__ import annotations

import re
from typing import Any

import made_bench
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_screen import result

from lab.report import words
from lab.report.words import Says, State, Words
from lab.results.figures import Bench, NotRun
from lab.results.statistics import estimate, ratios


def sentence(pauses: made_bench.Pauses, **more: Any) -> str:
    """Return the only sentence on a bench of these pauses."""
    (only,) = words.of_bench(made_bench.of_pauses(pauses, **more)).sentences
    return only


FIVE = [99.0, 30.0, 31.0, 32.0, 33.0, 34.0]


def test_five_rounds_that_cannot_tell_two_apart() -> None:
    flip = [99.0, 24.0, 62.0, 31.0, 26.0, 36.0]
    assert sentence({"flip": flip, "cpr-transfer": FIVE}) == (
        "flip's pause as seen from outside is 0.969 times cpr-transfer's [0.788, 2.00]: five "
        "rounds on this host cannot tell them apart."
    )


@pytest.mark.parametrize(
    ("factor", "than", "ratio"), [(2, "longer", "2.00"), (0.5, "shorter", "0.500")]
)
def test_a_difference(factor: float, than: str, ratio: str) -> None:
    flip = [factor * ms for ms in FIVE]
    assert sentence({"flip": flip, "cpr-transfer": FIVE}) == (
        f"flip's pause as seen from outside is {than} than cpr-transfer's: {ratio} times "
        f"[{ratio}, {ratio}] in five rounds."
    )


def test_few_rounds_are_called_few() -> None:
    said = sentence({"flip": [9.0, 60.0, 62.0], "precopy": [9.0, 30.0, 30.0]})
    assert said.endswith("2.03 times [2.00, 2.07] in two rounds. Two rounds are few: an interval "
                         "is no more than their range.")  # fmt: skip


def test_a_difference_within_the_noise_shows_nothing() -> None:
    flip = [1.2 * ms for ms in FIVE]
    assert sentence({"flip": flip, "precopy": FIVE}, noise_ms=6.5) == (
        "flip's pause as seen from outside is 1.20 times precopy's [1.20, 1.20], but the "
        "difference is smaller than the gaps between heartbeats without an upgrade (6.50 ms): it "
        "shows nothing."
    )
    assert " longer than " in sentence({"flip": flip, "precopy": FIVE}, noise_ms=6.3)


def test_one_round() -> None:
    assert sentence({"flip": [9.0, 20.0], "precopy": [9.0, 10.0]}) == (
        "flip's pause as seen from outside is 2.00 times precopy's in the only round that has "
        "both: one round cannot tell a difference from noise."
    )


def test_no_round_that_has_both() -> None:
    assert sentence({"flip": [9.0, 20.0, None], "precopy": [9.0, None, 10.0]}) == (
        "As seen from outside, flip's pause is 20.0 ms and precopy's pause is 10.0 ms; no round "
        "has both, so they cannot be compared."
    )


def test_without_the_reference() -> None:
    pauses = {"flip": FIVE, "gift": [9.0, 40.0], "precopy": [None]}
    assert sentence(pauses) == (
        "precopy, the reference, was not measured, so there is nothing to compare with. As seen "
        "from outside, flip's pause is 32.0 ms [30.0, 34.0] and gift's pause is 40.0 ms."
    )


def test_the_reference_alone() -> None:
    assert sentence({"precopy": FIVE}) == (
        "As seen from outside, precopy's pause is 32.0 ms [30.0, 34.0]. No other mechanism was "
        "measured to compare it with."
    )


def test_several_mechanisms_are_grouped_by_what_can_be_said() -> None:
    pauses = {
        "gift": [6 * ms for ms in FIVE],
        "copy": [9 * ms for ms in FIVE],
        "handover": [ms / 2 for ms in FIVE],
        "flip": [99.0, 40.0, 20.0, 32.0, 33.0, 34.0],
        "flip-late": [ms + 0.5 for ms in FIVE],
        "postcopy": [99.0, None, None, None, None, None],
        "multifd": [99.0, 70.0, None, None, None, None],
        "cpr-transfer": FIVE,
    }
    said = sentence(pauses)
    assert said.startswith(
        "As seen from outside, the pause is shorter than cpr-transfer's (32.0 ms) with handover "
        "(0.500 times [0.500, 0.500]), and longer than cpr-transfer's (32.0 ms) with gift (6.00 "
        "times [6.00, 6.00]) and copy (9.00 times [9.00, 9.00])."
    )
    assert (
        " rounds on this host cannot tell flip (1.00 times [0.645, 1.33]) from cpr-transfer. "
        in said
    )
    assert " flip-late (1.02 times [1.01, 1.02]) differs from cpr-transfer, but " in said
    assert " only one round to compare multifd (2.33 times) with " in said
    assert "postcopy" not in said  # its warm-up does not count


def test_several_that_cannot_be_told_apart() -> None:
    same = [99.0, 40.0, 20.0, 32.0, 33.0, 34.0]
    assert sentence({"flip": same, "gift": same, "precopy": FIVE}) == (
        "Five rounds on this host cannot tell flip (1.00 times [0.645, 1.33]) or gift (1.00 times "
        "[0.645, 1.33]) from precopy's (32.0 ms) by the pause as seen from outside."
    )


def loads(*ram_mib: int) -> Bench:
    """Return a bench in which flip takes twice precopy's time, whatever the size."""
    runs = [
        made_bench.run(name, number, ms * size / 100, size)
        for size in ram_mib
        for name, ms in (("flip", 20.0), ("precopy", 10.0))
        for number in range(6)
    ]
    names = ["flip", "precopy"]
    return made_bench.of_runs(runs, names, ",".join(f"{size}M" for size in ram_mib))


def test_every_load_has_a_sentence_and_of_many_the_largest() -> None:
    few = words.of_bench(loads(256, 512, 1024)).sentences
    assert [text.split(":")[0] for text in few] == ["256 MiB", "512 MiB", "1024 MiB"]
    assert all(" longer than precopy's: 2.00 times " in text for text in few)
    (only,) = words.of_bench(loads(256, 4096, 300, 400, 500, 600, 700)).sentences
    assert only.startswith("Under the largest load, 4096 MiB: flip's pause ")
    assert only.endswith(" The other six loads are in the tables below.")


def test_rates_are_loads_too() -> None:
    runs = [
        made_bench.run(name, number, 10.0, dirty_rate=rate)
        for rate in (0, 50 * 2**20)
        for name in ("flip", "precopy")
        for number in range(3)
    ]
    bench = made_bench.of_runs(runs, ["flip", "precopy"], asked={"dirty_rate": "0,50M"})
    said = words.of_bench(bench).sentences
    assert [text.split(":")[0] for text in said] == [
        "1024 MiB, 0 MiB/s rewritten",
        "1024 MiB, 50 MiB/s rewritten",
    ]


def headline(bench: Bench) -> tuple[State, str]:
    said = words.of_bench(bench)
    return said.state, said.headline


def test_guests_that_came_through() -> None:
    bench = made_bench.of_pauses({"flip": FIVE, "precopy": FIVE})
    assert headline(bench) == (State.PASS, "Every guest was intact after all 12 upgrades.")


def harmed(bench: Bench, *places: int, **more: Any) -> Bench:
    runs = [
        one.model_copy(update={"faults": [f"bad pages:\n{place}", "more"]})
        if place in places
        else one
        for place, one in enumerate(bench.runs)
    ]
    return made_bench.of_runs(runs, ["flip", "precopy"], **more)


def test_guests_that_were_harmed_come_first() -> None:
    whole = made_bench.of_pauses({"flip": FIVE, "precopy": FIVE})
    said = words.of_bench(harmed(whole, 2, 4, 11))
    assert said.state is State.FAIL
    assert said.headline == (
        "3 of 12 upgrades failed: flip twice (bad pages: 2) and precopy once (bad pages: 11)."
    )
    assert "two rounds" in said.sentences[0] or "three rounds" in said.sentences[0].lower()
    cut = words.of_bench(
        harmed(whole.model_copy(update={"runs": whole.runs[:9]}), 2, finished=False)
    )
    assert cut.sentences[0] == "Not finished: 9 of 12 runs have been made."


def test_when_every_run_failed_nothing_is_compared() -> None:
    whole = made_bench.of_pauses({"flip": FIVE, "precopy": FIVE})
    said = words.of_bench(harmed(whole, *range(12)))
    assert said.headline.startswith("12 of 12 upgrades failed: flip six times (")
    assert said.sentences == ()


def test_not_finished() -> None:
    pauses = {"flip": FIVE, "precopy": [*FIVE[:3], None, None, None]}
    said = words.of_bench(made_bench.of_pauses(pauses, finished=False))
    assert said.state is State.OPEN
    assert said.headline == (
        "Not finished: 9 of 12 runs have been made. So far every guest was intact afterwards."
    )
    assert "two rounds" in said.sentences[0]
    never = NotRun(round=0, ram_bytes=2**30, dirty_rate=0, mechanism="flip", reason="no")
    pauses = {"flip": [None], "precopy": FIVE[:3] + [None] * 3}
    said = words.of_bench(made_bench.of_pauses(pauses, finished=False, inapplicable=[never]))
    assert said.headline.startswith("Not finished: 3 of 6 runs ")


def test_only_a_warm_up() -> None:
    bench = made_bench.of_pauses({"flip": [30.0], "precopy": [30.0]}, finished=False)
    assert words.of_bench(bench) == Words(
        State.OPEN,
        "Only the warm-up has been run, and it does not count: there is nothing to compare.",
    )


def test_nothing_measured() -> None:
    never = NotRun(round=0, ram_bytes=2**30, dirty_rate=0, mechanism="flip", reason="no\ncommand")
    assert headline(made_bench.of_pauses({"flip": [None]})) == (
        State.OPEN, "Nothing has been measured.",
    )  # fmt: skip
    assert headline(made_bench.of_pauses({"flip": [None]}, inapplicable=[never]))[1] == (
        "Nothing was measured: none of the mechanisms can be used here. Reasons are below."
    )
    assert headline(made_bench.of_pauses({"flip": [None]}, troubles=[never])) == (
        State.OPEN, "Nothing was measured. The first run ended in: no command",
    )  # fmt: skip


PAUSES = st.floats(1.0, 5000.0)
ROUNDS = st.lists(st.one_of(st.none(), PAUSES), min_size=2, max_size=8)


@given(mine=ROUNDS, theirs=ROUNDS, noise=st.floats(0.0, 100.0))
def test_no_sentence_claims_more_than_the_interval(
    mine: list[float | None], theirs: list[float | None], noise: float
) -> None:
    bench = made_bench.of_pauses({"flip": mine, "precopy": theirs}, noise_ms=noise)
    told = words.of_bench(bench).sentences
    by_round = [
        {number: ms for number, ms in enumerate(values) if number and ms is not None}
        for values in (mine, theirs)
    ]
    found = estimate(ratios(*by_round))
    claims = "longer" in "".join(told), "shorter" in "".join(told)
    if found is None or found.low is None or found.high is None:
        assert claims == (False, False)
    else:
        medians = [next(iter(row.figures.values())).median for row in bench.summary]
        beyond = abs(medians[0] - medians[1]) >= noise
        assert claims == (found.low > 1 and beyond, found.high < 1 and beyond)
        assert f"{found.n}" in told[0] or words._count(found.n) in told[0] or not beyond
    check_form(told)


@given(
    st.dictionaries(
        st.sampled_from(["flip", "gift@10.2+tests/series/slow", "copy", "postcopy", "precopy"]),
        ROUNDS, min_size=1,
    ),
    st.floats(0.0, 100.0),
)  # fmt: skip
def test_every_mechanism_with_a_counted_run_is_named(
    pauses: dict[str, list[float | None]], noise: float
) -> None:
    told = words.of_bench(made_bench.of_pauses(pauses, noise_ms=noise)).sentences
    check_form(told)
    for name, values in pauses.items():
        assert (name in " ".join(told)) >= any(ms is not None for ms in values[1:])


def check_form(told: tuple[str, ...]) -> None:
    for text in told:
        assert text.endswith(".")
        assert text[0].isupper() or re.match(r"[a-z]+(-[a-z]+)?(@\S+)?('s| \(|, the )", text)
        assert text.count("(") == text.count(")")
        assert text.count("[") == text.count("]")
        assert not re.search(r"None|nan|  | [.,)]|\( |\.\.|\bin one rounds", text), text


@pytest.mark.parametrize(
    ("values", "difference", "noise", "said"),
    [([2.0, 2.2], 9.0, 1.0, Says.LONGER), ([0.2, 0.9], -9.0, 1.0, Says.SHORTER),
     ([0.9, 1.0], -9.0, 1.0, Says.UNDECIDED), ([2.0, 2.2], 0.9, 1.0, Says.NOISE),
     ([0.2, 0.9], -0.9, 1.0, Says.NOISE), ([2.0, 2.2], 0.9, None, Says.LONGER),
     ([2.0], 9.0, 1.0, Says.ONCE)],
)  # fmt: skip
def test_what_a_ratio_says(
    values: list[float], difference: float, noise: float | None, said: Says
) -> None:
    found = estimate(values)
    assert found
    assert words.says(found, difference, noise) is said


def test_an_upgrade_that_passed() -> None:
    sides = {"old": {**result().old.model_dump(), "version": "10.0.13"}}
    assert words.of_run(result(**sides)) == Words(
        State.PASS,
        "PASS: gift moved the guest from QEMU 10.0.13 to 10.2.2, and it arrived intact.",
        (
            "The guest paused for 182 ms from STOP to RESUME, 208 ms as seen from outside (the "
            "longest gap in the second before: 17.4 ms), and 22.6 ms by its own clock.",
            "Memory peaked at 1.02 times what the old QEMU used before, by the kernel's count.",
            "All 393,216 pages were checked afterwards and none is bad; no heartbeat was lost or "
            "came twice.",
        ),
    )


def changed(what: str, **more: Any) -> dict[str, Any]:
    return {what: {**getattr(result(), what).model_dump(), **more}}


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"outcome": "rolled-back"},
         "gift did not move the guest, which still runs under the old QEMU (10.2.2)."),
        ({"outcome": "lost"}, "gift lost the guest: neither QEMU runs it."),
        ({"outcome": "doubled"}, "after gift both QEMUs run the guest at once."),
        ({"reasons": ["bad pages: 1"]},
         "gift moved the guest from one QEMU 10.2.2 to another, but the checks found faults."),
        ({**changed("limits", pause_ms=1.0), "reasons": [
            "pause of 181.8 ms by the QMP clock; the limit is 1 ms",
            "pause of 208.1 ms by the outside clock; the limit is 1 ms",
            "pause of 22.6 ms by the inside clock; the limit is 1 ms"]},
         "gift moved the guest from one QEMU 10.2.2 to another, but not within the limits."),
    ],
)  # fmt: skip
def test_an_upgrade_that_failed(more: dict[str, Any], said: str) -> None:
    found = words.of_run(result(verdict="fail", **more))
    assert found.state is State.FAIL
    assert found.headline == f"FAIL: {said}"
    # A guest that was not moved had no pause, and nobody can look into one that is lost.
    assert len(found.sentences) == {"rolled-back": 1, "doubled": 1, "lost": 0}.get(
        more.get("outcome", ""), 3
    )


def test_what_is_not_known_of_an_upgrade() -> None:
    told = words.of_run(
        result(memory=None, **changed("pause_ms", inside=None, outside_before=None))
    )
    assert told.sentences[0].endswith(
        "208 ms as seen from outside, and an unknown time by its own clock."
    )
    assert told.sentences[1] == "Memory was not measured."


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"bad_pages": 1}, "All 393,216 pages were checked afterwards. Found: 1 bad page."),
        ({"bad_pages": 2, "heartbeats_lost": 3, "clock_went_back": True},
         "All 393,216 pages were checked afterwards. Found: 2 bad pages, 3 lost heartbeats and a "
         "clock that went back."),
        ({"kernel_errors": 2, "kernel_log_lost": 2, "bad_tables": 2},
         "All 393,216 pages were checked afterwards. Found: 2 damaged pieces of the checker's "
         "table, 2 errors in the guest's kernel log and 2 unseen records of its kernel log."),
        ({"pages_checked_after": 1000}, "Only 1,000 of 393,216 pages were checked afterwards and "
         "none is bad; no heartbeat was lost or came twice."),
    ],
)  # fmt: skip
def test_what_the_checks_found(more: dict[str, Any], said: str) -> None:
    assert words.of_run(result(**changed("integrity", **more))).sentences[2] == said
