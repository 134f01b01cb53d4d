# SPDX-License-Identifier: GPL-2.0-or-later
"""Where Debian's archives are, as the machine's own apt knows it."""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import urlsplit

from lab.base import process
from lab.base.errors import CannotTellError

OTHER_SITE = "set PAGEFLIP_MIRROR to the base address of a Debian mirror"


def os_release(text: str) -> dict[str, str]:
    """Return the keys of an os-release(5) file."""
    pairs = (line.split("=", 1) for line in text.splitlines() if re.match(r"[A-Z0-9_]+=", line))
    return {key: value.strip().strip("\"'") for key, value in pairs}


def host_release() -> dict[str, str]:
    """Return what this machine says it is; empty when it says nothing."""
    try:
        return os_release(Path("/etc/os-release").read_text(encoding="utf-8"))
    except OSError:
        return {}


def mirror() -> str:
    """Return the base URI of the Debian mirror that this machine uses.

    Raises CannotTellError when the machine is not Debian's, or names no mirror.
    """
    if named := os.environ.get("PAGEFLIP_MIRROR"):
        return named
    listed = process.run(
        [
            "apt-get",
            "indextargets",
            "--format",
            "$(REPO_URI) $(RELEASE) $(COMPONENT) origin=$(ORIGIN)",
        ],
        hint=OTHER_SITE,
    ).stdout
    found = pick_mirror(listed, host_release())
    if found is None:
        raise CannotTellError("this machine's apt names no Debian mirror", hint=OTHER_SITE)
    return found


def pick_mirror(listed: str, host: dict[str, str]) -> str | None:
    """Return the first mirror of Debian's main archive in apt's list of index targets.

    Suites kept elsewhere (security) and other people's archives are left out.  Before the first
    `apt-get update` apt does not know whose an archive is: on Debian itself the release tells.
    """
    suites = {host.get("VERSION_CODENAME"), "stable", "testing", "unstable", "sid", "oldstable"}
    for line in listed.splitlines():
        words = line.split(" ", 3)
        if len(words) != 4 or words[0].startswith("cdrom:"):
            continue
        uri, suite, component, origin = words
        ours = origin == "origin=Debian"
        unknown = origin in ("origin=", "origin=$(ORIGIN)") and host.get("ID") == "debian"
        if component == "main" and suite in suites and (ours or unknown):
            return uri.rstrip("/")
    return None


def snapshot_base(host: dict[str, str] | None = None) -> str:
    """Return where Debian's archive of everything it ever shipped is.

    By the environment, else as apt knows it, else beside the home page in os-release.  Raises
    CannotTellError on a machine that does not tell.
    """
    if named := os.environ.get("PAGEFLIP_SNAPSHOT"):
        return named.rstrip("/")
    host = host_release() if host is None else host
    domain = (urlsplit(host.get("HOME_URL", "")).hostname or "").removeprefix("www.")
    if host.get("ID") != "debian" or not domain:
        raise CannotTellError(
            "this machine does not say where Debian's snapshot archive is",
            hint="set PAGEFLIP_SNAPSHOT to its base address",
        )
    return f"https://snapshot.{domain}"
