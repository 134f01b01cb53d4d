# SPDX-License-Identifier: GPL-2.0-or-later
"""What a QEMU is called."""

from __future__ import annotations

from pathlib import Path

import pytest

from lab.base.errors import UsageError
from lab.base.layout import CHECKOUT, Layout
from lab.source import naming
from lab.source.releases import X86_64

LAYOUT = Layout(CHECKOUT, CHECKOUT, CHECKOUT)


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("10.2", False),
        ("stock:old", False),
        ("10.2+tests/mutants", False),
        ("stock:10.2+/tmp/series", False),
        ("/usr/bin/qemu-system-x86_64", True),
        ("./qemu-10.0+deb13", True),
        ("../x+y/qemu", True),
    ],
)
def test_paths_are_told_from_what_is_built(name: str, path: bool) -> None:
    assert naming.is_path(name) is path


def test_a_release_comes_with_its_series_or_without() -> None:
    patched, stock = naming.named(LAYOUT, "new"), naming.named(LAYOUT, "stock:10.2.2")
    assert patched.release == stock.release
    assert patched.series.patches
    assert (stock.series.name, stock.series.patches) == ("stock", ())


@pytest.mark.parametrize(
    ("name", "slim"),
    [
        ("new", "slim:new"),
        ("stock:new+dir/x:y", "slim:stock:new+dir/x:y"),
        ("slim:new", "slim:new"),
        ("full:stock:new", "full:stock:new"),
        ("./a:b", "./a:b"),
    ],
)
def test_a_flavour_is_said_before_the_name(name: str, slim: str) -> None:
    assert naming.slim(name) == slim
    if not naming.is_path(name) and "+" not in name:
        made = naming.named(LAYOUT, slim)
        assert made.flavour == slim.partition(":")[0] == made.options(X86_64).flavour
        assert made.series == naming.named(LAYOUT, name).series
    assert naming.stock(slim) == naming.stock(naming.stock(slim))


def test_the_full_flavour_is_what_a_distribution_has() -> None:
    full, slim = (naming.named(LAYOUT, name).options(X86_64) for name in ("full:new", "slim:new"))
    assert full.flavour == "full"
    assert set(slim.configure) < set(full.configure)
    assert {"seccomp", "vnc", "spice", "gnutls", "libusb"} <= full.libraries.keys()
    assert not slim.libraries


@pytest.mark.parametrize("base", ["10.2", "stock:10.2"])
def test_another_series_goes_on_top(base: str, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "series").write_text("a.patch\n")
    (mine / "a.patch").write_text("--- a/x\n+++ b/x\n")
    below, both = naming.named(LAYOUT, base), naming.named(LAYOUT, f"{base}+{mine}")
    assert both.series.name == f"{below.series.name}+mine"
    assert both.series.patches == (*below.series.patches, mine / "a.patch")
    assert both.series.digest != below.series.digest


@pytest.mark.parametrize(
    "name",
    ["9.9", "stock:9.9", "", "stock:", "10.2+", "10.2+/nowhere", "fat:10.2", "slim:full:10.2"],
)
def test_what_is_not_there_is_wrong_usage(name: str) -> None:
    with pytest.raises(UsageError):
        naming.named(LAYOUT, name)


def test_the_architecture_is_said_beside_the_name() -> None:
    """The usual one as it always was: what is built for it keeps its key."""
    made = naming.named(LAYOUT, "new")
    for architecture in ("x86_64", "aarch64"):
        options = made.options(architecture)
        assert options.configure[0] == f"--target-list={architecture}-softmmu"
        assert options.targets == (f"qemu-system-{architecture}", "qemu-img")
        assert ("fdt=system" in options.needed) == (architecture == "aarch64")
    with pytest.raises(UsageError, match="no guest 'z80' is known"):
        made.options("z80")
