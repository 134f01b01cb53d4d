# SPDX-License-Identifier: GPL-2.0-or-later
"""The initramfs of a Linux guest: files, modules in their order, an archive that reproduces."""

from __future__ import annotations

import lzma
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

from lab.base.errors import CannotTellError
from lab.base.process import run


def put_files(unpacked: Path, root: Path, files: Mapping[str, str]) -> None:
    """Copy what `files` names, by its path in the guest, from the unpacked packages."""
    for target, source in files.items():
        (root / target).parent.mkdir(parents=True, exist_ok=True)
        try:
            shutil.copyfile(unpacked / source, root / target)
        except OSError as error:
            raise CannotTellError(f"the guest's packages have no {source}") from error


def put_modules(unpacked: Path, root: Path, wanted: Iterable[str]) -> None:
    """Put the modules into root/modules and their load order into root/modules/list.

    Uncompressed, for insmod.  A kernel package has no modules.dep, which is made when it is
    installed: the dependencies are read from the modules themselves.
    """
    tree = only(
        unpacked.glob("usr/lib/modules/*"),
        "directory of kernel modules",
        unpacked.glob("lib/modules/*"),
    )
    builtin = {
        _module_name(line)
        for line in (tree / "modules.builtin").read_text(encoding="utf-8").split()
    }
    available = {_module_name(path.name): path for path in tree.rglob("*.ko*")}
    order: list[str] = []

    def add(module: str) -> None:
        if module in builtin or module in order:
            return
        if module not in available:
            raise CannotTellError(f"the guest's kernel has no module {module}")
        content = _module_content(available[module])
        for needed in _module_depends(content):
            add(needed)
        (root / "modules" / f"{module}.ko").write_bytes(content)
        order.append(module)

    for module in wanted:
        add(module)
    (root / "modules" / "list").write_text(
        "".join(f"{module}.ko\n" for module in order), encoding="ascii"
    )


def _module_name(path: str) -> str:
    return Path(path).name.split(".")[0].replace("-", "_")


def _module_content(path: Path) -> bytes:
    match path.suffix:
        case ".ko":
            return path.read_bytes()
        case ".xz":
            return lzma.decompress(path.read_bytes())
        case suffix:
            raise CannotTellError(f"{path.name}: do not know how to unpack {suffix}")


def _module_depends(content: bytes) -> list[str]:
    """Return what a module needs, from the NUL-separated key=value strings of its .modinfo."""
    found = re.search(rb"\0depends=([^\0]*)\0", content)
    return (
        [_module_name(name) for name in found.group(1).decode().split(",") if name] if found else []
    )


def pack(root: Path, initrd: Path) -> None:
    """Write the tree as a cpio archive that depends on nothing but names and contents.

    Not compressed: under TCG unpacking costs more than QEMU's loading of the larger file.
    """
    names = sorted(str(path.relative_to(root)) for path in root.rglob("*"))
    for name in names:
        path = root / name
        executable = path.is_dir() or name == "init" or name.startswith("bin/")
        path.chmod(0o755 if executable else 0o644)
        os.utime(path, (0, 0))
    run(
        [
            "cpio",
            "--create",
            "--null",
            "--format=newc",
            "--reproducible",
            "--owner=+0:+0",
            "--quiet",
            "-O",
            initrd,
        ],
        cwd=root,
        stdin="\0".join(names) + "\0",
        hint="install the package cpio",
    )


def only(paths: Iterable[Path], what: str, otherwise: Iterable[Path] = ()) -> Path:
    """Return the one path there should be, or the one of `otherwise`."""
    found = list(paths) or list(otherwise)
    if len(found) != 1:
        raise CannotTellError(
            f"the guest's packages have {len(found)} of what should be one: {what}"
        )
    return found[0]
