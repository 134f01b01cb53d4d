# SPDX-License-Identifier: GPL-2.0-or-later
"""A QEMU that "compiles" in milliseconds: a source package with two shell scripts in it.

What the fake build did is told by the file that FAKE_LOG names: one line for each thing done.
"""

from __future__ import annotations

import hashlib
import io
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab.base.layout import Layout
from lab.source.releases import BuildOptions, Release, Releases

VERSION = "9.9.9"
_CONFIGURE = r"""#!/bin/sh
echo configure >>"${FAKE_LOG:-/dev/null}"
echo "$@" >arguments
cat >build.ninja <<'END'
rule compile
  command = sh ../src/compile.sh $in $out
build qemu-system-x86_64: compile ../src/emulator.sh
build qemu-img: compile ../src/emulator.sh | qemu-system-x86_64
build tests/qtest/migration-test: compile ../src/emulator.sh
END
"""
_COMPILE = r"""#!/bin/sh
if [ -n "$FAKE_ERROR" ]; then
    echo "emulator.c:7:3: $FAKE_ERROR"
    exit 1
fi
if grep -q broken "$1"; then
    echo "emulator.c:3:1: error: broken"
    exit 1
fi
echo "$2" >>"${FAKE_LOG:-/dev/null}"
if [ -n "$FAKE_BLOCK" ] && [ "$2" = qemu-img ]; then
    echo $$ >"$FAKE_BLOCK"
    exec sleep 600
fi
cp "$1" "$2" && chmod +x "$2"
"""
_EMULATOR = f"""#!/bin/sh
# line two
# line three
# line four
# line five
# line six
# line seven
# line eight
echo "QEMU emulator version {VERSION}"
# line ten
# line eleven
"""
DEBIAN_PATCH = """--- a/emulator.sh
+++ b/emulator.sh
@@ -1,4 +1,4 @@
 #!/bin/sh
-# line two
+# line two, by Debian
 # line three
 # line four
"""
_CHANGELOG = f"""qemu (1:{VERSION}+ds-1) unstable; urgency=medium

  * New release.

 -- A <a@b>  Mon, 06 Jan 2025 10:00:00 +0100
"""
_CONTROL = """Source: qemu
Maintainer: A <a@b>
Standards-Version: 4.7.0

Package: qemu-system-x86
Architecture: all
Description: an emulator
"""
#: The least that debian/rules must do (Debian policy 4.9), without debhelper.
_RULES = r"""#!/usr/bin/make -f
build build-arch build-indep clean:
binary binary-arch binary-indep:
	mkdir -p debian/tmp/DEBIAN debian/tmp/usr/bin
	cp emulator.sh debian/tmp/usr/bin/qemu-system-x86_64
	cp docs/text debian/tmp/usr/text
	dpkg-gencontrol
	dpkg-deb --build --root-owner-group debian/tmp ..
"""
OPTIONS = BuildOptions(
    configure=("--fake",), targets=("qemu-system-x86_64", "qemu-img"), flavour="plain"
)


def tarball(path: Path, files: dict[str, str]) -> None:
    """Write a .tar.xz, the same bytes for the same files."""
    with tarfile.open(path, "w:xz") as archive:
        for name, text in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(text.encode())
            info.mode = 0o755
            archive.addfile(info, io.BytesIO(text.encode()))


@dataclass(frozen=True)
class FakeSource:
    """A release, and the directory that holds its files, as PAGEFLIP_SOURCES would name it."""

    directory: Path
    release: Release
    orig: Path
    packaging: Path


def pin(path: Path) -> dict[str, Any]:
    content = path.read_bytes()
    return {
        "name": path.name,
        "size": len(content),
        "sha1": hashlib.sha1(content).hexdigest(),
        "sha256": hashlib.sha256(content).hexdigest(),
    }


def release(**changes: Any) -> Release:
    """Return a release as ``releases.toml`` would give it."""
    entry = {"version": VERSION, "tag": f"v{VERSION}", **changes}
    return Releases.model_validate(
        {
            "roles": {"old": "9.8", "new": "9.9"},
            "flavours": {"plain": {}},
            "build": OPTIONS.model_dump(),
            "upstream": {"releases": "https://upstream.invalid"},
            "releases": {"9.9": entry, "9.8": {"version": "9.8.0", "tag": "v9.8.0"}},
        }
    ).new


def make(directory: Path, **changes: Any) -> FakeSource:
    """Write the files of a Debian source package and pin them."""
    directory.mkdir(parents=True)
    orig = directory / f"qemu_{VERSION}+ds.orig.tar.xz"
    packaging = directory / f"qemu_{VERSION}+ds-1.debian.tar.xz"
    dsc = directory / f"qemu_{VERSION}+ds-1.dsc"
    top = f"qemu-{VERSION}"
    tarball(
        orig,
        {
            f"{top}/configure": _CONFIGURE,
            f"{top}/compile.sh": _COMPILE,
            f"{top}/emulator.sh": _EMULATOR,
            f"{top}/docs/text": "".join(f"{number}\n" for number in range(40)),
        },
    )
    tarball(
        packaging,
        {
            "debian/patches/series": "one.patch  # theirs\n\n",
            "debian/patches/one.patch": DEBIAN_PATCH,
            "debian/source/format": "3.0 (quilt)\n",
            "debian/changelog": _CHANGELOG,
            "debian/control": _CONTROL,
            "debian/rules": _RULES,
        },
    )
    dsc.write_text("Format: 3.0 (quilt)\n")
    debian = {
        "package": "qemu",
        "version": f"1:{VERSION}+ds-1",
        "suite": "sid",
        "files": [pin(path) for path in (orig, packaging, dsc)],
    }
    return FakeSource(directory, release(debian=debian, **changes), orig, packaging)


def layout(directory: Path) -> Layout:
    """Return a layout all of which is below `directory`."""
    return Layout(directory / "checkout", directory / "cache", directory / "out")


def write_series(directory: Path, patches: dict[str, str]) -> Path:
    """Write a series, its patches in the order given."""
    directory.mkdir(parents=True)
    for name, text in patches.items():
        (directory / name).write_text(text)
    (directory / "series").write_text("".join(f"{name}\n" for name in patches))
    return directory


def hunk(file: str, start: int, before: list[str], old: str, new: str, after: list[str]) -> str:
    """Return a unified diff of one line in `file`."""
    count = len(before) + 1 + len(after)
    lines = [f" {line}" for line in before]
    lines += [f"-{old}", f"+{new}", *(f" {line}" for line in after)]
    body = "\n".join(lines)
    return f"--- a/{file}\n+++ b/{file}\n@@ -{start},{count} +{start},{count} @@\n{body}\n"


def change_text(number: int, start: int | None = None) -> str:
    """Return a patch of line `number` of docs/text, said to be at `start`."""
    around = range(number - 3, number + 4)
    return hunk(
        "docs/text",
        start or around[0] + 1,
        [str(one) for one in around[:3]],
        str(number),
        f"{number} changed",
        [str(one) for one in around[4:]],
    )


def mail(subject: str, body: str, diff: str) -> str:
    """Return a patch as `git format-patch` words it, but for what only git can know."""
    return (
        "From 0000000000000000000000000000000000000000 Mon Sep 17 00:00:00 2001\n"
        "From: A <a@b>\n"
        "Date: Mon, 6 Jan 2025 10:00:00 +0100\n"
        f"Subject: [PATCH] {subject}\n\n{body}\n---\n{diff}"
    )
