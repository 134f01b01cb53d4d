# SPDX-License-Identifier: GPL-2.0-or-later
"""A bench from the request to the exit code, with a runner that takes no time."""

from __future__ import annotations

import argparse
import dataclasses
import json
import shlex
from pathlib import Path
from typing import Any

import fake_bench
import pytest
from fake_bench import Runner

from lab import bench
from lab.base.errors import CannotTellError, ExitCode, PreconditionError, UsageError
from lab.base.files import write_whole
from lab.host import facts
from lab.options import UpgradeOptions
from lab.results.figures import Bench
from lab.verbs import bench as verb

ASKED = ("--mechanisms", "gift,precopy", "--ram", "1G", "--repeats", "2")
BROKEN = {
    "outcome": "lost",
    "verdict": "fail",
    "reasons": ["the guest is lost: neither QEMU runs it"],
}


def carried_out(tmp_path: Path, runner: Runner, *words: str) -> tuple[ExitCode, Bench]:
    session = bench.begin(fake_bench.layout(tmp_path), fake_bench.request(*words), runner)
    return bench.carry_out(session), kept(session.directory)


def kept(directory: Path) -> Bench:
    return Bench.model_validate_json((directory / "bench.json").read_text(encoding="utf-8"))


def the_directory(tmp_path: Path) -> Path:
    (found,) = (tmp_path / "out").glob("bench-*")
    return found


def again(tmp_path: Path, runner: Runner) -> ExitCode:
    return bench.carry_out(
        bench.resume(fake_bench.layout(tmp_path), the_directory(tmp_path), runner)
    )


# The request


def test_all_means_all_and_the_reference_is_what_everybody_has() -> None:
    request = fake_bench.request()
    assert {"gift", "copy", "precopy", "cpr-transfer"} <= set(request.mechanisms)
    assert (request.reference, request.repeats, request.dirty_rate) == ("precopy", 5, "0")
    assert fake_bench.request("--mechanisms", "copy,gift").reference == "copy"
    assert fake_bench.request(*ASKED, "--reference", "gift").reference == "gift"


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("--mechanisms", "gift,teleport"), "no mechanism 'teleport'"),
        (("--mechanisms", "auto"), "compares what is named"),
        (("--mechanisms", "gift,gift"), "named twice"),
        (("--mechanisms", "gift,copy", "--reference", "precopy"), "not among"),
        (("--ram", "1G,1024M"), "named twice"),
        (("--ram", "1G,2Q"), "not a size"),
        (("--dirty-rate", "0,1M,1024K"), "--dirty-rate: the same is named twice"),
        (("--dirty-rate", "0,fast"), "not a size"),
        (("--ram", "1G,64M"), "needs at least"),
        (("--repeats", "0"), "at least one round"),
        (("--guest", "giant"), "no guest"),
        (("--mechanisms", "gift@10.0::a::10.2"), ":: stands between"),
    ],
)
def test_what_cannot_be_is_refused(words: tuple[str, ...], why: str) -> None:
    with pytest.raises(UsageError, match=why):
        fake_bench.request(*words)


def test_the_command_asks_for_the_same_again() -> None:
    request = fake_bench.request(*ASKED, "--touch", "33%", "--old", "/a b/qemu")
    words = shlex.split(request.command)
    assert words[:2] == ["./pageflip", "bench"]
    assert fake_bench.request(*words[2:]) == request


# The runs


def test_every_run_is_kept_and_the_warm_up_is_not_counted(tmp_path: Path) -> None:
    runner = Runner({"gift": 10.0, "precopy": 40.0})
    code, done = carried_out(tmp_path, runner, *ASKED)
    assert code is ExitCode.PASS
    assert done.finished
    assert runner.names == ["gift", "precopy", "precopy", "gift", "gift", "precopy"]
    assert [run.round for run in done.runs] == [0, 0, 1, 1, 2, 2]
    gift, precopy = done.summary
    # The second and the third run: 20 and 30 ms; the first was the warm-up.
    assert gift.figures["pause_qmp_ms"].n == 2
    assert gift.figures["pause_qmp_ms"].median == 25.0
    assert gift.figures["total_ms"].maximum == 60.0
    assert gift.ratios["pause_outside_ms"].median == 0.25
    assert precopy.ratios["total_ms"].maximum == 1.0
    assert (done.old, done.new) != (None, None)
    assert done.runs[0].run_directory == "run-0"
    assert "precopy" in (the_directory(tmp_path) / "bench.md").read_text(encoding="utf-8")


def test_the_parts_of_an_upgrade_are_kept_with_its_run(tmp_path: Path) -> None:
    known = fake_bench.known()
    more = {
        "pause_ms": {**known["pause_ms"], "before_stop": 3.0, "after_resume": 21.0},
        "memory": {**known["memory"], "new_pss_bytes": 300 * 2**20},
    }
    words = ("--mechanisms", "gift", "--ram", "1G", "--repeats", "1")
    _, done = carried_out(tmp_path, Runner(trouble=lambda _n, _o: more), *words)
    parts = done.runs[0].parts
    assert (parts["before_stop_ms"], parts["after_resume_ms"]) == (3.0, 21.0)
    assert parts["phase_save_ms"] == known["phases_ms"]["save"]
    assert parts["memory_after_mib"] == 300
    assert "phase_resume_ms" not in parts


def test_huge_pages_are_counted_for_private_memory_only(tmp_path: Path) -> None:
    words = ("--mechanisms", "gift,cpr-transfer", "--ram", "1G", "--repeats", "1")
    _, done = carried_out(tmp_path, Runner(), *words)
    gift, transfer = done.summary
    assert gift.figures["huge_pages_kept"].median == pytest.approx(1736441856 / 1797259264)
    assert "huge_pages_kept" not in transfer.figures


def test_an_interrupted_bench_goes_on_where_it_was(tmp_path: Path) -> None:
    def interrupt(number: int, _options: UpgradeOptions) -> None:
        if number == 3:
            raise KeyboardInterrupt

    first = Runner(trouble=interrupt)
    with pytest.raises(KeyboardInterrupt):
        carried_out(tmp_path, first, *ASKED)
    so_far = kept(the_directory(tmp_path))
    assert (len(so_far.runs), so_far.finished) == (3, False)
    assert (the_directory(tmp_path) / "bench.md").exists()
    second = Runner()
    assert again(tmp_path, second) is ExitCode.PASS
    assert second.names == ["gift", "gift", "precopy"]
    done = kept(the_directory(tmp_path))
    assert done.finished
    assert done.runs[:3] == so_far.runs
    assert len(done.runs) == 6
    third = Runner()
    assert again(tmp_path, third) is ExitCode.PASS
    assert third.asked == []


def test_an_interruption_says_how_to_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(number: int, _options: UpgradeOptions) -> None:
        if number == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        carried_out(tmp_path, Runner(trouble=interrupt), *ASKED)
    said = capsys.readouterr()
    assert f"./pageflip bench --resume {the_directory(tmp_path)}" in said.err
    assert "precopy" in said.out  # the table so far


def test_several_rates_are_kept_apart_and_resumed(tmp_path: Path) -> None:
    def interrupt(number: int, _options: UpgradeOptions) -> None:
        if number == 5:
            raise KeyboardInterrupt

    words = (*ASKED, "--dirty-rate", "0,50M")
    first = Runner({"gift": 10.0, "precopy": 40.0}, trouble=interrupt)
    with pytest.raises(KeyboardInterrupt):
        carried_out(tmp_path, first, *words)
    second = Runner({"gift": 10.0, "precopy": 40.0})
    assert again(tmp_path, second) is ExitCode.PASS
    done = kept(the_directory(tmp_path))
    assert len(done.runs) == len({(run.round, run.case) for run in done.runs}) == 12
    assert [(row.dirty_rate, row.mechanism) for row in done.summary] == [
        (0, "gift"), (0, "precopy"), (50 * 2**20, "gift"), (50 * 2**20, "precopy"),
    ]  # fmt: skip
    assert [row.figures["total_ms"].n for row in done.summary] == [2] * 4
    assert [run.dirty_rate for run in done.runs] == [
        slot.load.dirty_rate for slot in bench.plan(done.request)
    ]


def test_what_a_mechanism_lacks_is_not_asked_again_at_another_rate(tmp_path: Path) -> None:
    def lacking(_number: int, options: UpgradeOptions) -> None:
        if options.mechanism == "gift":
            raise PreconditionError("the old QEMU has no command localhost-migrate")

    runner = Runner(trouble=lacking)
    carried_out(tmp_path, runner, *ASKED, "--dirty-rate", "0,50M")
    assert runner.names.count("gift") == 1
    assert runner.names.count("precopy") == 6


def test_a_bench_from_before_there_were_several_rates(tmp_path: Path) -> None:
    carried_out(tmp_path, Runner(), *ASKED, "--dirty-rate", "50M")
    file = the_directory(tmp_path) / "bench.json"
    known = json.loads(file.read_text(encoding="utf-8"))
    old = json.loads(file.read_text(encoding="utf-8"))
    for entry in (*old["runs"], *old["summary"]):
        assert entry.pop("dirty_rate") == 50 * 2**20
    assert Bench.model_validate(old) == Bench.model_validate(known)


def test_what_cannot_apply_is_said_once_and_not_tried_again(tmp_path: Path) -> None:
    def lacking(_number: int, options: UpgradeOptions) -> None:
        if options.mechanism == "gift":
            raise PreconditionError("the old QEMU has no command localhost-migrate")

    runner = Runner(trouble=lacking)
    code, done = carried_out(tmp_path, runner, *ASKED)
    assert code is ExitCode.PASS
    assert runner.names == ["gift", "precopy", "precopy", "precopy"]
    assert [(n.mechanism, n.reason) for n in done.inapplicable] == [
        ("gift", "the old QEMU has no command localhost-migrate")
    ]
    assert done.finished


def test_nothing_that_applies_means_that_the_lab_cannot_tell(tmp_path: Path) -> None:
    def lacking(_number: int, _options: UpgradeOptions) -> None:
        raise PreconditionError("not enough memory")

    code, done = carried_out(tmp_path, Runner(trouble=lacking), *ASKED)
    assert code is ExitCode.CANNOT_TELL
    assert len(done.inapplicable) == 2


@pytest.mark.parametrize("broken", [0, 3])
def test_a_broken_guest_fails_the_bench_in_the_warm_up_too(tmp_path: Path, broken: int) -> None:
    def lose(number: int, _options: UpgradeOptions) -> dict[str, Any] | None:
        return BROKEN if number == broken else None

    runner = Runner(trouble=lose)
    code, done = carried_out(tmp_path, runner, *ASKED)
    assert code is ExitCode.FAIL
    assert done.finished
    gift = next(row for row in done.summary if row.mechanism == "gift")
    assert gift.failed == 1
    assert gift.figures["total_ms"].n == (2 if broken == 0 else 1)
    assert done.runs[broken].faults == BROKEN["reasons"]


def test_a_limit_alone_does_not_fail_the_bench(tmp_path: Path) -> None:
    def slow(_number: int, _options: UpgradeOptions) -> dict[str, Any]:
        return {
            "verdict": "fail",
            "limits": {"pause_ms": 1.0, "memory_ratio": 9.0},
            "pause_ms": {"qmp": 7.0, "outside": 0.5, "inside": 0.5, "outside_before": 0.5},
            "reasons": ["pause of 7.0 ms by the QMP clock; the limit is 1 ms"],
        }

    code, done = carried_out(tmp_path, Runner(trouble=slow), *ASKED)
    assert code is ExitCode.PASS
    assert done.summary[0].figures["pause_qmp_ms"].n == 2


def test_what_the_lab_could_not_do_is_kept_and_tried_again_on_resume(tmp_path: Path) -> None:
    def stumble(number: int, _options: UpgradeOptions) -> None:
        if number in {1, 3}:
            raise CannotTellError("boot: not done after 90 s")

    runner = Runner(trouble=stumble)
    code, done = carried_out(tmp_path, runner, *ASKED)
    assert code is ExitCode.CANNOT_TELL
    assert len(runner.asked) == 6
    assert [trouble.round for trouble in done.troubles] == [0, 1]
    assert not done.finished
    second = Runner()
    assert again(tmp_path, second) is ExitCode.PASS
    assert second.names == ["precopy", "gift"]
    assert kept(the_directory(tmp_path)).troubles == []


def test_twice_in_a_row_is_no_accident(tmp_path: Path) -> None:
    def broken(number: int, _options: UpgradeOptions) -> None:
        if number >= 2:
            raise CannotTellError("no space left on device")

    runner = Runner(trouble=broken)
    with pytest.raises(CannotTellError, match="no space"):
        carried_out(tmp_path, runner, *ASKED)
    assert len(runner.asked) == 4
    assert len(kept(the_directory(tmp_path)).runs) == 2


def test_a_binary_that_changes_is_not_mixed_in(tmp_path: Path) -> None:
    def rebuilt(number: int, _options: UpgradeOptions) -> dict[str, Any] | None:
        side = {"release": None, "version": "10.2.2", "path": "/q", "sha256": "f" * 64}
        return {"new": side} if number == 2 else None

    with pytest.raises(UsageError, match=r"the new QEMU .* is no longer the one"):
        carried_out(tmp_path, Runner(trouble=rebuilt), *ASKED)
    assert len(kept(the_directory(tmp_path)).runs) == 2


def test_a_label_may_name_an_old_qemu_of_its_own(tmp_path: Path) -> None:
    def side(name: str) -> dict[str, Any]:
        return {"release": None, "version": "10", "path": name, "sha256": (name * 64)[:64]}

    def made(changed: int) -> Runner:
        return Runner(
            trouble=lambda number, options: {
                "old": side("f" if number == changed else options.old.replace(".", "")),
                "new": side(options.new.replace(".", "")),
            }
        )

    words = ("--mechanisms", "gift,gift@10.1::,gift@10.1::10.3", "--repeats", "1")
    _, done = carried_out(tmp_path, made(-1), *words)
    assert done.old
    assert done.new
    assert (done.old.path, done.new.path) == ("old", "new")
    assert {name: one.path for name, one in done.others.items()} == {"10.1": "101", "10.3": "103"}
    with pytest.raises(UsageError, match=r"the old QEMU .* is no longer the one"):
        carried_out(tmp_path / "changed", made(4), *words)


# Going on


def test_another_host_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    carried_out(tmp_path, Runner(), *ASKED)
    elsewhere = facts.fingerprint().model_copy(update={"kernel": "9.9"})
    monkeypatch.setattr(facts, "fingerprint", lambda: elsewhere)
    with pytest.raises(UsageError, match="another machine or kernel"):
        again(tmp_path, Runner())


def test_what_is_no_bench_is_refused(tmp_path: Path) -> None:
    where = fake_bench.layout(tmp_path)
    with pytest.raises(UsageError, match="No such file"):
        bench.resume(where, tmp_path, Runner())
    (tmp_path / "bench.json").write_text(json.dumps({"schema_version": 2}), encoding="utf-8")
    with pytest.raises(UsageError, match="schema_version"):
        bench.resume(where, tmp_path, Runner())


@pytest.mark.parametrize(
    "words", [["--repeats", "9"], ["--ram", "1G"], ["--dirty-rate", "1M"], ["--out", "/x"]]
)
def test_nothing_else_can_be_asked_of_a_bench_that_goes_on(
    words: list[str], tmp_path: Path
) -> None:
    parser = argparse.ArgumentParser()
    verb.add_arguments(parser)
    with pytest.raises(UsageError, match=f"{words[0]} cannot be given with --resume"):
        verb.run(parser.parse_args(["--resume", str(tmp_path), *words]))
    with pytest.raises(UsageError, match="no such directory"):
        verb.run(parser.parse_args(["--resume", str(tmp_path / "nowhere")]))
    assert not (tmp_path / "nowhere").exists()


def test_how_long_it_takes_is_told_from_runs_of_the_same_size(tmp_path: Path) -> None:
    words = ("--mechanisms", "gift", "--ram", "1G,2G", "--repeats", "1")
    session = bench.begin(fake_bench.layout(tmp_path), fake_bench.request(*words), Runner())
    session.go()
    small, large = session.bench.runs[0], session.bench.runs[2]
    runs = [
        small.model_copy(update={"took_s": 60.0}),
        large.model_copy(update={"took_s": 600.0}),
    ]
    slots = bench.plan(session.bench.request)
    session.bench = session.bench.model_copy(update={"runs": runs})
    assert session.time_left(slots[3:]) == "about 10 min left"
    assert session.time_left(slots[:2]) == "about 2 min left"
    session.bench = session.bench.model_copy(update={"runs": runs[:1]})
    assert session.time_left(slots[3:]) == "about 60 s left"
    session.bench = session.bench.model_copy(update={"runs": []})
    assert session.time_left(slots) == ""


def test_runs_are_made_inside_the_bench_directory(tmp_path: Path) -> None:
    session = bench.begin(fake_bench.layout(tmp_path), fake_bench.request(*ASKED), Runner())
    assert session.directory.name.startswith("bench-")
    assert session.layout == dataclasses.replace(fake_bench.layout(tmp_path), out=session.directory)


def test_a_file_is_whole_or_not_there(tmp_path: Path) -> None:
    write_whole(tmp_path / "x", "old\n")
    with pytest.raises(UnicodeEncodeError):
        write_whole(tmp_path / "x", "half \ud800")
    assert (tmp_path / "x").read_text(encoding="utf-8") == "old\n"
