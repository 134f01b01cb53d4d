# SPDX-License-Identifier: GPL-2.0-or-later
"""The verb `build`: build QEMUs and guests before they are needed."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from lab.base.errors import ExitCode, UsageError
from lab.base.layout import Layout
from lab.guest import images
from lab.pair import build, packaged
from lab.source import naming
from lab.source.releases import X86_64


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument(
        "what",
        nargs="*",
        metavar="WHAT",
        default=["all"],
        help="old, new, a release (./pageflip releases), stock:RELEASE, RELEASE+DIR (the series in "
        "DIR on top), FLAVOUR:RELEASE, debian:SUITE, guest-NAME, guests, all (the default); a "
        "guest with a disk, or of another architecture, only by its name",
    )
    parser.add_argument(
        "--guest",
        metavar="NAME",
        default="tiny",
        help="QEMUs are built for this one: of its architecture (default: tiny)",
    )
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="also put links to what was built there"
    )


def run(options: argparse.Namespace) -> int:
    """Carry out the verb: build, and print where it is."""
    layout = Layout.default()
    guests, plain = images.load_guests(layout), [f"guest-{name}" for name in images.plain(layout)]
    architecture = images.named(layout, options.guest).architecture
    other = f"-{architecture}" if architecture != X86_64 else ""
    if other:
        plain = [f"guest-{options.guest}"]
    several = {"all": ["old", "new", *plain], "guests": plain}
    for what in dict.fromkeys(one for it in options.what for one in several.get(it, [it])):
        if (name := what.removeprefix("guest-")) != what and name in guests:
            _show(what, vars(images.build(name, layout)), options.output)
        else:
            asked = naming.packaged(layout, what)
            made: packaged.Unpacked | build.Built
            if asked:
                made = packaged.prepare(layout, asked, architecture)
            else:
                made = build.by_name(layout, what, architecture)
            _show(f"qemu-{what.replace('/', '-')}{other}", vars(made), options.output)
    return ExitCode.PASS


def _show(name: str, record: dict[str, object], output: Path | None) -> None:
    """Print the paths, and link to them from `output`, with the record beside."""
    paths = {name: path for name, path in record.items() if isinstance(path, Path)}
    for part, path in paths.items():
        sys.stdout.write(f"{name} {part} {path}\n")
    if output is None:
        return
    try:
        (output / name).mkdir(parents=True, exist_ok=True)
        for path in paths.values():
            link = output / name / path.name
            link.unlink(missing_ok=True)
            link.symlink_to(path)
        text = json.dumps(record, indent=2, default=str) + "\n"
        (output / f"{name}.json").write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot write to {output}: {error.strerror}", "name another") from error
