# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import fake_source
import pytest

from lab.base.errors import CannotTellError
from lab.base.layout import Layout
from lab.pair import recipe
from lab.review import everypatch
from lab.source import fetch
from lab.source import series as patches
from lab.source.releases import Release
from lab.source.resolve import Kind, Source
from lab.source.series import Series

_ALL = ["qemu-system-x86_64", "qemu-img", "tests/qtest/migration-test"]


def _emulator(old: str, new: str) -> str:
    """Return a patch of the third line of the fake emulator."""
    return fake_source.hunk("emulator.sh", 3, [], old, new, ["# line four", "# line five"])


@pytest.fixture
def series(tmp_path: Path) -> Series:
    changed = {
        "0001-text.patch": fake_source.change_text(20),
        "0002-break.patch": _emulator("# line three", "# broken"),
        "0003-mend.patch": _emulator("# broken", "# mended"),
    }
    mails = {name: fake_source.mail(name, "", diff) for name, diff in changed.items()}
    return patches.load_series(fake_source.write_series(tmp_path / "9.9", mails))


@dataclass
class Compiling:
    """The check, with a QEMU that compiles in milliseconds; ``done`` is what its compiler did."""

    layout: Layout
    release: Release
    source: Source
    log: Path

    def findings(self, of: Series) -> list[str]:
        self.log.unlink(missing_ok=True)
        asked = (self.layout, self.release, self.source, of, fake_source.OPTIONS)
        return everypatch.not_compiling(*asked)

    @property
    def done(self) -> list[str]:
        return self.log.read_text().split() if self.log.exists() else []


@pytest.fixture
def compiling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Compiling:
    fake, layout = fake_source.make(tmp_path / "theirs"), fake_source.layout(tmp_path)
    sums = {path.name: fetch.sha256_of(path) for path in (fake.orig, fake.packaging)}
    source = Source("9.9", "9.9.9", Kind.DEBIAN, "test", (fake.orig, fake.packaging), sums)
    monkeypatch.setenv("FAKE_LOG", str(tmp_path / "done"))
    return Compiling(layout, fake.release, source, tmp_path / "done")


def test_each_patch_is_compiled_in_one_tree(compiling: Compiling, series: Series) -> None:
    [found] = compiling.findings(series)
    assert found.startswith("9.9/0002-break.patch: QEMU 9.9.9 (2 patches, plain) does not compile")
    assert "emulator.c:3:1: error: broken" in found
    # Once as a whole; the second does not compile; the third touches what all are made of.
    configured, *made = compiling.done
    assert configured == "configure"
    assert sorted(made) == sorted(2 * _ALL)
    assert _left(compiling.layout) == {"compiled.json", "build.log"}

    # What has compiled is not compiled again; what has not is.
    [again] = compiling.findings(series)
    assert "0002-break.patch" in again
    assert compiling.done == ["configure"]
    assert compiling.findings(Series("9.9", series.patches[:1])) == []
    assert compiling.done == []
    assert compiling.findings(Series("9.9", ())) == []


def test_what_is_edited_meanwhile_is_not_taken_for_compiled(
    compiling: Compiling, series: Series, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, compiled = series.patches[0], recipe.compiled

    def edit(part: recipe.BuildRecipe) -> Path:
        objects = compiled(part)
        first.write_text(first.read_text().replace("20 changed", "20 edited"))
        return objects

    with monkeypatch.context() as during:
        during.setattr(recipe, "compiled", edit)
        with pytest.raises(CannotTellError, match="the series changed during the build"):
            compiling.findings(series)
    assert len(compiling.findings(series)) == 1
    assert sorted(compiling.done) == sorted(["configure", *_ALL, *_ALL])


def test_a_patch_that_does_not_apply_ends_it(compiling: Compiling, series: Series) -> None:
    """And is a finding: those before it were compiled."""
    patch = series.patches[2]
    patch.write_text(patch.read_text().replace("-# broken", "-# other"))
    broken, lost = compiling.findings(series)
    assert "0002-break.patch" in broken
    assert "0003-mend.patch" in lost
    assert "emulator.sh: hunk #1" in lost
    assert _left(compiling.layout) == {"compiled.json", "build.log"}


def _left(layout: Layout) -> set[str]:
    [directory] = [path for path in layout.builds.iterdir() if path.is_dir()]
    return {path.name for path in directory.iterdir()}
