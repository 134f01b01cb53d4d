# SPDX-License-Identifier: GPL-2.0-or-later
"""One patch onto one tree, by GNU patch and without fuzz."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from lab.base import process
from lab.base.errors import CannotTellError

_FILE = re.compile(r"^(?:patching|checking) file '?(.+?)'?(?: \(.*\))?$")
_OTHER_FILE = re.compile(r"^The next patch would (?:create|delete|empty out) the file '?(.+?)'?,?$")
_NEW_NAME = re.compile(r"^\|\+\+\+ (?:b/)?(\S+)")
_FAILED = re.compile(r"^Hunk #(\d+) FAILED at (\d+)")
_MOVED = re.compile(r"^Hunk #(\d+) succeeded at (\d+) .*\(?offset (-?\d+) lines?\)")
_NOT_APPLIED = ("No file to patch", "Skipping patch", "Ignoring potentially dangerous")
_MALFORMED = re.compile(r"^patch: \*\*\*\* (.+)$")


class PatchError(CannotTellError):
    """A patch does not apply to the tree it is meant for."""


@dataclass(frozen=True)
class PatchReport:
    """What GNU patch said: `failures` keep it from being used, `offsets` are worth a note."""

    failures: tuple[str, ...]
    offsets: tuple[str, ...]


def parse(output: str) -> PatchReport:
    """Read what GNU patch printed (in the C locale)."""
    file = "?"
    failures: list[str] = []
    offsets: list[str] = []
    for line in output.splitlines():
        if match := _FILE.match(line) or _OTHER_FILE.match(line) or _NEW_NAME.match(line):
            file = match[1]
        elif match := _FAILED.match(line):
            failures.append(f"{file}: hunk #{match[1]}, at line {match[2]}")
        elif match := _MOVED.match(line):
            offsets.append(f"{file}: hunk #{match[1]} is {match[3]} lines off, at line {match[2]}")
        elif match := _MALFORMED.match(line):
            failures.append(match[1])
        elif any(words in line for words in _NOT_APPLIED):
            failures.append(f"{file}: hunk #1 and all others ({line.strip().rstrip('.')})")
    return PatchReport(tuple(dict.fromkeys(failures)), tuple(offsets))


def apply(tree: Path, patch: Path) -> tuple[str, ...]:
    """Apply `patch` to `tree`, and return a line for every hunk that was found elsewhere.

    Raises PatchError that names the patch, the file and the hunk.  The tree is then half patched:
    the caller works on one that nobody else has seen, and throws it away.
    """
    argv = ["patch", "-p1", "-F0", "--forward", "--batch", "--no-backup-if-mismatch"]
    argv += ["--reject-file=-", "-d", str(tree), "-i", str(patch.absolute())]
    done = process.run(argv, env={"LC_ALL": "C"}, check=False)
    said = parse(done.stdout)
    if done.returncode == 0 and not said.failures:
        return tuple(f"{patch.name}: {line}" for line in said.offsets)
    failures = said.failures or (done.stdout.strip() or f"patch exits with {done.returncode}",)
    raise PatchError(
        f"{patch} does not apply to {tree.name}:\n" + "\n".join(f"    {one}" for one in failures),
        hint="bring the patch up to date (./pageflip patches refresh), or use the release that it "
        "was made for",
    )
