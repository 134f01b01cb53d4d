# SPDX-License-Identifier: GPL-2.0-or-later
"""The compiler and the libraries that a build takes from the machine."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
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

    @property
    def is_optional(self) -> bool:
        """Whether it is for a feature of QEMU that can be left out."""
        return self.why.startswith("optional:")

    @property
    def works(self) -> bool:
        """Whether its check says that it is here."""
        if self.check == "-":
            return True
        kind, _, rest = self.check.rpartition(":")
        try:
            if kind == "pc":
                return process.run(["pkg-config", "--exists", rest], check=False).returncode == 0
            if kind == "h":
                source = f"#include <{rest}>\n"
                return process.run(["gcc", "-E", "-"], check=False, stdin=source).returncode == 0
        except CannotTellError:
            return False
        return shutil.which(self.check) is not None


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


def missing(wanted: Sequence[Need]) -> list[Need]:
    """Return those of `wanted` that the machine has not."""
    if not shutil.which("dpkg-query"):
        return [need for need in wanted if not need.works]
    argv = ["dpkg-query", "-W", "-f", "${db:Status-Status} ${Package}\n"]
    said = process.run([*argv, *(need.package for need in wanted)], check=False).stdout
    there = set(said.splitlines())
    # What is not a package here may be there all the same (a compiler of one's own).
    return [
        need
        for need in wanted
        if f"installed {need.package}" not in there and (need.check == "-" or not need.works)
    ]


def left_out(libraries: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Return which of these features of QEMU cannot be built, with the packages they lack."""
    wanted = {package for packages in libraries.values() for package in packages}
    known = {need.package for need in needs()}
    absent = {need.package for need in missing([one for one in needs() if one.package in wanted])}
    # A package that packages.txt does not list cannot be looked for: it counts as missing.
    absent |= wanted - known
    lacking = {name: [one for one in its if one in absent] for name, its in libraries.items()}
    return {name: its for name, its in lacking.items() if its}


def find(packages: Iterable[str] = ()) -> Toolchain:
    """Return the compiler to use, with the optional `packages` that a build takes as well.

    Raises CannotTellError, before anything starts, without a compiler.
    """
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
        *_libraries(frozenset(packages)),
    )
    return Toolchain(f"{ccache}{compiler}", identity)


def _libraries(optional: frozenset[str]) -> tuple[str, ...]:
    """Return the versions of the development packages, as exactly as the machine knows them."""
    libraries = [
        need
        for need in needs()
        if need.is_library and (need.why.startswith("QEMU") or need.package in optional)
    ]
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
