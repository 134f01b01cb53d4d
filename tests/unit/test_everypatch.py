# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

from pathlib import Path

import fake_source
import pytest

from lab.base.layout import Layout
from lab.review import everypatch
from lab.source import fetch
from lab.source import series as patches
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


def test_each_patch_is_compiled_in_one_tree(
    tmp_path: Path, series: Series, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake, layout = fake_source.make(tmp_path / "theirs"), fake_source.layout(tmp_path)
    sums = {path.name: fetch.sha256_of(path) for path in (fake.orig, fake.packaging)}
    source = Source("9.9", "9.9.9", Kind.DEBIAN, "test", (fake.orig, fake.packaging), sums)
    log = tmp_path / "done"
    monkeypatch.setenv("FAKE_LOG", str(log))

    def findings(of: Series) -> list[str]:
        log.unlink(missing_ok=True)
        options = fake_source.OPTIONS
        return everypatch.not_compiling(layout, fake.release, source, of, options)

    [found] = findings(series)
    assert found.startswith("9.9/0002-break.patch: QEMU 9.9.9 (2 patches, plain) does not compile")
    assert "emulator.c:3:1: error: broken" in found
    # Once as a whole; the second does not compile; the third touches what all are made of.
    configured, *made = log.read_text().split()
    assert configured == "configure"
    assert sorted(made) == sorted(2 * _ALL)
    assert _left(layout) == {"compiled.json", "build.log"}

    # What has compiled is not compiled again; what has not is.
    [again] = findings(series)
    assert "0002-break.patch" in again
    assert log.read_text().split() == ["configure"]
    assert findings(Series("9.9", series.patches[:1])) == []
    assert not log.exists()


def _left(layout: Layout) -> set[str]:
    [directory] = [path for path in layout.builds.iterdir() if path.is_dir()]
    return {path.name for path in directory.iterdir()}
