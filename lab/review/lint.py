# SPDX-License-Identifier: GPL-2.0-or-later
"""The checks that a series must pass before anybody is asked to review it.

Every check returns what it found wrong, a line for each finding, and knows nothing of the others.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from lab.base import process
from lab.base.layout import Layout
from lab.base.progress import note, step
from lab.review import everypatch
from lab.source import fetch, gnupatch, worktree
from lab.source.gnupatch import PatchError
from lab.source.releases import Release, Releases
from lab.source.resolve import resolve, stock_tree
from lab.source.series import Series, load_series

_TRAILERS = ("Signed-off-by", "Upstream-Status")
_NEW_FILE = re.compile(
    r"^diff --git a/\S+ b/(?P<name>\S+)\nnew file mode.*?(?=^diff --git |\Z)",
    re.MULTILINE | re.DOTALL,
)
#: New files that hold no licence line: data in which a comment has no place.
_WITHOUT_SPDX = re.compile(r"(?:^|/)(?:\.gitignore|MAINTAINERS|[^/]*\.(?:json\.in|txt|out))$")
# checkpatch asks this of every new file; a lab series has no entry in MAINTAINERS to update.
_ACCEPTED = ("added, moved or deleted file(s)",)
_SUMMARY = re.compile(
    r"^(?:total: |NOTE: |$)|has (?:no obvious )?style problems|are false positives"
)


def lint(
    layout: Layout, releases: Releases, chosen: Sequence[Release], *, build: bool = False
) -> list[str]:
    """Check the series of the chosen releases; return the findings."""
    findings: list[str] = []
    for release in chosen:
        series = load_series(layout.patches / release.name)
        findings += unlisted(layout.patches / release.name, series)
        if not series.patches:
            note(f"{release.name}: no patches yet")
            continue
        source = resolve(layout, release, releases.upstream.releases)
        with step(f"checking the series of {release.name}"):
            findings += check_one(stock_tree(layout, source), series)
        if build:
            options = releases.options(releases.build.flavour)
            findings += everypatch.not_compiling(layout, release, source, series, options)
    findings += same_slugs([load_series(layout.patches / release.name) for release in chosen])
    return findings


def check_one(base: Path, series: Series) -> list[str]:
    """Run every check that needs no build on one series; `base` is the release's tree."""
    findings = [line for patch in series.patches for line in texts(patch)]
    with fetch.scratch(base) as scratch:
        findings += applies_exactly(base, series, scratch)
        findings += round_trips(base, series, scratch)
    return findings + style(base, series)


def unlisted(directory: Path, series: Series) -> list[str]:
    """Find patches that the file ``series`` does not name."""
    listed = {patch.name for patch in series.patches}
    there = sorted(path.name for path in directory.glob("*.patch"))
    return [f"{directory.name}/{name}: not in series" for name in there if name not in listed]


def same_slugs(several: Sequence[Series]) -> list[str]:
    """Find patches that one release has and another has not."""
    series = [one for one in several if one.patches]
    slugs = {one.name: [slug(patch) for patch in one.patches] for one in series}
    if not slugs:
        return []
    first, *others = slugs
    return [
        f"{first} and {other} have not the same patches: "
        f"{', '.join(sorted(set(slugs[first]) ^ set(slugs[other]))) or 'the order differs'}"
        for other in others
        if slugs[other] != slugs[first]
    ]


def slug(patch: Path) -> str:
    """Return a patch's name without its number."""
    return re.sub(r"^\d+-", "", patch.name.removesuffix(".patch"))


def texts(patch: Path) -> list[str]:
    """Find what is missing from a patch's text: trailers, and the licence of new files."""
    text = patch.read_text(encoding="utf-8", errors="replace")
    where = f"{patch.parent.name}/{patch.name}"
    message = text.split("\n---\n", 1)[0]
    findings = [
        f"{where}: no {trailer}: line"
        for trailer in _TRAILERS
        if not re.search(rf"^{trailer}: \S", message, re.MULTILINE)
    ]
    author = re.search(r"^From: (.+)$", message, re.MULTILINE)
    if author and f"Signed-off-by: {author[1]}" not in message:
        findings.append(f"{where}: its author, {author[1]}, has not signed it off")
    return findings + [
        f"{where}: {new['name']} has no SPDX-License-Identifier"
        for new in _NEW_FILE.finditer(text)
        if "SPDX-License-Identifier:" not in new[0] and not _WITHOUT_SPDX.search(new["name"])
    ]


def applies_exactly(base: Path, series: Series, scratch: Path) -> list[str]:
    """Find hunks that do not apply, or not at the line they name."""
    tree = scratch / f"{base.name}-patched"
    worktree.small_tree(base, series, tree)
    findings: list[str] = []
    for patch in series.patches:
        try:
            findings += [f"{series.name}/{line}" for line in gnupatch.apply(tree, patch)]
        except PatchError as error:
            return [*findings, str(error)]  # those after it build on it
    return findings


def round_trips(base: Path, series: Series, scratch: Path) -> list[str]:
    """Find patches that change when they are applied and exported."""
    try:
        written = worktree.round_trip(base, series, scratch / "round-trip")
    except PatchError as error:
        return [str(error)]
    made = {path.name: path.read_bytes() for path in written.glob("*.patch")}
    findings = [
        f"{series.name}/{patch.name}: exporting it again writes other bytes "
        f"(./pageflip patches refresh {series.name})"
        for patch in series.patches
        if made.pop(patch.name, None) != patch.read_bytes()
    ]
    return findings + [f"{series.name}: exporting writes another file, {name}" for name in made]


def style(base: Path, series: Series) -> list[str]:
    """Run QEMU's own checkpatch.pl, of the release that the series is for."""
    return [line for patch in series.patches for line in _checkpatch(base, patch)]


def _checkpatch(base: Path, patch: Path) -> Iterator[str]:
    argv = [
        "perl",
        "scripts/checkpatch.pl",
        "--terse",
        "--color=never",
        "--",
        str(patch.absolute()),
    ]
    done = process.run(argv, cwd=base, env={"LC_ALL": "C.UTF-8"}, check=False)
    said = [line for line in done.stdout.splitlines() if not _SUMMARY.search(line)]
    for line in said:
        if not any(words in line for words in _ACCEPTED):
            yield f"{patch.parent.name}/{patch.name}: checkpatch: {line}"
    if done.returncode != 0 and not said:
        yield f"{patch.parent.name}/{patch.name}: checkpatch: exit status {done.returncode}"
