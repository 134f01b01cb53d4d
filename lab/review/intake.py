# SPDX-License-Identifier: GPL-2.0-or-later
"""A series in any form it arrives in, made into a directory of patches with a file ``series``."""

from __future__ import annotations

import email.policy
import mailbox
import re
import shutil
from collections.abc import Iterator
from email.message import EmailMessage
from email.parser import BytesParser
from pathlib import Path

from lab.base import process
from lab.base.errors import PreconditionError, UsageError
from lab.source.series import Series, diff_of, load_series

_RANGE = re.compile(r"[^\s/]+\.\.[^\s/]*|[^\s]+\.\.[^\s]+")
_MESSAGE_ID = re.compile(r"<?[^\s<>@/]+@[^\s<>@/]+>?")
_NUMBER = re.compile(r"\[[^\]]*?\b(\d+)/\d+\]")
_HINT = "give an mbox, a directory of patches, a git range (A..B), or a message-id"


def collect(what: str, into: Path, repository: Path) -> Series:
    """Copy the patches of `what` into the directory `into`, in their order, and return them.

    `what` is a directory, an mbox, a range of commits in `repository`, or a message-id, which b4
    fetches.  Raises UsageError for anything else, PreconditionError without b4, and CommandError
    when git or b4 fails.
    """
    into.mkdir(parents=True)
    path = Path(what)
    if path.is_dir():
        _from_directory(path, into)
    elif path.is_file():
        _from_mbox(path, into)
    elif _RANGE.fullmatch(what):
        _from_git(what, into, repository)
    elif _MESSAGE_ID.fullmatch(what):
        _from_mbox(_fetched(what.strip("<>"), into), into)
    else:
        raise UsageError(f"{what}: is no series", _HINT)
    names = sorted(patch.name for patch in into.glob("*.patch"))
    if not names:
        raise UsageError(f"{what}: there is no patch in it", _HINT)
    (into / "series").write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
    return load_series(into)


def _from_directory(directory: Path, into: Path) -> None:
    listed = load_series(directory).patches  # in the order of its file series, if it has one
    found = listed or tuple(sorted(directory.glob("*.patch")))
    for number, patch in enumerate(found, 1):
        name = re.sub(r"^\d+-", "", patch.name)
        shutil.copyfile(patch, into / f"{number:04}-{name}")


def _from_mbox(file: Path, into: Path) -> None:
    """Take the messages that have a diff, by the number in their subject."""
    parser = BytesParser(policy=email.policy.default)
    box = mailbox.mbox(file, create=False)
    found = []
    for place, key in enumerate(box.keys()):
        message = parser.parsebytes(box.get_bytes(key))
        assert isinstance(message, EmailMessage)
        text = _text(message)
        subject = " ".join(str(message["subject"] or "").split())
        if diff_of(text.encode()) == text.encode() and not text.startswith("diff --git"):
            continue  # a cover letter, or an answer
        number = _NUMBER.search(subject)
        found.append((int(number[1]) if number else 1, place, subject, message, text))
    ordered = sorted(found, key=lambda entry: entry[:2])
    for place, (_, _, subject, message, text) in enumerate(ordered, 1):
        title = re.sub(r"^(\[[^\]]*\]\s*)+", "", subject)
        slug = re.sub(r"[^A-Za-z0-9]+", "-", title).strip("-")[:52]
        head = f"From: {message['from']}\nDate: {message['date']}\nSubject: [PATCH] {title}\n\n"
        (into / f"{place:04}-{slug}.patch").write_text(head + text, encoding="utf-8")


def _text(message: EmailMessage) -> str:
    body = message.get_body(("plain",))
    return str(body.get_content()).replace("\r\n", "\n") if body else ""


def _from_git(span: str, into: Path, repository: Path) -> None:
    if not (repository / ".git").exists():
        raise UsageError(
            f"{span}: {repository} is no git repository",
            hint="git submodule update --init qemu, or name another one with --repository",
        )
    argv: list[str | Path] = [
        "git",
        "-C",
        repository,
        "format-patch",
        "-q",
        "--no-signature",
        "-o",
        into,
        span,
    ]
    process.run(argv, hint=f"is {span} a range of commits in {repository}?")


def _fetched(message_id: str, into: Path) -> Path:
    if shutil.which("b4") is None:
        raise PreconditionError(
            f"{message_id}: a message-id is fetched by b4, which is not here",
            hint="apt-get install b4, or save the thread as an mbox and name that",
        )
    argv: list[str | Path] = [
        "b4",
        "-q",
        "am",
        "--no-cover",
        "-o",
        into,
        "-n",
        "fetched",
        message_id,
    ]
    process.run(argv, hint="b4 needs the network: save the thread as an mbox and name that")
    return next(_mboxes(into))


def _mboxes(directory: Path) -> Iterator[Path]:
    yield from directory.glob("*.mbx")
