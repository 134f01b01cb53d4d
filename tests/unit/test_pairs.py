# SPDX-License-Identifier: GPL-2.0-or-later
"""Every old QEMU by every new one, from the words to the table; no QEMU is started."""

from __future__ import annotations

import argparse
import io
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fake_bench
import pytest
from rich.console import Console

from lab import pairs
from lab.base.errors import CannotTellError, ExitCode, PreconditionError, UsageError
from lab.base.layout import CHECKOUT, Layout
from lab.guest import images
from lab.guest.images import GuestImage
from lab.model import Result
from lab.options import UpgradeOptions
from lab.pair import firmware
from lab.report import grid as shown
from lab.results import pairing
from lab.results.pairing import Grid, PairAnswer, PairRequest, PairRun
from lab.verbs import pairs as verb
from lab.vm import binary
from lab.vm.binary import Binary

LOST = {
    "outcome": "lost",
    "verdict": "fail",
    "reasons": ["it ended", "the guest is lost: neither QEMU runs it"],
}
BACK = {
    "outcome": "rolled-back",
    "verdict": "fail",
    "reasons": ["vring.num 1024 exceeds allocated max 128", "it still runs under the old QEMU"],
}
WORDS = ("--old", "/a,/b", "--new", "/c", "--mechanisms", "precopy,postcopy")


@dataclass
class World:
    """QEMUs that are not there: what each is, and what becomes of a guest."""

    machines: dict[str, str] = field(default_factory=dict)
    builds: dict[str, str] = field(default_factory=dict)
    becomes: Callable[[UpgradeOptions], dict[str, Any]] = lambda _options: {}
    asked: list[str] = field(default_factory=list)

    def binary_of(self, _layout: Layout, name: str, _architecture: str) -> Binary:
        if name == "/gone":
            raise CannotTellError("no mirror has it")
        return Binary(
            Path(name),
            "9.9.9",
            self.builds.get(name, f"sum of {name}"),
            None,
            frozenset(),
            frozenset(),
            machines=frozenset({self.machines.get(name, "pc-q35-9.2")}),
        )

    def upgrade(self, layout: Layout, options: UpgradeOptions) -> Result:
        self.asked.append(f"{options.old} {options.new} {options.mechanism}")
        more = {"mechanism": options.mechanism, "run_directory": str(layout.out / "run")}
        return Result(**{**fake_bench.known(), **more, **self.becomes(options)})


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    made = World()
    image = GuestImage("tiny", Path("/k"), None, "", None, {}, "key", {})
    monkeypatch.setattr(binary, "binary_of", made.binary_of)
    monkeypatch.setattr(images, "build", lambda _name, _layout: image)
    monkeypatch.setattr(firmware, "prepare", lambda _layout: Path("/firmware"))
    return made


def request(*words: str) -> PairRequest:
    parser = argparse.ArgumentParser()
    verb.add_arguments(parser)
    given = parser.parse_args(list(words))
    return PairRequest(**{name: getattr(given, name) for name in PairRequest.model_fields})


def layout(tmp_path: Path) -> Layout:
    return Layout(CHECKOUT, tmp_path / "cache", tmp_path / "out")


def table(tmp_path: Path, world: World, *words: str, **how: bool) -> tuple[ExitCode, Grid]:
    """Fill a table, and return what it says to the shell and what of it is on disk."""
    asked = pairs.begin(layout(tmp_path), request(*(words or WORDS)), world.upgrade, **how)
    code = pairs.carry_out(asked, quiet=True)
    kept = pairing.read(tmp_path / "out" / "pairs" / "pairs.json")
    assert kept == asked.grid
    return code, kept


def answers(grid: Grid) -> dict[str, str]:
    return {f"{run.old} {run.new} {run.mechanism}": run.answer.value for run in grid.runs}


def test_every_old_one_by_every_new_one_and_back() -> None:
    plan = pairing.plan(request("--old", "/a,/b", "--new", "/b,/c", "--mechanisms", "precopy"))
    assert [(trial.asked.old, trial.asked.new) for trial in plan] == [
        ("/a", "/b"),
        ("/a", "/c"),
        ("/b", "/b"),
        ("/b", "/c"),
        ("/b", "/a"),
        ("/c", "/a"),
        ("/c", "/b"),
    ]
    forward = pairing.plan(request(*WORDS, "--forward-only", "--repeats", "2"))
    assert [(t.asked.old, t.asked.mechanism, t.round) for t in forward[3:5]] == [
        ("/b", "postcopy", 1),
        ("/a", "precopy", 2),
    ]
    more = request(*WORDS, "--devices", "virtio-rng-pci e1000e,romfile=", "--cpus", "2")
    asked = pairing.plan(more)[0].asked
    assert (asked.devices, asked.cpus) == ("virtio-rng-pci e1000e,romfile=", 2)


@pytest.mark.parametrize(
    "words", [("--mechanisms", "teleport"), ("--repeats", "0"), ("--ram", "1M"), ("--touch", "99%")]
)
def test_what_cannot_be_asked(words: tuple[str, ...]) -> None:
    with pytest.raises(UsageError):
        pairing.plan(request(*WORDS, *words))


def test_what_becomes_of_a_guest_is_the_answer(tmp_path: Path, world: World) -> None:
    bad = {**fake_bench.known()["integrity"], "bad_pages": 3}
    fates: dict[str, dict[str, Any]] = {
        "/a precopy": {},
        "/a postcopy": LOST,
        "/b precopy": BACK,
        "/b postcopy": {"integrity": bad, "verdict": "fail", "reasons": ["bad pages: 3"]},
    }
    world.becomes = lambda asked: fates[f"{asked.old} {asked.mechanism}"]
    code, grid = table(tmp_path, world, *WORDS, "--forward-only")
    assert answers(grid) == {
        "/a /c precopy": "pass",
        "/a /c postcopy": "lost",
        "/b /c precopy": "rolled back",
        "/b /c postcopy": "harmed",
    }
    assert grid.runs[2].reasons == BACK["reasons"]
    assert code is ExitCode.FAIL
    world.becomes = lambda _asked: BACK
    assert table(tmp_path, world, *WORDS, afresh=True)[0] is ExitCode.PASS


def test_a_guest_that_is_back_and_has_lost_something_is_harmed(
    tmp_path: Path, world: World
) -> None:
    bad = {**fake_bench.known()["integrity"], "heartbeats_lost": 7}
    world.becomes = lambda _asked: {**BACK, "integrity": bad}
    assert set(answers(table(tmp_path, world)[1]).values()) == {"harmed"}


def test_limits_of_time_and_memory_are_no_part_of_the_answer(tmp_path: Path, world: World) -> None:
    slow = {**fake_bench.known()["pause_ms"], "qmp": 60_000.0}
    reason = "pause of 60000.0 ms by the QMP clock; the limit is 10000 ms"
    world.becomes = lambda _asked: {"pause_ms": slow, "verdict": "fail", "reasons": [reason]}
    assert set(answers(table(tmp_path, world)[1]).values()) == {"pass"}


def test_what_cannot_be_is_refused_before_anything_is_started(tmp_path: Path, world: World) -> None:
    world.machines["/b"] = "pc-q35-2.4"
    code, grid = table(tmp_path, world, *WORDS[:-1], "precopy,flip", "--forward-only")
    assert world.asked == ["/a /c precopy"]
    assert list(answers(grid).values()) == ["pass", "refused", "refused", "refused"]
    assert "localhost-migrate" in grid.runs[1].reasons[0]
    assert "no machine type pc-q35-* in common" in grid.runs[2].reasons[0]
    assert code is ExitCode.PASS


def test_a_second_run_asks_for_nothing_that_is_known(tmp_path: Path, world: World) -> None:
    table(tmp_path, world)
    assert len(world.asked) == 8
    world.asked.clear()
    _, again = table(tmp_path, world)
    assert (world.asked, len(again.runs), again.finished) == ([], 8, True)
    table(tmp_path, world, *WORDS, afresh=True)
    assert len(world.asked) == 8


def test_an_interrupted_run_goes_on_where_it_was(tmp_path: Path, world: World) -> None:
    def interrupt(_asked: UpgradeOptions) -> dict[str, Any]:
        if len(world.asked) == 4:
            raise KeyboardInterrupt
        return {}

    world.becomes = interrupt
    with pytest.raises(KeyboardInterrupt):
        table(tmp_path, world)
    so_far = pairing.read(tmp_path / "out" / "pairs" / "pairs.json")
    assert (len(so_far.runs), so_far.finished) == (3, False)
    assert (tmp_path / "out" / "pairs" / "report.html").exists()
    assert pairs.exit_code(so_far) is ExitCode.CANNOT_TELL
    world.becomes = lambda _asked: {}
    world.asked.clear()
    assert table(tmp_path, world)[0] is ExitCode.PASS
    assert len(world.asked) == 5


@pytest.mark.parametrize("what", ["binary", "guest", "devices", "lab"])
def test_what_has_changed_is_asked_again(
    tmp_path: Path, world: World, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    table(tmp_path, world)
    world.asked.clear()
    words = {"guest": ("--cpus", "2"), "devices": ("--devices", "virtio-rng-pci")}.get(what, ())
    if what == "binary":
        world.builds["/a"] = "another sum"
    if what == "lab":
        monkeypatch.setattr(pairs, "lab_digest", lambda _layout: "another lab")
    table(tmp_path, world, *WORDS, *words)
    assert len(world.asked) == (4 if what == "binary" else 8)


def test_the_same_binary_under_another_name_is_known(tmp_path: Path, world: World) -> None:
    world.becomes = lambda _asked: BACK
    table(tmp_path, world, *WORDS, "--forward-only")
    world.asked.clear()
    world.builds["/z"] = "sum of /a"
    _, grid = table(tmp_path, world, "--old", "/z", *WORDS[2:], "--forward-only")
    assert world.asked == []
    assert {run.old for run in grid.runs} == {"/z"}
    assert "--old /z" in grid.runs[0].reproduce


def test_what_the_lab_could_not_tell_is_tried_again(tmp_path: Path, world: World) -> None:
    def trouble(_asked: UpgradeOptions) -> dict[str, Any]:
        raise CannotTellError("the guest did not boot")

    world.becomes = trouble
    code, grid = table(tmp_path, world)
    assert code is ExitCode.CANNOT_TELL
    assert set(answers(grid).values()) == {"not known"}
    world.becomes = lambda _asked: {}
    assert table(tmp_path, world)[0] is ExitCode.PASS


def test_what_this_host_lacks_is_refused_and_asked_again(tmp_path: Path, world: World) -> None:
    def lacking(_asked: UpgradeOptions) -> dict[str, Any]:
        raise PreconditionError("there is no memory for it")

    world.becomes = lacking
    assert set(answers(table(tmp_path, world)[1]).values()) == {"refused"}
    world.becomes = lambda _asked: {}
    assert set(answers(table(tmp_path, world)[1]).values()) == {"pass"}


def test_a_qemu_that_cannot_be_had_costs_its_own_cells(tmp_path: Path, world: World) -> None:
    code, grid = table(tmp_path, world, "--old", "/gone,/a", *WORDS[2:], "--forward-only")
    assert code is ExitCode.CANNOT_TELL
    assert list(answers(grid).values()) == ["not known", "not known", "pass", "pass"]
    assert "no mirror has it" in grid.runs[0].reasons[0]


def test_the_worst_of_several_rounds_is_shown(tmp_path: Path, world: World) -> None:
    world.becomes = lambda _asked: LOST if len(world.asked) == 3 else {}
    words = ("--old", "/a", "--new", "/c", "--mechanisms", "precopy", "--forward-only")
    code, grid = table(tmp_path, world, *words, "--repeats", "4")
    assert code is ExitCode.FAIL
    run = pairing.cell(grid, "/a", "/c", "precopy")
    assert run
    assert (run.answer, run.round) == (PairAnswer.LOST, 3)
    assert pairing.cell(grid, "/c", "/a", "precopy") is None


def test_the_table_on_the_screen_and_as_a_page(tmp_path: Path, world: World) -> None:
    world.becomes = lambda asked: BACK if asked.old == "/b" else {}
    _, grid = table(tmp_path, world, *WORDS[:-1], "precopy,flip", "--forward-only")
    console = Console(file=io.StringIO(), width=132, color_system=None)
    shown.show(grid, console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "by precopy" in text
    rows = [line.split() for line in text.splitlines() if line.startswith("/b ")]
    assert rows[0] == ["/b", "rolled", "back"]
    assert "/b to /c by precopy: rolled back: vring.num 1024 exceeds" in text
    assert "4 cells: 1 pass, 2 refused, 1 rolled back" in text
    page = (tmp_path / "out" / "pairs" / "report.html").read_text(encoding="utf-8")
    assert '<span class="pass">pass</span>' in page
    assert '<span class="open">rolled back</span>' in page
    assert "vring.num 1024 exceeds" in page
    assert len(page) < 100_000  # nothing is drawn, so nothing to draw with is in it


def part(directory: Path, old: str, started: str, answer: PairAnswer, ram: str = "256M") -> None:
    words = ("--new", "/n", "--ram", ram, "--forward-only", "--mechanisms", "precopy")
    trial = pairing.plan(request("--old", old, *words))[0]
    host = Result(**fake_bench.known()).host
    grid = pairing.empty([trial], "", started, host)
    run = pairing.not_done(trial, answer, "a reason")
    directory.mkdir(parents=True)
    made = grid.model_copy(update={"runs": [run], "finished": answer is PairAnswer.PASS})
    (directory / pairing.FILE).write_text(made.model_dump_json(), encoding="utf-8")


def test_what_many_hosts_have_found_is_one_table(tmp_path: Path) -> None:
    part(tmp_path / "1" / "x", "/a", "2026-01-01T00:00:02", PairAnswer.PASS)
    part(tmp_path / "2" / "y", "/b", "2026-01-01T00:00:01", PairAnswer.ROLLED_BACK)
    part(tmp_path / "3" / "z", "/a", "2026-01-01T00:00:00", PairAnswer.LOST)  # an older one
    grid = pairs.gather(tmp_path)
    assert answers(grid) == {"/a /n precopy": "pass", "/b /n precopy": "rolled back"}
    assert grid.finished  # together they are, whether or not each was
    assert (grid.olds, grid.news, len(grid.hosts)) == (["/a", "/b"], ["/n"], 1)
    part(tmp_path / "5", "/b", "2026-01-01T00:00:03", PairAnswer.LOST)
    ended = tmp_path / "5" / pairing.FILE
    ended.write_text(ended.read_text().replace('"/n"', '"/m"'))
    assert not pairs.gather(tmp_path).finished
    ended.unlink()
    part(tmp_path / "4", "/c", "2026-01-01T00:00:03", PairAnswer.PASS, ram="512M")
    with pytest.raises(UsageError, match="different questions"):
        pairs.gather(tmp_path)
    with pytest.raises(UsageError, match="there is no"):
        pairs.gather(tmp_path / "1" / "x" / "none")


def test_a_matrix_for_avocado_has_a_leaf_for_each_pair(tmp_path: Path) -> None:
    trials = pairing.plan(request(*WORDS, "--devices", "virtio-rng-pci", "--cpus", "2"))
    text = pairs.variants(trials)
    lines = text.splitlines()
    leaves = [line for line in lines if line.startswith("    ") and line.endswith(":")]
    assert len(leaves) == len(set(leaves)) == len(trials)
    assert leaves[0] == "    0001-a-to-c-by-precopy:"
    for line in ('old: "/a"', 'devices: "virtio-rng-pci"', "cpus: 2", 'ram: "256M"', "round: 1"):
        assert f"        {line}" in lines


def test_every_key_is_on_the_page_that_documents_them() -> None:
    page = (CHECKOUT / "docs" / "pairs.md").read_text(encoding="utf-8")
    fields = {**Grid.model_fields, **PairRun.model_fields}
    assert [name for name in fields if f"`{name}`" not in page] == []
    assert [answer for answer in PairAnswer if f"| {answer} |" not in page] == []


def test_another_lab_is_another_key(tmp_path: Path) -> None:
    here = pairs.lab_digest(layout(tmp_path))
    assert here == pairs.lab_digest(layout(tmp_path))
    (tmp_path / "transplant").mkdir()
    (tmp_path / "transplant" / "helper.c").write_text("int main;")
    assert pairs.lab_digest(Layout(tmp_path, tmp_path, tmp_path)) != here
