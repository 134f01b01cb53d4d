# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import argparse
import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import fake_source
import pytest
from rich.console import Console

from lab.base.errors import CannotTellError
from lab.base.layout import CHECKOUT, Layout
from lab.guest import images
from lab.host import facts, userfault
from lab.host.userfault import UserFault
from lab.pair import build, firmware, toolchain
from lab.pair.toolchain import Need
from lab.source.releases import load_releases
from lab.verbs import doctor
from lab.verbs.doctor import Finding
from lab.vm import accel
from lab.vm.accel import AccelReport


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    made = fake_source.layout(tmp_path)
    made.checkout.mkdir()
    shutil.copy2(CHECKOUT / "packages.txt", made.checkout / "packages.txt")
    return made


def _states(findings: Iterator[Finding] | list[Finding]) -> dict[str, str]:
    return {one.name: one.state for one in findings}


def test_every_finding_that_is_not_fine_says_what_to_do(layout: Layout) -> None:
    findings = doctor.examine(layout)
    assert {"processor", "memory", "kernel", "compiler", "userfaultfd", "builds"} <= set(
        _states(findings)
    )
    for one in findings:
        assert one.state in ("ok", "note", "missing")
        assert one.text
        assert one.state == "ok" or one.to_do, one
    # Looking leaves nothing behind.
    assert not layout.cache.exists()


def test_a_missing_package_is_named_with_its_command(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    absent = [Need("libfoo-dev", "h:foo.h", "QEMU: foo"), Need("bar", "bar", "barring")]
    absent.append(Need("libbaz-dev", "h:baz.h", "optional: -baz"))
    monkeypatch.setattr(toolchain, "missing", lambda _: absent)
    found = [one for one in doctor.tools(layout) if one.name == "packages"]
    assert [(one.state, one.to_do) for one in found] == [
        ("missing", "apt-get install libfoo-dev bar"),
        ("note", "apt-get install libbaz-dev"),
    ]
    assert "libfoo-dev (QEMU: foo)" in found[0].text


def test_what_is_missing_is_found_by_trying(monkeypatch: pytest.MonkeyPatch) -> None:
    needs = (
        Need("no-such-package-1", "sh", "there, if not as a package"),
        Need("no-such-package-2", "no-such-program", "not there"),
        Need("no-such-package-3", "h:no/such.h", "not there"),
        Need("no-such-package-4", "h:stdio.h", "there"),
        Need("no-such-package-5", "pc:no-such-module", "not there"),
    )
    names = [need.package[-1] for need in toolchain.missing(needs)]
    assert names == ["2", "3", "5"]
    real = shutil.which
    monkeypatch.setattr(shutil, "which", lambda name: None if name == "dpkg-query" else real(name))
    assert [need.package[-1] for need in toolchain.missing(needs)] == ["2", "3", "5"]


def test_no_compiler_means_that_no_upgrade_can_be_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], layout: Layout
) -> None:
    monkeypatch.setattr(Layout, "default", classmethod(lambda _: layout))
    monkeypatch.setenv("CC", "no-such-compiler")
    assert doctor.run(argparse.Namespace(json=True)) == 3
    report = json.loads(capsys.readouterr().out)
    assert report["able"] is False
    found = next(one for one in report["findings"] if one["name"] == "compiler")
    assert found["state"] == "missing"
    assert "apt-get install gcc" in found["to_do"]
    assert doctor.run(argparse.Namespace(json=False)) == 3
    assert "an upgrade cannot be run here yet" in capsys.readouterr().out


def test_only_what_is_missing_keeps_an_upgrade_from_running(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    findings = [Finding("a", "ok", "x"), Finding("b", "note", "x", "y")]
    monkeypatch.setattr(doctor, "examine", lambda _: findings)
    assert doctor.run(argparse.Namespace(json=True)) == 0
    findings.append(Finding("c", "missing", "x", "y"))
    assert doctor.run(argparse.Namespace(json=True)) == 3
    capsys.readouterr()


@pytest.mark.parametrize(
    ("fault", "states"),
    [
        (UserFault("userfaultfd(2)", True, ""), ("ok", "ok")),
        (UserFault("/dev/userfaultfd", False, "no UFFDIO_MOVE"), ("ok", "note")),
        (UserFault("", False, "Operation not permitted"), ("note", "note")),
    ],
)
def test_userfaultfd(
    monkeypatch: pytest.MonkeyPatch, layout: Layout, fault: UserFault, states: tuple[str, str]
) -> None:
    monkeypatch.setattr(userfault, "probe", lambda: fault)
    found = _states(doctor.memory_features(layout))
    assert (found["userfaultfd"], found["UFFDIO_MOVE"]) == states


def test_userfaultfd_is_really_tried() -> None:
    found = userfault.probe()
    assert found.moves or found.why_not
    assert found.opened_by or not found.moves


def test_little_memory_and_no_disk(monkeypatch: pytest.MonkeyPatch, layout: Layout) -> None:
    monkeypatch.setattr(facts, "memory_bytes", lambda *_: 1 << 30)
    usage = shutil.disk_usage("/")._replace(free=1 << 30)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    found = _states(doctor.machine(layout))
    assert (found["memory"], found["disk"]) == ("note", "missing")


def test_a_part_that_fails_is_a_finding(monkeypatch: pytest.MonkeyPatch, layout: Layout) -> None:
    def fails(_: Layout) -> Iterator[Finding]:
        yield Finding("first", "ok", "x")
        raise CannotTellError("cannot be tried", hint="do this")

    monkeypatch.setattr(doctor, "_PARTS", (fails,))
    found = doctor.examine(layout)
    assert found[-1] == Finding("fails", "missing", "cannot be tried", "do this")


def test_accelerators_wait_for_a_build(layout: Layout) -> None:
    (found,) = doctor.accelerators(layout)
    assert (found.state, found.text) == ("note", "not tried: no build yet")
    assert build.existing(layout) == []


def test_guests_that_take_a_download_are_not_tried(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(CHECKOUT / "guests", layout.checkout / "guests")
    image = SimpleNamespace(kernel=Path("k"), initrd=None, append="")
    made: list[str] = []

    def make(name: str, _layout: Layout) -> SimpleNamespace:
        made.append(name)
        return image

    monkeypatch.setattr(
        build, "existing", lambda _layout: [SimpleNamespace(qemu=Path("q"), architecture="x86_64")]
    )
    monkeypatch.setattr(firmware, "prepare", lambda _layout: Path("f"))
    monkeypatch.setattr(images, "build", make)
    monkeypatch.setattr(
        accel, "probe", lambda _layout, kind, _machine: AccelReport(kind, kind == "tcg", "no")
    )
    states = _states(doctor.accelerators(layout))
    assert made == ["tiny", "micro"]
    assert states == {
        "kvm, tiny": "note",
        "tcg, tiny": "ok",
        "kvm, micro": "note",
        "tcg, micro": "ok",
    }


def test_the_table_is_complete_at_any_width() -> None:
    out = io.StringIO()
    finding = Finding("packages", "missing", "[bold]markup is text[/]", "apt-get install gcc")
    doctor.show([finding], able=False, console=Console(file=out, width=60))
    text = " ".join(out.getvalue().split())
    for words in ("packages", "missing", "[bold]markup is text[/]", "apt-get install gcc"):
        assert words in text


def test_the_list_of_packages_is_well_formed() -> None:
    needs = toolchain.needs()
    assert len({need.package for need in needs}) == len(needs) > 15
    assert {"gcc", "libglib2.0-dev", "git", "patch"} <= {need.package for need in needs}
    text = (CHECKOUT / "packages.txt").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert len(lines) == len(needs)


def test_what_a_flavour_takes_is_an_optional_library_of_the_list() -> None:
    listed = {need.package: need for need in toolchain.needs()}
    flavours = load_releases(CHECKOUT / "patches" / "releases.toml").flavours
    named = {
        package for one in flavours.values() for its in one.libraries.values() for package in its
    }
    optional = {package for package, need in listed.items() if need.is_optional}
    assert named == {package for package in optional if listed[package].is_library}
