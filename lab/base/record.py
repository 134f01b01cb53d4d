# SPDX-License-Identifier: GPL-2.0-or-later
"""What a run leaves behind: numbered JSON for each stage, and the result."""

from __future__ import annotations

import dataclasses
import json
import os
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab.base.files import write_whole
from lab.base.progress import note_once
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
        self.keep(f"{self.stage}-{name}.json", json.dumps(content, indent=2, default=_plain) + "\n")

    def keep(self, name: str, text: str) -> None:
        """Write a file of the run directory, such that a reader finds all of it or none."""
        write_whole(self.directory / name, text)

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


class Spare(Record):
    """The record of an upgrade of somebody else's guest, which must not depend on it."""

    def keep(self, name: str, text: str) -> None:
        """Write a file of the run directory, or say that it could not be written."""
        with forgiven(self.directory):
            super().keep(name, text)

    def log(self, name: str) -> Path:
        """Return a file for a process's output, which goes nowhere when it cannot be made."""
        path = self.directory / name
        with forgiven(self.directory):
            path.touch()
            return path
        return Path(os.devnull)


class Lines:
    """A file in the run directory that lines are added to; see `forgiven`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor = -1
        with forgiven(path.parent):
            self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC)

    def add(self, text: str) -> None:
        """Add a line; after an error, or when it is closed, there is none to come."""
        if self._descriptor < 0:
            return
        try:
            os.write(self._descriptor, f"{text}\n".encode())
        except OSError as error:
            _incomplete(self._path.parent, error)
            self.close()

    def close(self) -> None:
        """Close the file; nothing is left to be written."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


@contextmanager
def forgiven(directory: Path) -> Iterator[None]:
    """Say so, once, when something cannot be written in `directory`: a note, and no error."""
    try:
        yield
    except OSError as error:
        _incomplete(directory, error)


def _incomplete(directory: Path, error: OSError) -> None:
    note_once(f"the records in {directory} are not complete: {error.strerror}")


def as_json(model: Model) -> str:
    """Return a model as it stands in files and on stdout.

    Names of files need not be UTF-8, which pydantic's own JSON has to be: here they are escaped.
    """
    return json.dumps(model.model_dump(mode="json"), indent=2) + "\n"


def as_json_list(models: Sequence[Model]) -> str:
    """Return models as a JSON array."""
    return json.dumps([model.model_dump(mode="json") for model in models], indent=2) + "\n"


def _plain(value: Any) -> Any:
    if isinstance(value, Model):
        return value.model_dump(mode="json")
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    return sorted(value) if isinstance(value, frozenset) else str(value)
