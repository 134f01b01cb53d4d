# SPDX-License-Identifier: GPL-2.0-or-later
"""migration-test: what its driver prints is read, and what it starts is wrapped."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from lab.base.errors import CannotTellError
from lab.review import qtests
from lab.review.qtests import ABSENT, QtestOutcome, Setup, TestResult, parse

TEST = "/x86_64/migration/precopy/unix/plain"
HEAD = """# random seed: R02Sf1
# starting QEMU: exec /tmp/new/qemu-system-x86_64 -accel qtest
TAP version 13
1..54
# Start of x86_64 tests
"""
BAIL = "ERROR:../tests/qtest/migration/framework.c:1:check: assertion failed (bad == 0): (3 == 0)"

ANSWER = """# {
#     "error": {
#         "class": "GenericError",
#         "desc": "no"
#     }
# }
"""


@pytest.mark.parametrize(
    ("output", "status", "outcome", "reason"),
    [
        (f"ok 1 {TEST}\n", 0, QtestOutcome.OK, ""),
        (f"    ok 12 {TEST}\n", 0, QtestOutcome.OK, ""),  # a subtest of newer GLibs
        (f"ok 1 {TEST} # SKIP no shm\n", 0, QtestOutcome.SKIPPED, "no shm"),
        (f"ok 1 {TEST} # skip\n", 0, QtestOutcome.SKIPPED, ""),
        (f"not ok 1 {TEST}\n", 1, QtestOutcome.FAILED, "exit status 1"),
        (f"not ok 1 {TEST} - {BAIL}\n", -6, QtestOutcome.FAILED, BAIL),
        (f"not ok 1 {TEST}\nBail out! {BAIL}\n", -6, QtestOutcome.FAILED, BAIL),
        (
            f"{ANSWER}**\nBail out! {BAIL}\n",
            -6,
            QtestOutcome.FAILED,
            f'{BAIL}; QEMU\'s last error: "no"',
        ),
        (f"# {TEST}\nBail out!\n", -6, QtestOutcome.FAILED, "SIGABRT"),
        ("qemu: cannot\n", 1, QtestOutcome.FAILED, "exit status 1: qemu: cannot"),
        (f"ok 1 {TEST}/below\n", 0, QtestOutcome.FAILED, "exit status 0"),
        (f"ok 1 {TEST}\n", -11, QtestOutcome.FAILED, "ok, but then SIGSEGV"),
        ("", -99, QtestOutcome.FAILED, "signal 99"),
        ("", 0, QtestOutcome.FAILED, "exit status 0"),
    ],
)
def test_what_the_driver_says_is_read(
    output: str, status: int, outcome: QtestOutcome, reason: str
) -> None:
    assert parse(HEAD + output, TEST, status) == TestResult(outcome, reason)


def test_the_list_is_the_names_alone() -> None:
    assert qtests.listed(f"{HEAD}{TEST}\n# Start of a tests\n/a/b\n# End\n") == [TEST, "/a/b"]


def test_results_agree_by_what_they_came_to() -> None:
    ok, failed = TestResult(QtestOutcome.OK), TestResult(QtestOutcome.FAILED, "0x1234")
    skipped = TestResult(QtestOutcome.SKIPPED, "no shm")
    assert ok.agrees(ok)
    assert failed.agrees(TestResult(QtestOutcome.FAILED, "0x5678"))
    assert skipped.agrees(TestResult(QtestOutcome.SKIPPED, "no shm"))
    assert not skipped.agrees(TestResult(QtestOutcome.SKIPPED, "no memory"))
    assert not ok.agrees(failed)
    assert not ok.agrees(skipped)
    assert not ok.agrees(ABSENT)
    assert (str(ok), str(skipped)) == ("ok", "skipped (no shm)")


def wrapped(directory: Path, accel: str, *words: str) -> list[str]:
    """Start a wrapper of a QEMU that prints its command line, as the driver would."""
    qemu = directory / "it's a qemu"
    qemu.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    qemu.chmod(0o755)
    program = directory / "wrapper"
    program.write_text(qtests.wrapper(qemu, directory / "firm ware", accel))
    program.chmod(0o755)
    return subprocess.check_output([program, *words], text=True).splitlines()


def test_a_wrapper_adds_the_firmware_and_keeps_every_word(tmp_path: Path) -> None:
    firmware = ["-L", f"{tmp_path}/firm ware"]
    words = ["-name", "a b", "", "$x", "*", "-run-with", "user=me", "-accel", "tcg"]
    assert wrapped(tmp_path, "tcg", *words) == firmware + words
    assert wrapped(tmp_path, "tcg") == firmware


def test_a_wrapper_takes_away_what_is_not_for_this_qemu(tmp_path: Path) -> None:
    taken = ["-run-with", "exit-with-parent=on"]
    ring = ["-accel", "kvm,dirty-ring-size=4096"]
    words = ["-S", *taken, "-accel", "kvm", *ring, "-accel", "tcg", *taken, "-x", "-accel"]
    assert wrapped(tmp_path, "tcg", *words)[2:] == ["-S", "-accel", "tcg", "-x", "-accel"]
    kvm = ["-S", "-accel", "kvm", *ring, "-accel", "tcg", "-x", "-accel"]
    assert wrapped(tmp_path, "kvm", *words)[2:] == kvm


_DRIVER = """#!/bin/sh
[ -z "$SECRET" ] || exit 9
[ -x "$QTEST_QEMU_BINARY" ] && [ -x "$QTEST_QEMU_BINARY_SRC" ] || exit 8
[ -z "$QEMU_TEST_FLAKY_TESTS" ] || echo "/x/flaky"
cat scripts/marker
touch "$TMPDIR/left"
case "$*" in
*-l) printf '# Start\\n/x/a\\n/x/a/b\\n/x/c\\n/x/dirty_ring\\n/x/vcpu_dirty_limit\\n' ;;
*"-p /x/a -s /x/a/b") echo "ok 1 /x/a" ;;
*"-p /x/c") echo "Bail out! $*"; exit 1 ;;
*) sleep 60 ;;
esac
"""


@pytest.fixture
def bench(tmp_path: Path) -> Setup:
    driver = tmp_path / "migration-test"
    driver.write_text(_DRIVER)
    driver.chmod(0o755)
    (tmp_path / "tree" / "scripts").mkdir(parents=True)
    (tmp_path / "tree" / "scripts" / "marker").write_text("# the tree's\n")
    qemu = tmp_path / "qemu"
    return Setup(driver, tmp_path / "tree", qemu, qemu, tmp_path)


def test_each_test_is_run_alone(
    bench: Setup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", "1")
    with qtests.stand(bench, tmp_path / "logs") as stand:
        assert stand.names == ["/x/a", "/x/a/b", "/x/c"]
        results = stand.run_all(["/x/a", "/x/gone", "/x/c"], "tests")
        # Neither the driver's files nor its directory stay.
        left = {path.name for path in stand.directory.iterdir()}
        assert left == {"old", "new", "scripts"}
    assert not stand.directory.exists()
    assert list(results) == ["/x/a", "/x/c"]
    assert results["/x/a"] == TestResult(QtestOutcome.OK)
    assert results["/x/c"] == TestResult(QtestOutcome.FAILED, "--tap -k --full -p /x/c")
    log = (tmp_path / "logs" / "x.c.log").read_text()
    assert log.startswith("+ env -i PATH=")
    assert f" TMPDIR={stand.directory}/" in log
    assert "Bail out!" in log


def test_a_test_that_hangs_has_failed(
    bench: Setup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with qtests.stand(bench, tmp_path / "logs") as stand:
        assert stand.names
        monkeypatch.setattr(qtests, "_TEST_S", 0.2)
        assert stand.run("/x/a/b") == TestResult(QtestOutcome.FAILED, "not done after 0.2 s")


def test_thorough_asks_for_the_slow_and_the_flaky(bench: Setup, tmp_path: Path) -> None:
    with qtests.stand(replace(bench, thorough=True, accel="kvm"), tmp_path / "logs") as stand:
        ring = ["/x/dirty_ring", "/x/vcpu_dirty_limit"]
        assert stand.names == ["/x/flaky", "/x/a", "/x/a/b", "/x/c", *ring]
        assert stand.run("/x/c").reason == "--tap -k --full -m slow -p /x/c"


def test_a_driver_that_lists_nothing_is_the_labs_trouble(bench: Setup, tmp_path: Path) -> None:
    bench.driver.write_text("#!/bin/sh\necho no\n")
    with (
        qtests.stand(bench, tmp_path / "logs") as stand,
        pytest.raises(CannotTellError, match="lists no tests:\nno"),
    ):
        assert stand.names
