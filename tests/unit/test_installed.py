# SPDX-License-Identifier: GPL-2.0-or-later
"""What is installed finds what it needs beside the modules."""

from __future__ import annotations

import tomllib
from pathlib import Path

from lab.base import layout
from lab.base.layout import CHECKOUT


def test_the_data_is_where_it_is_looked_for(tmp_path: Path) -> None:
    package = tmp_path / "lab"
    package.mkdir()
    assert layout._root(package) == package / "data"
    (tmp_path / "patches").mkdir()
    assert layout._root(package) == tmp_path


def test_the_wheel_has_it_all() -> None:
    told = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())
    wheel = told["tool"]["hatch"]["build"]["targets"]["wheel"]
    for source, place in wheel["force-include"].items():
        assert (CHECKOUT / source).exists()
        assert place == f"lab/data/{source}"
    assert {"patches", "guests", "transplant", "packages.txt"} == wheel["force-include"].keys()
