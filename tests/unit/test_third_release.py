# SPDX-License-Identifier: GPL-2.0-or-later
"""A release more is data: a table in releases.toml, nothing else."""

from __future__ import annotations

import argparse
import json
import re
import shutil
from pathlib import Path

import fake_source
import pytest

from lab.base.layout import CHECKOUT, Layout
from lab.pair import build
from lab.source import naming
from lab.source.releases import load_releases
from lab.verbs import releases as verb


@pytest.fixture
def layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Layout:
    fake = fake_source.make(tmp_path / "theirs")
    assert fake.release.debian
    lines = [
        '[releases."9.9"]',
        f'version = "{fake.release.version}"',
        f'tag = "{fake.release.tag}"',
        '[releases."9.9".debian]',
        'package = "qemu"',
        f'version = "{fake.release.debian.version}"',
        'suite = "sid"',
    ]
    for one in fake.release.debian.files:
        lines += ['[[releases."9.9".debian.files]]', f'name = "{one.name}"', f"size = {one.size}"]
        lines += [f'sha1 = "{one.sha1}"', f'sha256 = "{one.sha256}"']
    made = fake_source.layout(tmp_path)
    made.patches.mkdir(parents=True)
    shutil.copytree(CHECKOUT / "patches" / "10.0", made.patches / "10.0")
    shutil.copytree(CHECKOUT / "patches" / "10.2", made.patches / "10.2")
    text = (CHECKOUT / "patches" / "releases.toml").read_text()
    (made.patches / "releases.toml").write_text(text + "\n" + "\n".join(lines) + "\n")
    monkeypatch.setenv("PAGEFLIP_SOURCES", str(fake.directory))
    monkeypatch.setattr(Layout, "default", classmethod(lambda _: made))
    return made


def test_it_is_built_by_its_name_and_the_roles_stay(layout: Layout) -> None:
    built = build.by_name(layout, "9.9")
    assert (built.release, built.version, built.series) == ("9.9", "9.9.9", "stock")
    assert build.by_name(layout, "stock:9.9.9") == built
    assert naming.pinned(layout, "slim:9.9.9") == "slim:9.9"
    assert [naming.pinned(layout, role) for role in ("old", "new")] == ["10.0", "10.2"]


def test_it_is_listed(layout: Layout, capsys: pytest.CaptureFixture[str]) -> None:
    def listed() -> dict[str, dict[str, str]]:
        assert verb.run(argparse.Namespace(json=True, update=False)) == 0
        return {one["name"]: one for one in json.loads(capsys.readouterr().out)}

    assert listed()["9.9"] == {"name": "9.9", "what": "QEMU 9.9.9, no series", "here": ""}
    build.by_name(layout, "slim:9.9")
    capsys.readouterr()
    lines = listed()
    assert lines["9.9"]["here"] == "stock (slim)"
    assert "the default for --old" in lines["10.0"]["what"]
    assert lines["debian:13"]["what"] == "as packaged in trixie"
    assert verb.run(argparse.Namespace(json=False, update=True)) == 0
    assert "debian:12-backports" in capsys.readouterr().out


def test_no_module_names_a_release() -> None:
    releases = load_releases(CHECKOUT / "patches" / "releases.toml").releases
    names = {name for key, one in releases.items() for name in (key, one.version)}
    named = re.compile(rf"""["'](?:stock:)?(?:{"|".join(map(re.escape, names))})["']""")
    modules = [*(CHECKOUT / "lab").rglob("*.py"), *(CHECKOUT / "tests" / "avocado").glob("*.py")]
    assert [path.name for path in modules if named.search(path.read_text())] == []


def test_a_role_is_given_by_data(layout: Layout) -> None:
    path = layout.patches / "releases.toml"
    path.write_text(path.read_text().replace('new = "10.2"', 'new = "9.9"'))
    assert naming.pinned(layout, "stock:new") == "stock:9.9"
    assert build.by_name(layout, "new").version == "9.9.9"
