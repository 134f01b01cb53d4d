# SPDX-License-Identifier: GPL-2.0-or-later
"""QEMU's own migration-test: run by a release's driver, with a pair of QEMUs of any release.

Each test is run in a process of its own, because a test that fails aborts the driver and takes
those after it along.  The driver speaks GLib's dialect of TAP (testanything.org).
"""

from __future__ import annotations

import enum
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from lab.base import process
from lab.base.deadline import Deadline, DeadlineError
from lab.base.errors import CannotTellError
from lab.base.layout import socket_directory
from lab.base.progress import step

# The driver takes the architecture from what QEMU's program is called.
_PROGRAM = "qemu-system-x86_64"
#: Most tests need 1 to 3 s and the longest 15 s under TCG, on two cores with nothing else on them.
_TEST_S = 240.0
_RESULT = re.compile(r"^\s*(?P<no>not )?ok (?:\d+ )?(?P<test>/\S+)(?P<rest>.*)$", re.MULTILINE)
_SKIP = re.compile(r"^\s*# SKIP\b\s*(?P<why>.*)$", re.IGNORECASE)
#: Tests of KVM's dirty ring: under TCG they hang, fail, or pass and say nothing.
_KVM_ONLY = re.compile(r"dirty_(?:ring|limit)")
#: What is TAP's, and says nothing of why.
_TAP = re.compile(r"^\s*(?:#|$|TAP version|1\.\.\d|(?:not )?ok\b|Bail out!)")
_BAIL = re.compile(r"^Bail out!\s*(?P<why>.*)$", re.MULTILINE)
#: The driver prints QEMU's answer to a command that was to succeed.
_ANSWER = re.compile(r'^#\s+"desc": (?P<words>".*"),?$', re.MULTILINE)
_WRAPPER = """\
#!/bin/sh
# Started in place of QEMU by migration-test: adds the firmware, and takes some options away.
left=$#
while [ "$left" -gt 0 ]; do
    case "$1 $2" in
    {taken})
        shift 2
        left=$((left - 2))
        ;;
    *)
        set -- "$@" "$1"
        shift
        left=$((left - 1))
        ;;
    esac
done
exec {qemu} -L {firmware} "$@"
"""


class QtestOutcome(enum.StrEnum):
    """What a test came to."""

    OK = "ok"
    FAILED = "failed"
    SKIPPED = "skipped"
    #: The driver has no such test with these QEMUs.
    ABSENT = "absent"


@dataclass(frozen=True)
class TestResult:
    """One run of one test; ``reason`` says why it failed or was skipped."""

    __test__ = False  # pytest takes what is called Test... for its own

    outcome: QtestOutcome
    reason: str = ""

    def agrees(self, other: TestResult) -> bool:
        """Whether both came to the same; a test skipped for another reason did not.

        Why a test failed is told in words that hold addresses and times, and is not compared.
        """
        if self.outcome is not other.outcome:
            return False
        return self.outcome is not QtestOutcome.SKIPPED or self.reason == other.reason

    def __str__(self) -> str:
        return f"{self.outcome} ({self.reason})" if self.reason else str(self.outcome)


ABSENT = TestResult(QtestOutcome.ABSENT)


@dataclass(frozen=True)
class Setup:
    """What is run with what: a driver, the tree with the scripts it calls, and two QEMUs."""

    driver: Path
    tree: Path
    old: Path
    new: Path
    firmware: Path
    accel: str = "tcg"
    thorough: bool = False

    @property
    def options(self) -> list[str]:
        """The options for the driver: all its tests, and with `thorough` the slow ones as well."""
        return ["--tap", "-k", "--full", *(["-m", "slow"] if self.thorough else [])]


def wrapper(qemu: Path, firmware: Path, accel: str) -> str:
    """Return the text of a program that the driver can start in place of `qemu`.

    Drivers since 10.2 pass ``-run-with exit-with-parent=on``, which a QEMU before does not know;
    setpriv(1) does the same for every release.  With `accel` tcg the driver's own ``-accel kvm`` is
    taken away: a nested KVM may open, and then run the test's guest for minutes.
    """
    taken = ['"-run-with exit-with-parent=on"']
    if accel == "tcg":
        taken += ['"-accel kvm"', '"-accel kvm,"*']
    setpriv = shutil.which("setpriv")
    guard = [setpriv, "--pdeathsig", "KILL", "--"] if setpriv else []
    return _WRAPPER.format(
        taken=" | ".join(taken),
        qemu=process.command_line([*guard, qemu]),
        firmware=shlex.quote(str(firmware)),
    )


@dataclass(frozen=True)
class Stand:
    """A setup with its wrappers in place: lists tests, and runs one at a time.

    All that the driver and its QEMUs print is kept in ``logs``, the command first.
    """

    setup: Setup
    directory: Path
    logs: Path

    @cached_property
    def names(self) -> list[str]:
        """The tests that the driver has for these QEMUs, in its order.

        Raises CannotTellError when it cannot say.
        """
        said = self._drive("list", "-l").stdout
        found = listed(said)
        if not found:
            raise CannotTellError(f"{self.setup.driver} lists no tests:\n{said}")
        kvm = self.setup.accel == "kvm"
        return [test for test in found if kvm or not _KVM_ONLY.search(test)]

    def run(self, test: str) -> TestResult:
        """Run one test and return what it came to."""
        # -p takes what stands below a name with it.
        below = [word for one in self.names if one.startswith(f"{test}/") for word in ("-s", one)]
        try:
            done = self._drive(test.strip("/").replace("/", "."), "-p", test, *below)
        except DeadlineError:
            return TestResult(QtestOutcome.FAILED, f"not done after {_TEST_S:g} s")
        return parse(done.stdout, test, done.returncode)

    def run_all(self, tests: Sequence[str], title: str) -> dict[str, TestResult]:
        """Run those of `tests` that there are, one after the other."""
        there = [test for test in tests if test in self.names]
        results = {}
        with step(title) as tick:
            for number, test in enumerate(there):
                tick(number, len(there))
                results[test] = self.run(test)
            tick(len(there), len(there))
        return results

    def _drive(self, name: str, *words: str) -> subprocess.CompletedProcess[str]:
        """Run the driver, with nothing of the user's environment and a directory that goes."""
        with tempfile.TemporaryDirectory(dir=self.directory) as files:
            return process.run(
                [*self._argv(files), *words],
                cwd=self.directory,
                deadline=Deadline.after(_TEST_S, name),
                log=self.logs / f"{name}.log",
                check=False,
            )

    def _argv(self, files: str) -> list[str]:
        environment = {
            "PATH": os.environ.get("PATH", os.defpath),
            "LC_ALL": "C",
            "TMPDIR": files,
            "PYTHON": sys.executable,
            # The source is told apart from the default, which is the destination.
            "QTEST_QEMU_BINARY_SRC": str(self.directory / "old" / _PROGRAM),
            "QTEST_QEMU_BINARY": str(self.directory / "new" / _PROGRAM),
        }
        if self.setup.thorough:
            environment["QEMU_TEST_FLAKY_TESTS"] = "1"
        settings = [f"{name}={value}" for name, value in environment.items()]
        return ["env", "-i", *settings, str(self.setup.driver), *self.setup.options]


@contextmanager
def stand(setup: Setup, logs: Path) -> Iterator[Stand]:
    """Put a setup into a directory of its own, which is removed afterwards."""
    logs.mkdir(parents=True)
    with socket_directory(roomy=True) as directory:
        for side, qemu in (("old", setup.old), ("new", setup.new)):
            program = directory / side / _PROGRAM
            program.parent.mkdir()
            program.write_text(wrapper(qemu, setup.firmware, setup.accel), encoding="utf-8")
            program.chmod(0o755)
        (directory / "scripts").symlink_to(setup.tree / "scripts")
        yield Stand(setup, directory, logs)


def listed(output: str) -> list[str]:
    """Return the tests that a driver lists."""
    return [line.strip() for line in output.splitlines() if line.startswith("/")]


def parse(output: str, test: str, status: int) -> TestResult:
    """Return what a driver that ended with `status` said of `test`.

    Only an ``ok`` of its own makes a test pass: one that ended early is one that failed.
    """
    said = next((one for one in _RESULT.finditer(output) if one["test"] == test), None)
    if said is None or said["no"]:
        return TestResult(QtestOutcome.FAILED, _why(output, said, status))
    if skipped := _SKIP.match(said["rest"]):
        return TestResult(QtestOutcome.SKIPPED, skipped["why"])
    if status != 0:
        return TestResult(QtestOutcome.FAILED, f"ok, but then {_ended(status)}")
    return TestResult(QtestOutcome.OK)


def _why(output: str, said: re.Match[str] | None, status: int) -> str:
    """Return the words that tell most about a failure."""
    if (bail := _BAIL.search(output)) and bail["why"]:
        answers = _ANSWER.findall(output, 0, bail.start())
        return f"{bail['why']}; QEMU's last error: {answers[-1]}" if answers else bail["why"]
    if said and (rest := said["rest"].strip(" -")):
        return rest
    lines = [line for line in output.splitlines() if not _TAP.match(line)]
    return f"{_ended(status)}: {lines[-1]}" if lines else _ended(status)


def _ended(status: int) -> str:
    if status >= 0:
        return f"exit status {status}"
    try:
        return signal.Signals(-status).name
    except ValueError:
        return f"signal {-status}"
