# SPDX-License-Identifier: GPL-2.0-or-later
"""The charts of a bench: every run is a dot, and a mechanism has one colour in all of them."""

from __future__ import annotations

import math
import re
from typing import Any

import made_bench
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab.report import charts, strips, style
from lab.results.figures import Bench

PAUSES = {
    "flip": [99.0, 30.0, 10.0, 20.0],
    "gift@10.2": [99.0, 300.0, None, 100.0],
    "precopy": [9.0],
}


def traces(bench: Bench) -> tuple[Any, Any, Any]:
    """Return intervals, runs and medians of the pauses."""
    figure = strips.pauses(bench, bench.summary)
    assert len(figure.data) == 3
    return figure.data


def test_every_run_that_counts_is_a_dot() -> None:
    _, runs, _ = traces(made_bench.of_pauses(PAUSES))
    # By each clock; the warm-up is none.
    assert list(runs.x) == [30, 10, 20] * 3 + [300, 100] * 3
    assert list(runs.marker.symbol[:9]) == ["circle"] * 3 + ["square"] * 3 + ["diamond"] * 3
    assert runs.hovertext[1] == "flip<br>STOP to RESUME, round 2: 10.0 ms"
    assert runs.hovertext[-1] == "gift@10.2<br>inside, round 3: 100 ms"


def test_a_run_that_failed_is_no_dot() -> None:
    bench = made_bench.of_pauses(PAUSES)
    kept = [
        run.model_copy(update={"faults": ["bad pages: 1"] if run.round == 2 else []})
        for run in bench.runs
    ]
    _, runs, _ = traces(made_bench.of_runs(kept, list(PAUSES)))
    assert list(runs.x[:2]) == [30, 20]


def test_the_median_and_its_interval() -> None:
    intervals, _, medians = traces(made_bench.of_pauses(PAUSES))
    assert list(medians.x) == [20] * 3 + [200] * 3
    assert medians.hovertext[0] == "flip<br>STOP to RESUME, median of 3: 20.0 ms [10.0, 30.0]"
    assert list(intervals.x[:3]) == [10, 30, None]
    assert list(intervals.y[:3]) == [medians.y[0], medians.y[0], None]
    one = strips.one_figure(
        made_bench.of_pauses({"flip": [9.0, 5.0]}),
        made_bench.of_pauses({"flip": [9.0, 5.0]}).summary,
        "total_ms", "Whole upgrade", "ms", log=True,
    )  # fmt: skip
    assert list(one.data[0].x) == []  # a single run has none
    assert list(one.data[1].x) == [10]
    assert one.layout.xaxis.title.text == "ms, logarithmic"


def test_every_mechanism_has_a_row_to_itself() -> None:
    bench = made_bench.of_pauses({f"flip@{n}": [9.0, *range(1, 31)] for n in range(12)})
    _, runs, medians = traces(bench)
    axis = strips.pauses(bench, bench.summary).layout.yaxis
    assert list(axis.ticktext) == [f"flip@{n}" for n in range(12)]
    assert axis.range == (11.5, -0.5)  # the first one at the top
    for row in range(12):
        mine = runs.y[90 * row : 90 * row + 90]
        assert all(abs(y - row) < 0.5 for y in mine)
        lanes = medians.y[3 * row : 3 * row + 3]
        assert lanes[0] < lanes[1] == row < lanes[2]
        for number, lane in enumerate(lanes):  # and no dot is in a lane of others
            assert all(abs(y - lane) < 0.8 / 3 / 2 for y in mine[30 * number : 30 * number + 30])


def test_the_same_bench_makes_the_same_chart() -> None:
    bench = made_bench.of_pauses(PAUSES)
    first, second = (strips.pauses(bench, bench.summary).to_json() for _ in range(2))
    assert first == second
    _, runs, _ = traces(bench)
    assert len({round(y, 3) for y in runs.y[:3]}) == 3  # equal values are still told apart


def test_a_mechanism_has_one_colour_in_every_chart() -> None:
    runs = [
        made_bench.run(name, number, 10.0 + size, size)
        for size in (256, 512)
        for name in PAUSES
        for number in range(3)
        if size == 256 or name != "flip"  # the first is lacking in one
    ]
    bench = made_bench.of_runs(runs, list(PAUSES), "256M,512M")
    wanted = style.colours(bench)
    assert len(set(wanted.values())) == 3
    for size in (256, 512):
        rows = [row for row in bench.summary if row.ram_bytes == size * 2**20]
        figure = strips.pauses(bench, rows)
        used = dict(zip(figure.data[2].y, figure.data[2].marker.line.color, strict=True))
        assert [used[place] for place in range(len(rows))] == [wanted[r.mechanism] for r in rows]
        assert set(figure.data[1].marker.color) == set(used.values())
    (chart,) = charts.scaling(bench, "ram_bytes")
    assert {line.name: line.line.color for line in chart.data} == wanted


def test_more_mechanisms_than_colours_are_told_apart_by_their_lines() -> None:
    runs = [made_bench.run(f"flip@{n}", 1, 10.0, size) for n in range(12) for size in (256, 512)]
    bench = made_bench.of_runs(runs, [f"flip@{n}" for n in range(12)], "256M,512M")
    (chart,) = charts.scaling(bench, "ram_bytes")
    assert len({(line.line.color, line.line.dash, line.marker.symbol) for line in chart.data}) == 12


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return sum(w * p for w, p in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_colours_are_seen_on_white_and_on_black() -> None:
    for colour in style.COLOURS:
        assert (1.05) / (luminance(colour) + 0.05) > 2
        assert (luminance(colour) + 0.05) / (luminance("#16181c") + 0.05) > 3


@pytest.mark.parametrize(
    ("label", "lines"),
    [
        ("flip", ["flip"]),
        ("flip:unsampled", ["flip:unsampled"]),
        ("cpr-transfer:unsampled", ["cpr-transfer", ":unsampled"]),
        ("flip@10.0::10.2+tests/series/slow", ["flip@10.0::10.2", "+tests/series/slow"]),
        ("flip@a<b&c", ["flip@a&lt;b&amp;c"]),
        ("x" * 40, ["x" * 18, "x" * 18, "x" * 4]),
    ],
)
def test_long_labels_are_broken_where_they_are_put_together(label: str, lines: list[str]) -> None:
    assert style.wrapped(label) == "<br>".join(lines)


@given(
    st.text(st.sampled_from("ab@:+/.-"), min_size=1, max_size=80)
    | st.text(st.sampled_from("abcdefghijk+"), min_size=40, max_size=80)
)
def test_no_letter_of_a_label_is_lost(label: str) -> None:
    lines = style.wrapped(label).split("<br>")
    assert "".join(lines) == label
    assert all(0 < len(line) <= 18 for line in lines)


@given(st.lists(st.floats(0.01, 60_000.0), min_size=1, max_size=20))
def test_a_logarithmic_axis_shows_everything_and_has_a_few_marks(values: list[float]) -> None:
    axis = style.log_axis(values)
    low, high = (10**end for end in axis["range"])
    assert low < min(values)
    assert high > max(values)
    assert 1 <= len(axis["tickvals"]) <= 8
    assert all(0.9999 * low <= mark <= 1.0001 * high for mark in axis["tickvals"])
    for mark, text in zip(axis["tickvals"], axis["ticktext"], strict=True):
        assert math.isclose(float(text), mark, rel_tol=1e-5)
        assert re.fullmatch(r"[\d.e+-]{1,6}", text)


def test_nothing_measured_makes_an_empty_chart() -> None:
    bench = made_bench.of_pauses({"flip": [9.0], "precopy": [9.0]})
    figure = strips.pauses(bench, bench.summary)
    assert [len(trace.x) for trace in figure.data] == [0, 0, 0]
    figure = strips.one_figure(bench, bench.summary, "brownout_ms", "Brownout", "ms", log=False)
    assert figure.layout.xaxis.range == (0, 1)


def test_a_linear_axis_begins_at_nothing() -> None:
    bench = made_bench.of_pauses({"flip": [9.0, 50.0]})
    figure = strips.one_figure(bench, bench.summary, "total_ms", "Whole upgrade", "ms", log=False)
    assert figure.layout.xaxis.range[0] == 0
    assert figure.layout.xaxis.range[1] > 100
