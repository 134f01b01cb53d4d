# SPDX-License-Identifier: GPL-2.0-or-later
"""What a QEMU binary is and can do, asked of the binary itself."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lab.base import process as run
from lab.base.deadline import Deadline
from lab.base.errors import UsageError
from lab.base.files import sha256_of
from lab.base.layout import Layout, socket_directory
from lab.model import Side
from lab.pair import build, packaged
from lab.source import naming
from lab.source.releases import X86_64
from lab.vm.monitor import monitor

_VERSION = re.compile(r"QEMU emulator version (\S+)")
_ASK_S = 60.0


@dataclass(frozen=True)
class Binary:
    """A QEMU system emulator."""

    path: Path
    version: str
    sha256: str
    release: str | None
    commands: frozenset[str]
    migration_modes: frozenset[str]
    #: What localhost-migrate's argument ``mechanism`` takes; empty without the series.
    localhost_mechanisms: frozenset[str] = frozenset()
    #: The names of all of localhost-migrate's arguments.
    localhost_arguments: frozenset[str] = frozenset()
    #: The machine types that it lists, aliases not among them.
    machines: frozenset[str] = frozenset()
    #: What its guests are (query-target), "" where that was not asked.
    architecture: str = ""
    #: Its own firmware, where it comes with one.
    firmware: Path | None = None

    def side(self) -> Side:
        """Return it as the result has it."""
        return Side(
            release=self.release, version=self.version, path=str(self.path), sha256=self.sha256
        )


def inspect(path: Path, release: str | None = None) -> Binary:
    """Ask the binary at `path` for its version and its monitor for what it knows.

    Raises UsageError when it is not a QEMU system emulator that can be run.
    """
    path = path.absolute()
    hint = "give a release (./pageflip releases) or the path of a qemu-system-*"
    try:
        if not path.is_file() or not os.access(path, os.X_OK):
            raise UsageError(f"{path}: no such program", hint)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}", hint) from error
    said = run.run([path, "--version"], check=False, deadline=Deadline.after(_ASK_S, "--version"))
    found = _VERSION.search(said.stdout)
    if not found:
        first = said.stdout.strip().splitlines()[:1]
        raise UsageError(
            f"{path}: this is not a QEMU system emulator (--version "
            + (f"printed {first[0]!r})" if first else "printed nothing)"),
            hint,
        )
    told = _ask(path)
    return told_by_itself(
        path,
        found.group(1),
        told.schema,
        told.commands,
        sha256_of(path),
        release,
        machines=told.machines,
        architecture=told.architecture,
    )


def check_architecture(binary: Binary, wanted: str) -> None:
    """Raise UsageError where a QEMU runs guests of another architecture."""
    if binary.architecture != wanted:
        raise UsageError(
            f"{binary.path} runs guests of {binary.architecture}, and this one is of {wanted}",
            hint=f"give a qemu-system-{wanted}, or another guest",
        )


def binary_of(layout: Layout, name: str, architecture: str = X86_64) -> Binary:
    """Return the QEMU that `name` says: a path, or what it names is fetched or built.

    Raises UsageError for what is not known or runs guests of another `architecture`,
    CannotTellError when it cannot be built.
    """
    if naming.is_path(name):
        found = inspect(Path(name))
        check_architecture(found, architecture)
    elif asked := naming.packaged(layout, name):
        theirs = packaged.prepare(layout, asked, architecture)
        found = replace(inspect(theirs.qemu, name), firmware=theirs.firmware)
    else:
        made = build.by_name(layout, name, architecture)
        found = inspect(made.qemu, naming.pinned(layout, name))
    return found


def told_by_itself(
    path: Path,
    version: str,
    schema: list[dict[str, Any]],
    commands: frozenset[str],
    sha256: str = "",
    release: str | None = None,
    machines: frozenset[str] = frozenset(),
    architecture: str = "",
) -> Binary:
    """Return what a QEMU's own schema (query-qmp-schema) and commands say that it can do."""
    return Binary(
        path,
        version,
        sha256,
        release,
        commands,
        frozenset(_enum_values(schema, "migrate-set-parameters", "mode")),
        frozenset(_enum_values(schema, "localhost-migrate", "mechanism")),
        frozenset(_arguments(schema, "localhost-migrate")),
        machines,
        architecture,
    )


@dataclass(frozen=True)
class _Told:
    """What a QEMU's monitor said of it."""

    schema: list[dict[str, Any]]
    commands: frozenset[str]
    machines: frozenset[str]
    architecture: str


def _ask(path: Path) -> _Told:
    with socket_directory() as directory:
        socket = directory / "qmp"
        argv: list[str | Path] = [
            path,
            "-machine",
            "none",
            "-nodefaults",
            "-no-user-config",
            "-display",
            "none",
            "-S",
            "-qmp",
            f"unix:{socket},server=on,wait=off",
        ]
        with run.spawned(argv, log=directory / "log") as process:

            def alive() -> None:
                if process.poll() is not None:
                    said = (directory / "log").read_text(encoding="utf-8", errors="replace").strip()
                    raise UsageError(f"{path}: does not start: {said or process.returncode}")

            with monitor(
                "probe",
                socket,
                Deadline.after(_ASK_S, f"monitor of {path}"),
                alive,
                lambda _text: None,
            ) as qmp:
                return _Told(
                    qmp.execute("query-qmp-schema"),
                    frozenset(c["name"] for c in qmp.execute("query-commands")),
                    frozenset(m["name"] for m in qmp.execute("query-machines")),
                    qmp.execute("query-target")["arch"],
                )


def _arguments(schema: Iterable[Mapping[str, Any]], command: str) -> dict[str, str]:
    """Return a command's arguments, each with its type (docs/devel/qapi-code-gen.rst)."""
    entities = {entity["name"]: entity for entity in schema}
    arguments = entities.get(entities.get(command, {}).get("arg-type", ""), {})
    return {argument["name"]: argument["type"] for argument in arguments.get("members", [])}


def _enum_values(schema: Iterable[Mapping[str, Any]], command: str, member: str) -> list[str]:
    """Return the values that a command's enum argument takes."""
    kind = _arguments(schema, command).get(member)
    found = next((entity for entity in schema if entity["name"] == kind), {})
    return [value["name"] for value in found.get("members", [])]
