# SPDX-License-Identifier: GPL-2.0-or-later
"""The picture of two upgrades: to scale, in its frame, and of what was measured."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from lab import cli
from lab.base.errors import UsageError
from lab.measure.timeline import Timeline
from lab.model import Memory, Pause, Result, Sample
from lab.report import picture

SAMPLE = Result.model_validate_json(
    Path(__file__).with_name("result.json").read_text(encoding="utf-8")
)
GIB = 2**30
#: The plot, from the beginning of the upgrade to the end of the longer one.
AT_0, AT_END = 162.8, 742.5


def memory(ratio: float) -> Memory:
    assert SAMPLE.memory
    return SAMPLE.memory.model_copy(update={"ratio": ratio, "pss_before_bytes": GIB})


def upgrade(mechanism: str, ms: float, peak: float, **more: object) -> tuple[Result, Timeline]:
    """Return an upgrade of `ms` that pauses in its middle for a tenth of that."""
    stop, resume = 0.45 * ms, 0.55 * ms
    line = Timeline(
        end_ms=ms,
        stop_ms=stop,
        resume_ms=resume,
        old_beats_ms=[-1000.0, *(step * ms / 20 for step in range(-2, 10))],
        new_beats_ms=[step * ms / 20 for step in range(11, 24)],
        samples=[
            Sample(at_ms=share * ms, old_pss_bytes=GIB, new_pss_bytes=new, skew_bytes=skew)
            for share, new, skew in (
                (0.0, 0, 0),
                (0.4, 7 * GIB, GIB),  # a reading that means nothing
                (0.5, int((peak - 1) * GIB), 0),
                (1.0, 0, 0),
            )
        ],
    )
    update = {
        "mechanism": mechanism,
        "memory": memory(peak),
        "pause_ms": Pause(qmp=1.0, outside=ms / 10, inside=1.0, outside_before=1.0),
        **more,
    }
    return SAMPLE.model_copy(update=update), line


def drawn(*upgrades: tuple[Result, Timeline]) -> ElementTree.Element:
    return ElementTree.fromstring(picture.draw(*upgrades))


def rectangles(root: ElementTree.Element, kind: str) -> list[tuple[float, float]]:
    """Return where each rectangle of a class begins and ends."""
    return [
        (x := float(one.get("x", "")), round(x + float(one.get("width", "")), 1))
        for one in root.findall(".//{*}rect")
        if one.get("class") == kind
    ]


def words(root: ElementTree.Element) -> str:
    return " ".join(" ".join(root.itertext()).split())


FLIP, PRECOPY = upgrade("flip", 500.0, 1.02), upgrade("precopy", 5000.0, 1.96)


def test_times_are_to_scale() -> None:
    root = drawn(FLIP, PRECOPY)
    one, other = rectangles(root, "pause")
    middle = (AT_0 + AT_END) / 2
    assert sum(other) / 2 == pytest.approx(middle, abs=0.2)
    assert other[1] - other[0] == pytest.approx((AT_END - AT_0) / 10, abs=0.2)
    assert sum(one) / 2 - AT_0 == pytest.approx((middle - AT_0) / 10, abs=0.2)
    assert rectangles(root, "colour-1")[0][1] == one[0]  # the guest runs until the pause
    assert rectangles(root, "colour-1")[1][0] == one[1]  # and after it
    assert rectangles(root, "colour-2 exists")[0][1] == pytest.approx(AT_END, abs=0.2)


def test_memory_is_to_scale_and_bad_readings_are_left_out() -> None:
    root = drawn(FLIP, PRECOPY)
    precopy, flip = (one.get("points", "").split() for one in root.findall(".//{*}polyline"))
    heights = [float(point.split(",")[1]) for point in precopy]
    one, two = 414.0, 354.0
    assert heights == [one, pytest.approx(one + 0.96 * (two - one), abs=0.1), one]
    assert len(flip) == 3


def test_the_figures_are_those_of_the_results() -> None:
    said = words(drawn(FLIP, PRECOPY))
    assert "flip pause 50 ms, complete after 0.5 s" in said
    assert "precopy pause 500 ms, complete after 5 s" in said
    assert "flip: peak 1.02" in said
    assert "precopy: peak 1.96" in said


@pytest.mark.parametrize("ms", [120.0, 999.0, 2300.0, 24000.0])
def test_the_axis_has_a_few_round_numbers(ms: float) -> None:
    root = drawn(upgrade("flip", ms, 1.02), upgrade("precopy", ms, 1.96))
    ticks = [one for one in root.findall(".//{*}text") if one.get("class") == "middle quiet"]
    assert 4 <= len(ticks) <= 11
    assert ticks[0].text == "0"
    assert all(AT_0 <= float(one.get("x", "")) <= 812 for one in ticks)


@pytest.mark.parametrize(
    "more",
    [
        {"ram_bytes": 1},
        {"touched_bytes": 1},
        {"dirty_rate": 1},
        {"accel": "kvm"},
        {"old": SAMPLE.old.model_copy(update={"sha256": "0"})},
        {"new": SAMPLE.new.model_copy(update={"sha256": "0"})},
    ],
)
def test_different_loads_make_no_picture(more: dict[str, object]) -> None:
    with pytest.raises(UsageError, match="differ"):
        picture.draw(FLIP, upgrade("precopy", 5000.0, 1.96, **more))


def test_too_few_readings_of_memory_make_no_picture() -> None:
    result, line = PRECOPY
    with pytest.raises(UsageError, match="read 1 times"):
        picture.draw(FLIP, (result, line.model_copy(update={"samples": line.samples[:1]})))


def test_what_was_not_measured_makes_no_picture() -> None:
    result, line = PRECOPY
    with pytest.raises(UsageError, match="not measured"):
        picture.draw(FLIP, (result.model_copy(update={"memory": None}), line))


def test_the_verb_draws_two_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for result, line in (FLIP, PRECOPY):
        directory = tmp_path / result.mechanism
        directory.mkdir()
        (directory / "result.json").write_text(result.model_dump_json(), encoding="utf-8")
        kept = {"timeline": line.model_dump(mode="json")}
        (directory / "6-measure.json").write_text(json.dumps(kept), encoding="utf-8")
    asked = ["report", str(tmp_path / "flip"), "--picture", str(tmp_path / "precopy")]
    assert cli.main(asked) == 0
    written = Path(capsys.readouterr().out.strip())
    assert written == tmp_path / "flip" / "picture.svg"
    assert written.read_text(encoding="utf-8") == picture.draw(FLIP, PRECOPY)
    (tmp_path / "precopy" / "6-measure.json").unlink()
    assert cli.main(asked) == 2
    assert "it was not written down when what happened" in capsys.readouterr().err


def test_it_has_colours_for_light_and_dark_and_its_licence() -> None:
    text = picture.draw(FLIP, PRECOPY)
    assert "prefers-color-scheme: dark" in text
    assert "SPDX-License-Identifier: GPL-2.0-or-later" in text
