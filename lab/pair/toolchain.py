# SPDX-License-Identifier: GPL-2.0-or-later
"""The compiler and the libraries that a build takes from the machine."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from lab.base import process
from lab.base.errors import CannotTellError
from lab.base.layout import CHECKOUT


@dataclass(frozen=True)
class Need:
    """One line of ``packages.txt``: a Debian package, how to check for it elsewhere, and why."""

    package: str
    check: str
    why: str

    @property
    def is_library(self) -> bool:
        """Whether it is something to compile against."""
        return self.check.startswith(("pc:", "h:"))


@dataclass(frozen=True)
class Toolchain:
    """How to call the compiler, and what identifies all that affects the result."""

    command: str
    identity: tuple[str, ...]


def parse_needs(text: str) -> tuple[Need, ...]:
    """Read ``packages.txt``; comments and empty lines say nothing."""
    lines = (line.split("#", 1)[0].split(None, 2) for line in text.splitlines())
    return tuple(Need(*line) for line in lines if len(line) == 3)


def needs(checkout: Path = CHECKOUT) -> tuple[Need, ...]:
    """Return everything that pageflip needs from the machine."""
    return parse_needs((checkout / "packages.txt").read_text(encoding="utf-8"))


def find() -> Toolchain:
    """Return the compiler to use; raise CannotTellError, before anything starts, without one."""
    compiler = os.environ.get("CC") or "gcc"
    if shutil.which(compiler) is None:
        raise CannotTellError(
            f"there is no compiler: {compiler} is not on PATH",
            hint="apt-get install gcc libc6-dev (or ./pageflip doctor for all that is missing)",
        )
    version = process.run([compiler, "--version"]).stdout.partition("\n")[0]
    ccache = "ccache " if shutil.which("ccache") else ""
    identity = (
        compiler,
        version,
        f"meson {importlib.metadata.version('meson')}",
        f"PKG_CONFIG_PATH={os.environ.get('PKG_CONFIG_PATH', '')}",
        *_libraries(),
    )
    return Toolchain(f"{ccache}{compiler}", identity)


def _libraries() -> tuple[str, ...]:
    """Return the versions of the development packages, as exactly as the machine knows them."""
    libraries = [need for need in needs() if need.is_library and need.why.startswith("QEMU")]
    if shutil.which("dpkg-query"):
        names = [*(need.package for need in libraries), "binutils"]
        argv = ["dpkg-query", "-W", "-f", "${Package} ${Version} ${db:Status-Abbrev}\n", *names]
        said = process.run(argv, check=False).stdout
        return tuple(sorted(re.findall(r"^(\S+ \S+) ii ?$", said, re.MULTILINE)))
    modules = [need.check[3:] for need in libraries if need.check.startswith("pc:")]
    versions = [
        process.run(["pkg-config", "--modversion", one], check=False).stdout.strip()
        for one in modules
    ]
    return tuple(f"{one} {version}" for one, version in zip(modules, versions, strict=True))
