# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

from pathlib import Path

import fake_source
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab.base.errors import UsageError
from lab.review import lint
from lab.source import gnupatch, worktree
from lab.source.gnupatch import PatchError
from lab.source.resolve import Kind, Source, unpack
from lab.source.series import STOCK, Series, apply, load_series, parse_series, patched_tree

_BODY = (
    "Why, and what follows.\n\nUpstream-Status: Inappropriate [lab series]\nSigned-off-by: A <a@b>"
)


@pytest.fixture
def source(tmp_path: Path) -> Source:
    fake = fake_source.make(tmp_path / "theirs")
    return Source("9.9", "9.9.9", Kind.DEBIAN, "test", (fake.orig, fake.packaging))


@pytest.fixture
def base(source: Source, tmp_path: Path) -> Path:
    unpack(source, tmp_path / "base")
    return tmp_path / "base"


def _series(tmp_path: Path, *diffs: str) -> Series:
    texts = {
        f"000{number}-change-{number}.patch": fake_source.mail(
            f"docs: change {number}", _BODY, diff
        )
        for number, diff in enumerate(diffs, 1)
    }
    return load_series(fake_source.write_series(tmp_path / "patches" / "9.9", texts))


def test_no_series_is_the_release_as_it_is(tmp_path: Path) -> None:
    assert load_series(tmp_path) is STOCK
    (tmp_path / "series").write_text("# none yet\n")
    assert load_series(tmp_path) is STOCK


def test_a_patched_tree(tmp_path: Path, source: Source) -> None:
    series = _series(tmp_path, fake_source.change_text(10), fake_source.change_text(20))
    assert patched_tree(source, series, tmp_path / "tree") == ()
    text = (tmp_path / "tree" / "docs" / "text").read_text()
    assert "\n10 changed\n" in text
    assert "\n20 changed\n" in text


def test_a_hunk_elsewhere_is_noted(tmp_path: Path, source: Source) -> None:
    series = _series(tmp_path, fake_source.change_text(20, start=13))
    notes = patched_tree(source, series, tmp_path / "tree")
    assert notes == ("0001-change-1.patch: docs/text: hunk #1 is 5 lines off, at line 18",)


def test_one_that_does_not_apply_names_patch_file_and_hunk(tmp_path: Path, source: Source) -> None:
    both = fake_source.change_text(10)
    wrong = fake_source.change_text(20).replace("-20\n", "-twenty\n").split("\n", 2)[2]
    series = _series(tmp_path, fake_source.change_text(30), both + wrong)
    with pytest.raises(PatchError) as caught:
        patched_tree(source, series, tmp_path / "trees" / "tree")
    assert "0002-change-2.patch" in caught.value.message
    assert "docs/text: hunk #2, at line 18" in caught.value.message
    assert "hunk #1" not in caught.value.message
    assert list((tmp_path / "trees").iterdir()) == []


def test_fuzz_is_refused(tmp_path: Path, source: Source) -> None:
    fuzzy = fake_source.change_text(20).replace(" 17\n", " seventeen\n")
    with pytest.raises(PatchError, match="docs/text: hunk #1"):
        patched_tree(source, _series(tmp_path, fuzzy), tmp_path / "tree")


@pytest.mark.parametrize(
    ("diff", "said"),
    [
        ("--- a/none\n+++ b/none\n@@ -1 +1 @@\n-a\n+b\n", "none: hunk #1"),
        ("--- /dev/null\n+++ b/docs/text\n@@ -0,0 +1 @@\n+a\n", "docs/text: hunk #1"),
        ("--- a/docs/text\n+++ b/docs/text\n@@ -1,9 +1,9 @@\n-0\n", "malformed|unexpected"),
        ("--- a/../out\n+++ b/../out\n@@ -1 +1 @@\n-a\n+b\n", "does not apply"),
        ("nothing at all\n", "garbage"),
    ],
)
def test_other_ways_not_to_apply(tmp_path: Path, base: Path, diff: str, said: str) -> None:
    with pytest.raises(PatchError, match=said):
        apply(base, _series(tmp_path, diff))


def test_one_that_is_in_already_is_refused(tmp_path: Path, base: Path) -> None:
    series = _series(tmp_path, fake_source.change_text(10))
    apply(base, series)
    with pytest.raises(PatchError, match="docs/text"):
        apply(base, series)


@pytest.mark.parametrize("line", ["sub/y.patch", "a b", "x.patch\nx.patch", "..", "missing.patch"])
def test_a_bad_series_is_wrong_usage(tmp_path: Path, line: str) -> None:
    (tmp_path / "x.patch").touch()
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "y.patch").touch()
    (tmp_path / "series").write_text(f"x.patch\n{line}\n" if line == "missing.patch" else line)
    with pytest.raises(UsageError) as caught:
        load_series(tmp_path)
    assert str(tmp_path / "series") in caught.value.message


@given(st.text())
def test_parsing_a_series_gives_names_or_says_why_not(text: str) -> None:
    try:
        names = parse_series(text)
    except ValueError:
        return
    assert len(set(names)) == len(names)
    assert all(name and "/" not in name and "#" not in name for name in names)


@given(st.text())
def test_parsing_what_patch_prints_never_fails(text: str) -> None:
    assert isinstance(gnupatch.parse(text), gnupatch.PatchReport)


def test_the_digest_is_of_contents_and_order(tmp_path: Path) -> None:
    series = _series(tmp_path, fake_source.change_text(10), fake_source.change_text(20))
    assert Series("other", series.patches).digest == series.digest
    assert Series("9.9", series.patches[::-1]).digest != series.digest
    before, text = series.digest, series.patches[0].read_text()
    series.patches[0].write_text(text.replace("Why, and", "Wherefore, and"))
    assert series.digest == before
    series.patches[0].write_text(text.replace("+10 changed", "+10 changed again"))
    assert series.digest != before


def _git(tree: Path, *words: str) -> str:
    return worktree.git(tree, *words).strip()


def _bytes(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.fixture
def exported(tmp_path: Path, source: Source) -> Path:
    """A series that git itself wrote."""
    series = _series(tmp_path, fake_source.change_text(10), fake_source.change_text(20))
    tree = tmp_path / "tree"
    worktree.work_tree(source, series, tree)
    (tree / "docs" / "more").write_text("no newline at the end")
    (tree / "docs" / "more").chmod(0o755)
    _git(tree, "add", ".")
    _git(tree, "commit", "--author=A <a@b>", "-qm", f"docs: more, for the récord\n\n{_BODY}")
    worktree.export(tree, tmp_path / "patches" / "9.9")
    return tmp_path / "patches" / "9.9"


def test_the_round_trip_is_exact(
    tmp_path: Path, source: Source, exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = _bytes(exported)
    assert sorted(before) == [
        "0001-docs-change-1.patch",
        "0002-docs-change-2.patch",
        "0003-docs-more-for-the-r-cord.patch",
        "series",
    ]
    # A user whose git is set up otherwise writes the same bytes.
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / ".gitconfig").write_text(
        "[diff]\nnoprefix = true\nalgorithm = patience\n[format]\nsignOff = true\nnumbered = true\n"
        "[core]\nabbrev = 7\n[user]\nname = Somebody\nemail = else@example.org\n"
    )
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    again = tmp_path / "again"
    worktree.work_tree(source, load_series(exported), again)
    assert int(_git(again, "rev-list", "--count", f"{worktree.BASE_TAG}..HEAD")) == 3
    worktree.export(again, exported)
    assert _bytes(exported) == before


def test_a_patch_that_went_is_gone_after_export(
    tmp_path: Path, source: Source, exported: Path
) -> None:
    tree = tmp_path / "again"
    worktree.work_tree(source, load_series(exported), tree)
    _git(tree, "reset", "-q", "--hard", "HEAD~2")
    assert worktree.export(tree, exported) == ["0001-docs-change-1.patch"]
    assert sorted(_bytes(exported)) == ["0001-docs-change-1.patch", "series"]


def test_exporting_needs_a_tree_of_ours_with_all_committed(tmp_path: Path, base: Path) -> None:
    with pytest.raises(UsageError, match="no commit pageflip-base"):
        worktree.export(base, tmp_path / "9.9")
    worktree.make_repository(base)
    (base / "docs" / "text").write_text("changed\n")
    with pytest.raises(UsageError, match="docs/text"):
        worktree.export(base, tmp_path / "9.9")
    assert not (tmp_path / "9.9").exists()
    worktree.git(base, "commit", "-qam", "docs: after another base")
    written = worktree.export(base, tmp_path / "9.9", base="HEAD^")
    assert written == ["0001-docs-after-another-base.patch"]


def test_a_work_tree_is_never_made_over_something(tmp_path: Path, source: Source) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "mine").touch()
    with pytest.raises(UsageError, match="there already"):
        worktree.work_tree(source, STOCK, tmp_path / "tree")
    assert [path.name for path in (tmp_path / "tree").iterdir()] == ["mine"]


def test_a_work_tree_stops_before_the_patch_that_fails(tmp_path: Path, source: Source) -> None:
    wrong = fake_source.change_text(20).replace("-20\n", "-twenty\n")
    series = _series(tmp_path, fake_source.change_text(10), wrong)
    with pytest.raises(PatchError, match="docs/text: hunk #1, at line 18"):
        worktree.work_tree(source, series, tmp_path / "tree")
    assert "docs: change 1" in _git(tmp_path / "tree", "log", "--format=%s")
    assert _git(tmp_path / "tree", "status", "--porcelain") == ""


def test_refresh_brings_a_fuzzy_patch_up_to_date(tmp_path: Path, base: Path) -> None:
    fuzzy = fake_source.change_text(20, start=14).replace(" 17\n", " seventeen\n")
    series = _series(tmp_path, fuzzy)
    directory = series.patches[0].parent
    with pytest.raises(PatchError):
        apply(base, series)
    assert worktree.refresh(base, directory) == ["9.9/0001-docs-change-1.patch: written anew"]
    assert apply(base, load_series(directory)) == ()
    text = (directory / "0001-docs-change-1.patch").read_text()
    assert "From: A <a@b>" in text
    assert "Date: Mon, 6 Jan 2025 10:00:00 +0100" in text


def test_refresh_that_fails_leaves_the_series(tmp_path: Path, base: Path) -> None:
    series = _series(tmp_path, fake_source.change_text(20).replace("-20\n", "-twenty\n"))
    before = _bytes(series.patches[0].parent)
    with pytest.raises(PatchError):
        worktree.refresh(base, series.patches[0].parent)
    assert _bytes(series.patches[0].parent) == before


@pytest.fixture
def checkpatch(base: Path) -> Path:
    """A base whose checkpatch.pl dislikes one word."""
    (base / "scripts").mkdir()
    (base / "scripts" / "checkpatch.pl").write_text(
        "open(my $file, '<', $ARGV[-1]); my $bad = grep { /tabulator/ } <$file>;\n"
        'print "x:1: ERROR: code indent\\n" if $bad;\n'
        'print "total: $bad errors, 0 warnings, 1 lines checked\\n"; exit($bad ? 1 : 0);\n'
    )
    return base


def test_lint_finds_nothing_in_a_series_in_order(checkpatch: Path, exported: Path) -> None:
    more = next(exported.glob("0003*"))
    found = lint.check_one(checkpatch, load_series(exported))
    assert found == [f"9.9/{more.name}: docs/more has no SPDX-License-Identifier"]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("Signed-off-by: A <a@b>\n", "", "no Signed-off-by: line"),
        ("From: A <a@b>", "From: B <b@c>", "B <b@c>, has not signed it off"),
        ("Upstream-Status: ", "Upstream-Statue: ", "no Upstream-Status: line"),
        ("Why, and", "The tabulator, and", "checkpatch: x:1: ERROR: code indent"),
        ("@@ -8,7 +8,7 @@", "@@ -6,7 +6,7 @@", "2 lines off"),
        ("[PATCH] ", "[PATCH 1/2] ", "exporting it again writes other bytes"),
        ("-10\n", "-ten\n", "docs/text: hunk #1, at line 8"),
    ],
)
def test_lint_finds(checkpatch: Path, exported: Path, old: str, new: str, said: str) -> None:
    patch = next(exported.glob("0001*"))
    text = patch.read_text()
    assert old in text, text
    patch.write_text(text.replace(old, new, 1))
    found = lint.check_one(checkpatch, load_series(exported))
    assert any("0001-docs-change-1.patch" in line and said in line for line in found), found


def test_lint_finds_a_patch_that_is_not_in_the_series(exported: Path) -> None:
    (exported / "0009-stray.patch").touch()
    found = lint.unlisted(exported, load_series(exported))
    assert found == ["9.9/0009-stray.patch: not in series"]


def test_lint_wants_the_same_slugs_everywhere(tmp_path: Path) -> None:
    one = Series("9.8", (Path("0001-a.patch"), Path("0002-b.patch")))
    same = Series("9.9", (Path("0001-a.patch"), Path("0002-b.patch")))
    other = Series("9.9", (Path("0001-a.patch"), Path("0002-c.patch")))
    order = Series("9.9", (Path("0001-b.patch"), Path("0002-a.patch")))
    assert lint.same_slugs([one, same, STOCK]) == []
    assert lint.same_slugs([one, other]) == ["9.8 and 9.9 have not the same patches: b, c"]
    assert "order" in lint.same_slugs([one, order])[0]
