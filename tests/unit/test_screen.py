# SPDX-License-Identifier: GPL-2.0-or-later
"""The one-screen verdict, and the page that documents every key of result.json."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

from rich.console import Console

from lab import model
from lab.base.layout import CHECKOUT
from lab.model import Result
from lab.report import screen

HERE = Path(__file__).parent


def result(**more: Any) -> Result:
    content = json.loads((HERE / "result.json").read_text(encoding="utf-8"))
    return Result(**{**content, **more})


def shown(what: Result) -> str:
    console = Console(file=io.StringIO(), width=100, highlight=False)
    screen.show(what, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_pass_fits_one_screen_and_says_what_matters() -> None:
    text = shown(result())
    assert text.startswith("PASS")
    assert len(text.splitlines()) <= 24
    for word in (
        "STOP to RESUME",
        "outside",
        "inside",
        "memory",
        "0 bad of",
        "gifted",
        "exit code",
        "out/20",
        "./pageflip upgrade",
    ):
        assert word in text, word


def test_a_failure_says_why_first() -> None:
    text = shown(
        result(
            verdict="fail",
            reasons=["bad pages: 1"],
            pause_ms=model.Pause(
                qmp=None, outside=1.0, inside=1.0, outside_before=1.0
            ).model_dump(),
        )
    )
    assert text.startswith("FAIL")
    assert "because: bad pages: 1" in text.splitlines()[1]
    assert "not known STOP to RESUME" in text
    assert "exit code      1" in text


def test_memory_that_was_not_measured_is_said_to_be_so() -> None:
    assert "not measured" not in shown(result())
    lines = shown(result(memory=None)).splitlines()
    assert [line.split() for line in lines if "measured" in line] == [["memory", "not", "measured"]]


def test_the_schema_documents_every_key() -> None:
    page = (CHECKOUT / "docs" / "results.md").read_text(encoding="utf-8")
    missing = [key for key in keys(Result) if f"`{key}`" not in page]
    assert not missing, f"docs/results.md says nothing of {missing}"


def keys(kind: Any, prefix: str = "") -> list[str]:
    """Return every key of a model as it is written in the page: ``pause_ms.qmp``."""
    found = []
    schema = kind.model_json_schema()
    definitions = schema.get("$defs", {})

    def walk(node: dict[str, Any], at: str) -> None:
        for name, child in node.get("properties", {}).items():
            found.append(at + name)
            below = f"{at}{name}."
            for option in [child, child.get("items", {}), *child.get("anyOf", [])]:
                follow(option, below)
            follow(child.get("additionalProperties", {}), f"{below}NAME.")

    def follow(option: dict[str, Any] | bool, at: str) -> None:
        if isinstance(option, dict) and "$ref" in option:
            walk(definitions[option["$ref"].rsplit("/", 1)[1]], at)

    walk(schema, prefix)
    return found
