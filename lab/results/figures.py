# SPDX-License-Identifier: GPL-2.0-or-later
"""A bench as it is kept in ``bench.json``: the request, every run, and their summary.

``docs/measuring.md`` explains every key.  As everywhere, units stand in the names, and a value that
could not be had is null.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field, ValidationError, model_validator

from lab import mechanisms, options
from lab.base import arguments
from lab.base.arguments import Option
from lab.base.errors import UsageError
from lab.model import Host, Memory, Model, Result, Side
from lab.options import GuestOptions
from lab.results.statistics import Estimate, estimate, ratios
from lab.verdict import faults
from lab.vm.cmdline import Backing

#: What a bench is kept in, in its directory.
FILE = "bench.json"
#: The round whose runs are not counted.
WARM_UP = 0
_MIB = 2**20


class Load(NamedTuple):
    """What the guest is burdened with: mechanisms are compared where it is the same."""

    ram_bytes: int
    dirty_rate: int


class Request(GuestOptions):
    """The options of a bench, with sizes as they were typed."""

    mechanisms: Annotated[
        tuple[str, ...],
        Option(
            "what is compared; what cannot be done here is skipped; MECHANISM@NEW is the same "
            "with another new QEMU than --new, MECHANISM@OLD::NEW with another pair, "
            "MECHANISM:unsampled without sampling memory",
            "A,B,...",
        ),
    ] = ("all",)
    ram: Annotated[tuple[str, ...], Option("guest RAM, or several sizes", "SIZE,...")] = ("2G",)
    dirty_rate: Annotated[
        str,
        Option(
            "how much of what is filled the guest rewrites each second, or several such rates",
            "SIZE,...",
            compared=True,
        ),
    ] = "0"
    repeats: Annotated[int, Option("rounds that count, after one that does not", "N")] = 5
    reference: Annotated[
        str,
        Option("mechanism that ratios are taken to (default: precopy, or else the first)", "NAME"),
    ] = ""

    @property
    def rates(self) -> list[str]:
        """The dirty rates, as they were written."""
        return self.dirty_rate.split(",")

    @property
    def loads(self) -> list[Load]:
        """Every load, in the order given; raises UsageError for what is not a size."""
        rates = [options.size(rate) for rate in self.rates]
        return [Load(options.size(ram), rate) for ram in self.ram for rate in rates]

    def rate_words(self, load: Load) -> str:
        """Return the dirty rate in words; nothing where it is the same everywhere."""
        return f", {load.dirty_rate / _MIB:g} MiB/s rewritten" if len(self.rates) > 1 else ""

    def words(self, load: Load) -> str:
        """Return what distinguishes a load from the others."""
        return f"{load.ram_bytes // _MIB} MiB{self.rate_words(load)}"

    @property
    def command(self) -> str:
        """The command line that asks for the same again."""
        return arguments.command("bench", self)


class Figures(Model):
    """What is compared of a run."""

    pause_qmp_ms: float | None
    pause_outside_ms: float | None
    pause_inside_ms: float | None
    total_ms: float | None
    memory_ratio: float | None
    memory_pss_ratio: float | None
    brownout_ms: float | None = Field(
        default=None, description="heartbeats came at less than 80 % of their usual rate"
    )
    huge_pages_kept: float | None = Field(
        description="AnonHugePages of the new QEMU afterwards / of the old one before"
    )


class Case(Model):
    """What is measured again and again: a mechanism under a load."""

    ram_bytes: int
    dirty_rate: int = Field(description="bytes a second that the guest rewrites")
    mechanism: str

    @property
    def load(self) -> Load:
        """The load alone."""
        return Load(self.ram_bytes, self.dirty_rate)

    @property
    def case(self) -> tuple[Load, str]:
        """Both, to be looked up by."""
        return self.load, self.mechanism


class Turn(Case):
    """Which run of a bench."""

    round: int = Field(description="0 is the warm-up, which is not counted")


class Run(Turn):
    """One upgrade."""

    faults: list[str] = Field(description="why it failed; its figures are not counted then")
    figures: Figures
    parts: dict[str, float] = Field(
        default_factory=dict,
        description="phases (ms) as the mechanism tells them, and what the new QEMU is left with",
    )
    noise_ms: float | None = Field(description="longest heartbeat gap in the second before")
    touched_bytes: int
    accel: str
    memory_method: Literal["cgroup", "pss"] | None
    took_s: float = Field(description="the whole run: boot, fill, upgrade, check")
    run_directory: str = Field(description="inside the bench directory")


class NotRun(Turn):
    """A run that is not there, and why."""

    reason: str


class Row(Case):
    """What the counted runs of one mechanism under one load come to."""

    failed: int = Field(description="runs that failed, the warm-up's included")
    figures: dict[str, Estimate]
    ratios: dict[str, Estimate] = Field(
        description="the same figures divided by the reference's of the same round"
    )


class Bench(Model):
    """Everything a bench leaves behind."""

    schema_version: Literal[1] = 1
    finished: bool = False
    started: str
    command: str
    request: Request
    host: Host
    old: Side | None = None
    new: Side | None = None
    others: dict[str, Side] = Field(
        default_factory=dict, description="QEMUs that are named after an @, by that name"
    )
    inapplicable: list[NotRun] = Field(default_factory=list)
    troubles: list[NotRun] = Field(default_factory=list)
    runs: list[Run] = Field(default_factory=list)
    summary: list[Row] = Field(default_factory=list)

    @model_validator(mode="before")
    @classmethod
    def _of_one_rate(cls, kept: Any) -> Any:
        """Give every run of an old file, which had one rate, that rate."""
        parts = ("runs", "inapplicable", "troubles", "summary")
        entries = [entry for part in parts for entry in kept.get(part, [])]
        for entry in entries:
            if isinstance(entry, dict) and "dirty_rate" not in entry:
                entry["dirty_rate"] = options.size(kept["request"]["dirty_rate"])
        return kept


def run_of(result: Result, label: str, number: int, took_s: float, directory: str) -> Run:
    """Return what a bench keeps of `result`, which is called `label` in round `number`."""
    pause, memory = result.pause_ms, result.memory
    return Run(
        round=number,
        ram_bytes=result.ram_bytes,
        dirty_rate=result.dirty_rate,
        mechanism=label,
        faults=faults(result),
        figures=Figures(
            pause_qmp_ms=pause.qmp,
            pause_outside_ms=pause.outside,
            pause_inside_ms=pause.inside,
            total_ms=result.total_ms,
            memory_ratio=memory.ratio if memory else None,
            memory_pss_ratio=memory.pss_ratio if memory else None,
            brownout_ms=result.brownout.slow_ms if result.brownout else None,
            huge_pages_kept=_huge_pages_kept(result.mechanism, memory),
        ),
        parts=_parts(result),
        noise_ms=pause.outside_before,
        touched_bytes=result.touched_bytes,
        accel=result.accel,
        memory_method=memory.method if memory else None,
        took_s=took_s,
        run_directory=directory,
    )


def _parts(result: Result) -> dict[str, float]:
    """Return what the longest gap and the upgrade consist of, and what the new QEMU keeps."""
    pause, memory = result.pause_ms, result.memory
    known = {"before_stop_ms": pause.before_stop, "after_resume_ms": pause.after_resume}
    known |= {f"phase_{name}_ms": ms for name, ms in result.phases_ms.model_dump().items()}
    if memory and memory.new_pss_bytes:
        known["memory_after_mib"] = memory.new_pss_bytes / _MIB
    return {name: value for name, value in known.items() if value is not None}


def _huge_pages_kept(name: str, memory: Memory | None) -> float | None:
    """Return the share of huge pages that were kept; None for shared RAM, which has no such."""
    mechanism = mechanisms.named(name)
    if not mechanism or mechanism.backing is not Backing.PRIVATE:
        return None
    if not memory or not memory.old_huge_bytes or memory.new_huge_bytes is None:
        return None
    return memory.new_huge_bytes / memory.old_huge_bytes


def summarise(bench: Bench) -> list[Row]:
    """Return one row for each load and mechanism that was run, in the order given."""
    rows = []
    for load in bench.request.loads:
        here = [run for run in bench.runs if run.load == load]
        reference = _by_round(run for run in here if run.mechanism == bench.request.reference)
        for mechanism in bench.request.mechanisms:
            mine = [run for run in here if run.mechanism == mechanism]
            if mine:
                rows.append(_row(mine, reference))
    return rows


def values(bench: Bench, row: Row) -> dict[str, list[float]]:
    """Return for each figure of `row` what was measured in the rounds that count."""
    mine = (run for run in bench.runs if run.case == row.case)
    return {name: list(by_round.values()) for name, by_round in _by_round(mine).items()}


def _row(runs: list[Run], reference: dict[str, dict[int, float]]) -> Row:
    by_round = _by_round(runs)
    figures = {name: estimate(list(values.values())) for name, values in by_round.items()}
    compared = {
        name: estimate(ratios(values, reference[name])) for name, values in by_round.items()
    }
    return Row(
        ram_bytes=runs[0].ram_bytes,
        dirty_rate=runs[0].dirty_rate,
        mechanism=runs[0].mechanism,
        failed=sum(bool(run.faults) for run in runs),
        figures={name: found for name, found in figures.items() if found},
        ratios={name: found for name, found in compared.items() if found},
    )


def _by_round(runs: Iterable[Run]) -> dict[str, dict[int, float]]:
    """Return for each figure its value in each round that counts."""
    good = [run for run in runs if run.round != WARM_UP and not run.faults]
    return {
        name: {
            run.round: value for run in good if (value := getattr(run.figures, name)) is not None
        }
        for name in Figures.model_fields
    }


def read_bench(path: Path) -> Bench:
    """Read a bench from its file or its directory; raise UsageError that names it."""
    file = path / FILE if path.is_dir() else path
    try:
        return Bench.model_validate_json(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{file}: {error.strerror}", f"name a {FILE}, or its directory") from error
    except ValidationError as error:
        raise UsageError(f"{file}: {error}", "it is of another version of pageflip") from error
