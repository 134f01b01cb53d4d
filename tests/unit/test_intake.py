# SPDX-License-Identifier: GPL-2.0-or-later
"""A series in every form in which it may come."""

from __future__ import annotations

import mailbox
import shutil
import subprocess
from email.message import EmailMessage
from pathlib import Path

import pytest

from lab.base.errors import PreconditionError, UsageError
from lab.review import intake
from lab.review.intake import collect
from lab.source.series import Series

DIFF = "diff --git a/x b/x\n--- a/x\n+++ b/x\n@@ -1 +1 @@\n-{0}\n+{1}\n"


def titles(series: Series) -> list[str]:
    return [patch.name for patch in series.patches]


def message(subject: str, text: str, *, coded: bool = False) -> EmailMessage:
    made = EmailMessage()
    made["From"] = "A <a@example.invalid>"
    made["Subject"] = subject
    made["Date"] = "Wed, 25 Nov 2026 12:00:00 +0000"
    made.set_content(text, cte="base64" if coded else None)
    return made


def test_a_directory_without_a_list_is_sorted(tmp_path: Path) -> None:
    given = tmp_path / "given"
    given.mkdir()
    for name in ("0002-b.patch", "0001-a.patch"):
        (given / name).write_text(DIFF.format(name, name))
    series = collect(str(given), tmp_path / "into", tmp_path)
    assert titles(series) == ["0001-a.patch", "0002-b.patch"]


def test_a_list_is_kept_to(tmp_path: Path) -> None:
    given = tmp_path / "given"
    given.mkdir()
    for name in ("a.patch", "b.patch", "left-out.patch"):
        (given / name).write_text(DIFF.format(name, name))
    (given / "series").write_text("b.patch\na.patch\n")
    series = collect(str(given), tmp_path / "into", tmp_path)
    assert titles(series) == ["0001-b.patch", "0002-a.patch"]


def test_an_mbox_in_the_wrong_order_with_a_cover_letter(tmp_path: Path) -> None:
    box = mailbox.mbox(tmp_path / "box")
    for one in (
        message("[PATCH v2 2/2] tests: the second", DIFF.format("b", "c"), coded=True),
        message("[PATCH v2 0/2] about it", "what this is for\n"),
        message("Re: [PATCH v2 1/2] hw: the first", "Looks good.\n"),
        message("[PATCH v2 1/2] hw: the first", "why\n\n---\n" + DIFF.format("a", "b")),
    ):
        box.add(one)
    box.close()
    series = collect(str(tmp_path / "box"), tmp_path / "into", tmp_path)
    assert titles(series) == ["0001-hw-the-first.patch", "0002-tests-the-second.patch"]
    second = series.patches[1].read_text()
    assert "Subject: [PATCH] tests: the second\n" in second
    assert second.endswith(DIFF.format("b", "c"))


def test_a_range_of_commits(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    git = ["git", "-C", str(repository), "-c", "user.name=A", "-c", "user.email=a@example.invalid"]
    subprocess.run(["git", "init", "-q", str(repository)], check=True)
    for text in ("a", "b", "c"):
        (repository / "x").write_text(text)
        subprocess.run([*git, "add", "x"], check=True)
        subprocess.run([*git, "commit", "-q", "-m", f"now {text}"], check=True)
    series = collect("HEAD~2..HEAD", tmp_path / "into", repository)
    assert titles(series) == ["0001-now-b.patch", "0002-now-c.patch"]


@pytest.mark.parametrize("what", ["nothing", "a b", "/nowhere/at/all"])
def test_what_is_no_series(what: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is no series"):
        collect(what, tmp_path / "into", tmp_path)


def test_nothing_in_it(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="there is no patch in it"):
        collect(str(tmp_path / "empty"), tmp_path / "into", tmp_path)
    with pytest.raises(UsageError, match="is no git repository"):
        collect("A..B", tmp_path / "other", tmp_path)


def test_a_message_id_takes_b4(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake.shutil, "which", lambda _name: None)
    with pytest.raises(PreconditionError, match="b4, which is not here"):
        collect("20261125-x@example.invalid", tmp_path / "into", tmp_path)


def test_what_b4_fetches_is_read_as_an_mbox(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    box = mailbox.mbox(tmp_path / "thread")
    box.add(message("[PATCH] one", DIFF.format("a", "b")))
    box.close()
    program = tmp_path / "bin" / "b4"
    program.parent.mkdir()
    # -q am --no-cover -o DIR -n fetched ID
    program.write_text(f'#!/bin/sh\ncp {tmp_path}/thread "$5/fetched.mbx"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    assert shutil.which("b4") == str(program)
    series = collect("<20261125-x@example.invalid>", tmp_path / "into", tmp_path)
    assert titles(series) == ["0001-one.patch"]
