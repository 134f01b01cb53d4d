# SPDX-License-Identifier: GPL-2.0-or-later
"""Debian packages, fetched as an ordinary user through a private apt root.

The root has its own lists, cache and sources file.  From the machine's apt it takes the mirror and
how to reach it (proxies, certificates), and it changes nothing there.  What apt hands over is
verified by its signed chain: the keyring signs the suite, the suite hashes its lists, they hash the
packages.
"""

from __future__ import annotations

import json
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
from lab.source.mirror import OTHER_SITE, mirror
from lab.source.releases import DebianSource, PinnedFile

#: Where the small guests' and the firmware's packages come from.
SUITE = "trixie"
#: What Debian calls the architectures of guests; the lab's own machine is the first.
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
_OURS = "amd64"
#: Suites that only source packages are taken from.
_SOURCE_SUITES = ("sid",)
_KEYRINGS = (
    Path("/usr/share/keyrings/debian-archive-keyring.pgp"),
    Path("/usr/share/keyrings/debian-archive-keyring.gpg"),
)
_LISTS_GOOD_FOR_S = 24 * 3600
_UPDATE_S = 600.0
_FETCH_S = 1800.0
_OFFLINE = (
    "check the network; without one, put the source files into a directory and name it in "
    "PAGEFLIP_SOURCES"
)
#: apt reads its lists again for each call: not one for each of two hundred packages.
_BATCH = 20
_BACKPORTS = "-backports"
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


def sources_text(uri: str, keyring: Path, suite: str = SUITE, *, sources: bool = True) -> str:
    """Return the private sources file, in deb822 form, the usual suite's with source packages."""
    common = (
        f"URIs: {uri}\nComponents: main\nSigned-By: {keyring}\n"
        "Languages: none\nTargets: Packages Sources\n"
    )
    # A mirror that lags serves a sid whose lists have expired.  What is taken from there is pinned
    # by SHA-256, so that an old list can offer nothing but the same files, or none.
    if suite != SUITE or not sources:
        # Backports are built on a suite, whose other packages they use.
        below = suite.removesuffix(_BACKPORTS)
        return f"Types: deb\nSuites: {' '.join(dict.fromkeys((below, suite)))}\n{common}"
    return (
        f"Types: deb deb-src\nSuites: {SUITE}\n{common}\n"
        f"Types: deb-src\nSuites: {' '.join(_SOURCE_SUITES)}\nCheck-Valid-Until: no\n{common}"
    )


class AptRoot:
    """The private apt root of one layout.  Used with the layout's apt lock held.

    Another suite than the usual one has a root of its own below, and another architecture: apt
    would mix them.
    """

    def __init__(self, layout: Layout, suite: str = SUITE, architecture: str = _OURS) -> None:
        self.suite, self.architecture = suite, architecture
        usual = (suite, architecture) == (SUITE, _OURS)
        self.root = layout.apt if usual else layout.apt / _called(suite, architecture)
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
            "APT::Architecture": self.architecture,
            # Of what two suites have (backports, and what they are built on) this one's is taken.
            "APT::Default-Release": self.suite,
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
        ours = self.architecture == _OURS
        text = sources_text(uri, keyring, self.suite, sources=ours)
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


def _called(suite: str, architecture: str) -> str:
    return suite if architecture == _OURS else f"{suite}-{architecture}"


def fetch_packages(
    layout: Layout, suite: str, names: Iterable[str], architecture: str = _OURS
) -> dict[str, Path]:
    """Return the .deb files of binary packages for `architecture`, by the packages' names.

    The newest in `suite` when they are first asked for; afterwards the same ones, from the cache
    and without a network.  Raises CannotTellError when one cannot be had.
    """
    found = packages(layout, suite, names, architecture)
    return {name: fetch.kept(layout, one) for name, one in found.items()}


def packages(
    layout: Layout, suite: str, names: Iterable[str], architecture: str = _OURS
) -> dict[str, Package]:
    """As fetch_packages, and return what is known of each (version, SHA-256)."""
    wanted = list(dict.fromkeys(names))
    index = packages_index(layout, _called(suite, architecture))
    found = _known(layout, index, wanted)
    if len(found) == len(wanted):
        return found
    with locked(layout.apt / "apt", "waiting for another run that is fetching packages"):
        found = _known(layout, index, wanted)
        missing = [name for name in wanted if name not in found]
        if missing:
            found |= _fetch_missing(layout, AptRoot(layout, suite, architecture), missing)
            _remember(index, found)
    return {name: found[name] for name in wanted}


def packages_index(layout: Layout, suite: str) -> Path:
    """Return the file that says which packages of `suite` were taken."""
    return layout.apt / f"packages-{suite}.json"


def known(layout: Layout, suite: str) -> dict[str, Package]:
    """Return the packages of `suite` that were taken, by their names; no mirror is asked."""
    return _read_index(packages_index(layout, suite))


def forget(layout: Layout, suite: str) -> None:
    """Have the newest packages of `suite` taken at their next use, not those that were taken."""
    with locked(layout.apt / "apt", "waiting for another run that is fetching packages"):
        for architecture in ARCHITECTURES.values():
            called = _called(suite, architecture)
            for index in (packages_index(layout, called), _closure_index(layout, called)):
                index.unlink(missing_ok=True)
            (AptRoot(layout, suite, architecture).root / "updated").unlink(missing_ok=True)


def _closure_index(layout: Layout, suite: str) -> Path:
    return layout.apt / f"closure-{suite}.json"


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


def closure(
    layout: Layout, suite: str, names: Iterable[str], *, essential: bool = True
) -> list[str]:
    """Return all that a system of `names` consists of: they, what they need, what is essential.

    Without what is `essential`, where that is not asked for.  Resolved by apt when first asked for;
    afterwards the same ones, from the cache.
    """
    wanted = [*(["?essential"] if essential else []), *sorted(set(names))]
    index = _closure_index(layout, suite)
    with locked(layout.apt / "apt", "waiting for another run that is fetching packages"):
        try:
            known: dict[str, list[str]] = json.loads(index.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            known = {}
        key = " ".join(wanted).removeprefix("?essential ")
        if not essential:
            key += " -essential"
        if key not in known:
            root = AptRoot(layout, suite)
            root.update()
            argv = ["apt-get", "install", "-q", "--no-install-recommends", "--print-uris", "--yes"]
            what = f"what {', '.join(names)} of {suite} need"
            listed = root.run([*argv, *wanted], what, root.root, _UPDATE_S)
            known[key] = sorted({name["package"] for name in _PLANNED.finditer(listed)})
            write_whole(index, json.dumps(known, indent=2) + "\n")
    return known[key]


def _fetch_missing(layout: Layout, root: AptRoot, names: Sequence[str]) -> dict[str, Package]:
    root.update()
    what = f"the packages {', '.join(names)}"
    with fetch.scratch(layout.downloads / "debs") as directory:
        argv = ["apt-get", "download", "-q"]
        listed = root.run([*argv, "--print-uris", *names], what, directory, _UPDATE_S)
        found = {one.package: one for one in parse_uris(listed)}
        absent = [name for name in names if name not in found]
        if absent:
            lacking = f"{root.suite} has no package {', '.join(absent)} for {root.architecture}"
            raise CannotTellError(lacking, hint=OTHER_SITE)
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


def fetch_from_snapshot(layout: Layout, file: PinnedFile, base: str) -> Path:
    """Fetch one file from the snapshot archive, which keeps them by their SHA-1."""
    return fetch.download(layout, f"{base}/file/{file.sha1}", file, file.size)
