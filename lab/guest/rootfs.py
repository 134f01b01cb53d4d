# SPDX-License-Identifier: GPL-2.0-or-later
"""The disk of a guest that has one: Debian packages put together, by an ordinary user too.

The work is done by the guest's own script ``assemble``, as root of a mount namespace, which for an
ordinary user is in a user namespace (user_namespaces(7), subuid(5)).  Nothing of it can outlive the
lab: what it makes besides the disk lies in memory that goes with the namespace.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from pydantic import Field

from lab.base.deadline import Deadline
from lab.base.errors import PreconditionError
from lab.base.layout import socket_directory
from lab.base.process import run
from lab.base.progress import step
from lab.host import facts
from lab.pair import toolchain
from lab.source import fetch
from lab.source.releases import Strict, Word

#: Where mke2fs is, which an ordinary user's PATH leaves out.
_SBIN = "/usr/sbin:/sbin"
_ASSEMBLE_S = 1800.0


class System(Strict):
    """What the disk has on it: `packages` and what they need, everything dated `epoch`."""

    packages: tuple[Word, ...]
    #: Size of the file system (MiB).
    size_mib: int = Field(gt=0)
    #: Seconds since 1970; the same packages give the same disk to the bit.
    epoch: int = Field(gt=0)


def require(source: Path) -> None:
    """Raise PreconditionError unless this machine has what the guest in `source` is made with."""
    text = (source / "packages.txt").read_text(encoding="utf-8")
    path = f"{os.environ.get('PATH', os.defpath)}:{_SBIN}"
    missing = [
        need.package
        for need in toolchain.parse_needs(text)
        if shutil.which(need.check, path=path) is None
    ]
    if missing:
        raise PreconditionError(
            f"guest {source.name} cannot be made here without {', '.join(missing)}",
            hint=f"apt-get install {' '.join(missing)}",
        )


def versions(debs: Mapping[str, Path]) -> dict[str, str]:
    """Return the packages' versions, as their files are named."""
    return {name: deb.name.split("_")[1].replace("%3a", ":") for name, deb in debs.items()}


def tools() -> list[str]:
    """Return what identifies the programs that the disk depends on."""
    environment = {"PATH": f"{os.environ.get('PATH', os.defpath)}:{_SBIN}"}
    commands = (["mmdebstrap", "--version"], ["mke2fs", "-V"])
    return [run(argv, env=environment).stdout.splitlines()[0] for argv in commands]


def build(
    source: Path, system: System, suite: str, debs: Mapping[str, Path], agent: Path, disk: Path
) -> None:
    """Make the file `disk` (qcow2) from all the packages `debs`, our `agent` and `source`.

    Raises PreconditionError without the memory, or the right to be root of a namespace.
    """
    # What is unpacked takes as much again in the page cache, which the kernel takes back.
    facts.require_memory(system.size_mib * 2**20, f"putting guest {source.name} together")
    with socket_directory(roomy=True) as work, step(f"putting together {len(debs)} packages"):
        (work / "names").write_text(",".join(sorted(debs)), encoding="ascii")
        shutil.copyfile(agent, work / "agent")
        _repository(work / "repo", suite, debs)
        script = [source / "assemble", work, suite, str(system.epoch), str(system.size_mib)]
        run(
            [*_as_root(), *map(str, script)],
            deadline=Deadline.after(_ASSEMBLE_S, "the guest's packages are put together"),
            hint="who may not make user namespaces needs an entry in /etc/subuid and /etc/subgid, "
            "or to be root",
        )
        run(["qemu-img", "convert", "-O", "qcow2", work / "disk.raw", disk])


def _as_root() -> list[str]:
    """Return what makes a command run as root, in namespaces that end with it."""
    ours = [] if os.geteuid() == 0 else ["--map-root-user", "--map-auto"]
    return ["unshare", *ours, "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]


def _repository(directory: Path, suite: str, debs: Mapping[str, Path]) -> None:
    """Copy the packages to where apt can take them from, with an index (deb822(5)).

    The suite's name is in it because mmdebstrap asks for what is essential in that suite.
    """
    directory.mkdir()
    entries = []
    for deb in debs.values():
        copy = directory / deb.name
        shutil.copyfile(deb, copy)
        control = run(["dpkg-deb", "--field", copy]).stdout.rstrip("\n")
        size, sha256 = copy.stat().st_size, fetch.sha256_of(copy)
        entries.append(f"{control}\nFilename: ./{deb.name}\nSize: {size}\nSHA256: {sha256}\n")
    index = directory / "Packages"
    index.write_text("\n".join(entries), encoding="utf-8")
    (directory / "Release").write_text(
        f"Suite: {suite}\nCodename: {suite}\nArchitectures: amd64\n"
        f"SHA256:\n {fetch.sha256_of(index)} {index.stat().st_size} Packages\n",
        encoding="utf-8",
    )
