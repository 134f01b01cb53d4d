# SPDX-License-Identifier: GPL-2.0-or-later
"""Debian packages, fetched as an ordinary user through a private apt root.

The root has its own lists, cache and sources file.  From the machine's apt it takes the mirror and
how to reach it (proxies, certificates), and it changes nothing there.  What apt hands over is
verified by its signed chain: the keyring signs the suite, the suite hashes its lists, they hash the
packages.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import urlsplit

from lab.base import process
from lab.base.deadline import Deadline
from lab.base.errors import CannotTellError
from lab.base.files import write_whole
from lab.base.layout import Layout, locked
from lab.base.progress import step
from lab.source import fetch
from lab.source.releases import DebianSource, PinnedFile

#: Where the small guests' and the firmware's packages come from.
SUITE = "trixie"
#: Every suite that binary packages are taken from; its lists are read at its first use.
SUITES = (SUITE, "bookworm")
#: Suites that only source packages are taken from.
_SOURCE_SUITES = ("sid",)
_KEYRINGS = (
    Path("/usr/share/keyrings/debian-archive-keyring.pgp"),
    Path("/usr/share/keyrings/debian-archive-keyring.gpg"),
)
_LISTS_GOOD_FOR_S = 24 * 3600
_UPDATE_S = 600.0
_FETCH_S = 1800.0
_OTHER_SITE = "set PAGEFLIP_MIRROR to the base address of a Debian mirror"
_OFFLINE = (
    "check the network; without one, put the source files into a directory and name it in "
    "PAGEFLIP_SOURCES"
)
#: apt reads its lists again for each call: not one for each of two hundred packages.
_BATCH = 20
_PLANNED = re.compile(r"^'[^']+' (?P<package>[a-z0-9][a-z0-9.+-]+)_\S+\.deb \d+ ", re.MULTILINE)
_URI_LINE = re.compile(r"^'(?P<uri>[^']+)' (?P<file>\S+) (?P<size>\d+) SHA256:(?P<sha256>\w{64})$")


@dataclass(frozen=True)
class Package:
    """A binary package: ``name`` is the package's, ``file`` the .deb's, ``size`` in bytes."""

    package: str
    version: str
    file: str
    size: int
    sha256: str

    @property
    def name(self) -> str:
        """The name of the file, as lab.source.fetch wants it."""
        return self.file


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
        hint=_OTHER_SITE,
    ).stdout
    found = pick_mirror(listed, host_release())
    if found is None:
        raise CannotTellError("this machine's apt names no Debian mirror", hint=_OTHER_SITE)
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


def sources_text(uri: str, keyring: Path, suite: str = SUITE) -> str:
    """Return the private sources file, in deb822 form."""
    common = (
        f"URIs: {uri}\nComponents: main\nSigned-By: {keyring}\n"
        "Languages: none\nTargets: Packages Sources\n"
    )
    # A mirror that lags serves a sid whose lists have expired.  What is taken from there is pinned
    # by SHA-256, so that an old list can offer nothing but the same files, or none.
    if suite != SUITE:
        return f"Types: deb\nSuites: {suite}\n{common}"
    return (
        f"Types: deb deb-src\nSuites: {SUITE}\n{common}\n"
        f"Types: deb-src\nSuites: {' '.join(_SOURCE_SUITES)}\nCheck-Valid-Until: no\n{common}"
    )


class AptRoot:
    """The private apt root of one layout.  Used with the layout's apt lock held.

    Another suite than the usual one has a root of its own below: apt would mix them.
    """

    def __init__(self, layout: Layout, suite: str = SUITE) -> None:
        self.suite = suite
        self.root = layout.apt if suite == SUITE else layout.apt / suite
        self.sources = self.root / "pageflip.sources"
        self.settings = self.root / "apt.conf"
        self._updated = self.root / "updated"

    def _environment(self) -> dict[str, str]:
        return {
            "APT_CONFIG": str(self.settings),
            "LC_ALL": "C",
            "DEBIAN_FRONTEND": "noninteractive",
        }

    def _configure(self) -> None:
        """Write our settings: the machine's ways to reach a mirror, and directories of our own.

        The machine's other settings are not read: pins would change what is taken, and hooks
        (which clean the system's cache, or need root) would run.
        """
        for name in ("lists/partial", "cache/archives/partial", "etc"):
            (self.root / name).mkdir(parents=True, exist_ok=True)
        (self.root / "status").touch()
        dump = process.run(["apt-config", "dump"]).stdout
        keep = [line for line in dump.splitlines() if line.startswith("Acquire::")]
        own = {
            "APT::Architecture": "amd64",
            "APT::Sandbox::User": "",
            "Acquire::Retries": "3",
            "Dir::Cache": self.root / "cache",
            "Dir::Etc": self.root / "etc",
            "Dir::Etc::main": "/dev/null",
            "Dir::Etc::netrc": "/etc/apt/auth.conf",
            "Dir::Etc::netrcparts": "/etc/apt/auth.conf.d",
            "Dir::Etc::parts": "/dev/null",
            "Dir::Etc::sourcelist": self.sources,
            "Dir::Etc::sourceparts": "/dev/null",
            "Dir::State": self.root,
            "Dir::State::lists": self.root / "lists",
            "Dir::State::status": self.root / "status",
        }
        lines = [*keep, "#clear APT::Architectures;", *(f'{key} "{own[key]}";' for key in own)]
        self.settings.write_text("\n".join(lines) + "\n", encoding="utf-8")

    def run(self, argv: Sequence[str], what: str, cwd: Path, limit_s: float) -> str:
        """Run an apt command in here, and return what it printed."""
        try:
            return process.run(
                argv,
                cwd=cwd,
                env=self._environment(),
                deadline=Deadline.after(limit_s, what),
                log=self.root / "apt.log",
            ).stdout
        except process.CommandError as error:
            raise CannotTellError(
                f"{what}: {reason(error.output) or error}", hint=_OFFLINE
            ) from error

    def update(self) -> None:
        """Read the mirror's lists, unless they are of today and of the same mirror."""
        keyring = next((path for path in _KEYRINGS if path.is_file()), None)
        if keyring is None:
            raise CannotTellError(
                "the Debian archive's keys are not on this machine, so its packages cannot be "
                "verified",
                hint="apt-get install debian-archive-keyring",
            )
        uri = mirror()
        text = sources_text(uri, keyring, self.suite)
        try:
            age = time.time() - self._updated.stat().st_mtime
            fresh = age < _LISTS_GOOD_FOR_S and self._updated.read_text(encoding="utf-8") == text
        except OSError:
            fresh = False
        if fresh:
            return
        self._updated.unlink(missing_ok=True)
        self._configure()
        self.sources.write_text(text, encoding="utf-8")
        with step(f"reading the package lists of {urlsplit(uri).hostname or uri}"):
            # Without this option apt takes a list it could not fetch for a warning, and exits 0.
            argv = ["apt-get", "update", "-q", "-o", "APT::Update::Error-Mode=any"]
            self.run(argv, f"the mirror {uri}", self.root, _UPDATE_S)
        self._updated.write_text(text, encoding="utf-8")


def reason(output: str) -> str:
    """Return what apt gives as the reason, out of all that it printed."""
    said = [line[3:].strip() for line in output.splitlines() if line.startswith(("E: ", "W: "))]
    return "; ".join(dict.fromkeys(said))


def fetch_source(layout: Layout, source: DebianSource, into: Path) -> dict[str, Path]:
    """Download a source package into the directory `into`; return its files by their names.

    apt has checked them against the signed lists; the caller checks them against what was pinned.
    Raises CannotTellError when the mirror has not got this version any more.
    """
    with locked(layout.apt / "apt", "waiting for another run that is using the package lists"):
        root = AptRoot(layout)
        root.update()
        what = f"the source package {source.package} {source.version}"
        with step(f"downloading {what}"):
            # -q=1 rather than -qq, which would mean --yes to anything that apt might ask.
            argv = ["apt-get", "source", "-q", "--download-only", "--only-source"]
            root.run([*argv, f"{source.package}={source.version}"], what, into, _FETCH_S)
    return {path.name: path for path in into.iterdir() if path.is_file()}


def fetch_packages(layout: Layout, suite: str, names: Iterable[str]) -> dict[str, Path]:
    """Return the .deb files of binary packages, by the packages' names.

    The newest in `suite` when they are first asked for; afterwards the same ones, from the cache
    and without a network.  Raises CannotTellError when one cannot be had.
    """
    return {name: fetch.kept(layout, one) for name, one in packages(layout, suite, names).items()}


def packages(layout: Layout, suite: str, names: Iterable[str]) -> dict[str, Package]:
    """As fetch_packages, and return what is known of each (version, SHA-256)."""
    wanted = list(dict.fromkeys(names))
    if suite not in SUITES:
        raise CannotTellError(f"packages are taken from {', '.join(SUITES)}, not from {suite}")
    index = layout.apt / f"packages-{suite}.json"
    found = _known(layout, index, wanted)
    if len(found) == len(wanted):
        return found
    with locked(layout.apt / "apt", "waiting for another run that is fetching packages"):
        found = _known(layout, index, wanted)
        missing = [name for name in wanted if name not in found]
        if missing:
            found |= _fetch_missing(layout, suite, missing)
            _remember(index, found)
    return {name: found[name] for name in wanted}


def _known(layout: Layout, index: Path, wanted: Sequence[str]) -> dict[str, Package]:
    """Return those of the wanted packages that are in the cache and verify."""
    entries = _read_index(index)
    known = {name: entries[name] for name in wanted if name in entries}
    return {name: one for name, one in known.items() if fetch.from_cache(layout, one)}


def _read_index(index: Path) -> dict[str, Package]:
    try:
        data = json.loads(index.read_text(encoding="utf-8"))
        return {name: Package(**entry) for name, entry in data.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}  # a lost index costs a look at the mirror, no more


def _remember(index: Path, found: dict[str, Package]) -> None:
    entries = _read_index(index) | found
    kept = {name: asdict(one) for name, one in sorted(entries.items())}
    write_whole(index, json.dumps(kept, indent=2) + "\n")


def parse_uris(text: str) -> list[Package]:
    """Return what ``apt-get download --print-uris`` lists; lines that are not URIs are not read."""
    found = []
    for line in text.splitlines():
        match = _URI_LINE.match(line)
        if match is None:
            continue
        parts = match["file"].removesuffix(".deb").split("_")
        if len(parts) != 3:
            continue
        version = parts[1].replace("%3a", ":")
        found.append(Package(parts[0], version, match["file"], int(match["size"]), match["sha256"]))
    return found


def closure(layout: Layout, suite: str, names: Iterable[str]) -> list[str]:
    """Return all that a system of `names` consists of: they, what they need, what is essential.

    Resolved by apt when first asked for; afterwards the same ones, from the cache.
    """
    wanted = sorted(set(names))
    index = layout.apt / f"closure-{suite}.json"
    with locked(layout.apt / "apt", "waiting for another run that is fetching packages"):
        try:
            known: dict[str, list[str]] = json.loads(index.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            known = {}
        key = " ".join(wanted)
        if key not in known:
            root = AptRoot(layout, suite)
            root.update()
            argv = ["apt-get", "install", "-q", "--no-install-recommends", "--print-uris", "--yes"]
            what = f"what {', '.join(wanted)} of {suite} need"
            listed = root.run([*argv, "?essential", *wanted], what, root.root, _UPDATE_S)
            known[key] = sorted({name["package"] for name in _PLANNED.finditer(listed)})
            write_whole(index, json.dumps(known, indent=2) + "\n")
    return known[key]


def _fetch_missing(layout: Layout, suite: str, names: Sequence[str]) -> dict[str, Package]:
    root = AptRoot(layout, suite)
    root.update()
    what = f"the packages {', '.join(names)}"
    with fetch.scratch(layout.downloads / "debs") as directory:
        argv = ["apt-get", "download", "-q"]
        listed = root.run([*argv, "--print-uris", *names], what, directory, _UPDATE_S)
        found = {one.package: one for one in parse_uris(listed)}
        absent = [name for name in names if name not in found]
        if absent:
            raise CannotTellError(f"{suite} has no package {', '.join(absent)}", hint=_OTHER_SITE)
        megabytes = sum(one.size for one in found.values()) // 10**6
        with step(f"downloading {_few(list(found))} ({megabytes} MB)") as tick:
            for start in range(0, len(names), _BATCH):
                batch = list(found.values())[start : start + _BATCH]
                exactly = [f"{one.package}={one.version}" for one in batch]
                root.run([*argv, *exactly], f"the packages {_few(exactly)}", directory, _FETCH_S)
                for one in batch:
                    fetch.keep(layout, directory / one.file, one)
                tick(start + len(batch), len(names))
    return found


def _few(names: Sequence[str]) -> str:
    return f"{len(names)} packages" if len(names) > 4 else ", ".join(names)


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


def fetch_from_snapshot(layout: Layout, file: PinnedFile, base: str) -> Path:
    """Fetch one file from the snapshot archive, which keeps them by their SHA-1."""
    return fetch.download(layout, f"{base}/file/{file.sha1}", file, file.size)
