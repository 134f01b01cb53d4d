# SPDX-License-Identifier: GPL-2.0-or-later
"""The options of a verb as a model: each field says how it is typed, repeated and compared.

A field ``Annotated[str, Option("guest RAM", "SIZE")] = "2G"`` of a pydantic model is the option
``--ram SIZE``, its default, a word of the command line that repeats the run, and a key of the
record.
"""

from __future__ import annotations

import argparse
import enum
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo


@dataclass(frozen=True)
class Option:
    """What makes a field an option; its name, type and default are the field's."""

    help: str
    metavar: str | None = None
    choices: tuple[str, ...] = ()
    #: Whether benches that differ in it have measured different things.
    compared: bool = False
    #: Whether it applies to a QEMU that the lab did not start.
    live: bool = False


def options(model: type[BaseModel]) -> Iterator[tuple[str, FieldInfo, Option]]:
    """Yield every field that is an option, in the order of the model."""
    for name, field in model.model_fields.items():
        for option in field.metadata:
            if isinstance(option, Option):
                yield name, field, option


def spelled(name: str) -> str:
    """Return the option for a field's name."""
    return f"--{name.replace('_', '-')}"


def declare(parser: argparse.ArgumentParser, model: type[BaseModel]) -> None:
    """Add the options of `model` to a parser.

    A bool is an option without a value; ``--no-NAME`` where the default is True.  A tuple takes
    its items with commas between them.
    """
    for name, field, made in options(model):
        default = field.default
        if isinstance(default, bool):
            flag = spelled(f"no_{name}" if default else name)
            action = "store_false" if default else "store_true"
            parser.add_argument(flag, dest=name, action=action, help=_escaped(made.help))
            continue
        known = "" if default in (None, "") else f" (default: {_text(default)})"
        parser.add_argument(
            spelled(name),
            default=default,
            type=_reader(default),
            choices=made.choices or _members(default),
            metavar=made.metavar,
            help=_escaped(made.help + known),
        )


def _escaped(text: str) -> str:
    return text.replace("%", "%%")


def _members(value: object) -> list[str] | None:
    return [str(one) for one in type(value)] if isinstance(value, enum.StrEnum) else None


def add_out(parser: argparse.ArgumentParser) -> None:
    """Add ``--out``, which every verb has that leaves run directories behind."""
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="where run directories are made (default: ./out)"
    )


def _reader(default: object) -> Any:
    """Return what makes a value of the text that was typed."""
    if isinstance(default, tuple):
        return lambda text: tuple(filter(None, text.split(",")))
    return type(default) if isinstance(default, int | float) else str


def _text(value: object) -> str:
    """Return a value as it is typed."""
    if isinstance(value, tuple):
        return ",".join(value)
    return repr(value).removesuffix(".0") if isinstance(value, float) else str(value)


def read(model: type[BaseModel], given: argparse.Namespace) -> dict[str, Any]:
    """Return what was typed for the options of `model`, by field."""
    return {name: getattr(given, name) for name, _, _ in options(model)}


def command(verb: str, asked: BaseModel) -> str:
    """Return the command line that asks for the same again, with every default spelled out."""
    words = ["./pageflip", verb]
    for name, field, _ in options(type(asked)):
        value = getattr(asked, name)
        if isinstance(field.default, bool):
            words += [spelled(f"no_{name}" if field.default else name)] * (value != field.default)
        elif value not in (None, ""):
            words += [spelled(name), _text(value)]
    return shlex.join(words)


def compared(model: type[BaseModel]) -> list[str]:
    """Return the fields in which comparable benches agree."""
    return [name for name, _, option in options(model) if option.compared]


def foreign(model: type[BaseModel], given: argparse.Namespace) -> str:
    """Return the first option given that does not apply to a running QEMU; "" for none."""
    for name, field, option in options(model):
        if not option.live and getattr(given, name) != field.default:
            return spelled(name if field.default is not True else f"no_{name}")
    return ""
