# SPDX-License-Identifier: GPL-2.0-or-later
"""What a run leaves behind: numbered JSON for each stage, and the result."""

from __future__ import annotations

import dataclasses
import json
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab.model import Model, Result, VerdictKind

#: A failed run's directory in one file.
BUNDLE = "bundle.tar.gz"


@dataclass
class Record:
    """The run directory, and the number of the next stage's record in it."""

    directory: Path
    stage: int = 0

    def write(self, name: str, content: Any) -> None:
        """Keep a stage's record."""
        self.stage += 1
        text = json.dumps(content, indent=2, default=_plain) + "\n"
        (self.directory / f"{self.stage}-{name}.json").write_text(text, encoding="utf-8")

    def finish(self, result: Result) -> None:
        """Keep the result; of one that is not pass, all there is in one file to pass on."""
        (self.directory / "result.json").write_text(as_json(result), encoding="utf-8")
        (self.directory / "REPRODUCE").write_text(f"{result.reproduce}\n", encoding="utf-8")
        if result.verdict is not VerdictKind.PASS:
            self._bundle()

    def _bundle(self) -> None:
        """Pack the run directory: command lines, QMP, traces, samples, verdict, reproducer."""
        files = sorted(self.directory.iterdir())
        with tarfile.open(self.directory / BUNDLE, "w:gz") as bundle:
            for file in files:
                bundle.add(file, f"{self.directory.name}/{file.name}")


def as_json(result: Result) -> str:
    """Return the result as it stands in result.json and on stdout."""
    return result.model_dump_json(indent=2) + "\n"


def as_json_list(models: Sequence[Model]) -> str:
    """Return models as a JSON array."""
    return json.dumps([model.model_dump(mode="json") for model in models], indent=2) + "\n"


def _plain(value: Any) -> Any:
    if isinstance(value, Model):
        return value.model_dump(mode="json")
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    return sorted(value) if isinstance(value, frozenset) else str(value)
