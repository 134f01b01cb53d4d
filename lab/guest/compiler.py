# SPDX-License-Identifier: GPL-2.0-or-later
"""How what runs in guests is compiled: the agent, and payloads that need no operating system."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

from lab.base.errors import CannotTellError, PreconditionError
from lab.base.files import sha256_of
from lab.base.process import run
from lab.source.releases import X86_64

#: The agent's sources must compile with these without a word.
WARNINGS = ("-Wall", "-Wextra")
CFLAGS = ("-std=gnu11", "-O2", "-pthread", "-static", "-s", "-Wl,--build-id=none")
#: A payload has no C library, and some of its code runs where nothing saves SSE registers.
PAYLOAD_CFLAGS = (
    *("-std=gnu11", "-O2", "-ffreestanding", "-nostdlib", "-static", "-fno-pie", "-no-pie"),
    *("-mgeneral-regs-only", "-mno-red-zone", "-fno-stack-protector", "-fcf-protection=none"),
    *("-Wl,--build-id=none", "-Wl,-z,noexecstack", "-Wl,-z,max-page-size=4096"),
    "-Wl,--no-warn-rwx-segments",
)
#: QEMU's multiboot loader wants a 32-bit file, even for 64-bit code.
_PAYLOAD_FORMAT = "elf32-i386"
_STATIC_LIBRARIES = ("libc.a", "libjansson.a")


def of(architecture: str) -> str:
    """Return the compiler for guests of `architecture`; raise PreconditionError without one."""
    if architecture == X86_64:
        return "cc"
    found = f"{architecture}-linux-gnu-gcc"
    if shutil.which(found) is None:
        raise PreconditionError(
            f"there is no compiler for guests of {architecture} ({found})",
            hint=f"apt-get install gcc-{architecture}-linux-gnu",
        )
    return found


def sysroot(architecture: str, root: Path) -> list[str]:
    """Return the options by which the compiler takes headers and libraries below `root` only.

    With --sysroot alone it looks first where Debian's own libraries for that compiler are.
    """
    triplet = f"{architecture}-linux-gnu"
    libraries, headers = root / "usr" / "lib" / triplet, root / "usr" / "include"
    return [
        f"--sysroot={root}",
        *("-isystem", str(headers / triplet), "-isystem", str(headers)),
        *(f"-B{libraries}", f"-L{libraries}"),
    ]


def version(compiler: str) -> str:
    """Return what `compiler` says of itself."""
    return run([compiler, "--version"]).stdout.splitlines()[0]


def compile_agent(
    source: Path, target: Path, *, compiler: str = "cc", extra: Iterable[str] = ()
) -> None:
    """Link the in-guest agent statically from the directory `source` into the file `target`."""
    sources = sorted(path.name for path in source.glob("*.c"))
    # Relative names: no path of this machine gets into the file.
    run(
        [compiler, *CFLAGS, *WARNINGS, *extra, *sources, "-ljansson", "-o", target],
        cwd=source,
        hint="the agent needs the packages gcc, libc6-dev and libjansson-dev",
    )


def compile_payload(source: Path, target: Path, shared: Iterable[str]) -> None:
    """Link the payload in the directory `source`, and what it shares, into the file `target`."""
    own = sorted(path.name for pattern in ("*.S", "*.c") for path in source.glob(pattern))
    theirs = [f"../{name}" for name in shared]
    include = sorted({f"-I{Path(name).parent}" for name in theirs})
    hint = "a payload needs the packages gcc, binutils and libc6-dev"
    options = [*PAYLOAD_CFLAGS, *WARNINGS, *include, "-Wl,-T,link.ld"]
    # Relative names: no path of this machine gets into the file.
    run(["cc", *options, *own, *theirs, "-o", target], cwd=source, hint=hint)
    run(["objcopy", "--strip-all", "-O", _PAYLOAD_FORMAT, target], hint=hint)


def static_libraries() -> dict[str, str]:
    """Return the SHA-256 of each static library that the agent is linked with, by name."""
    found = {
        name: Path(run(["cc", f"-print-file-name={name}"]).stdout.strip())
        for name in _STATIC_LIBRARIES
    }
    for name, path in found.items():
        if not path.is_absolute():
            raise CannotTellError(
                f"the compiler finds no {name}",
                hint="install the packages libc6-dev and libjansson-dev",
            )
    return {name: sha256_of(path) for name, path in found.items()}
