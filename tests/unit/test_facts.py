# SPDX-License-Identifier: GPL-2.0-or-later
"""The host as it is, and memory that is not there."""

from __future__ import annotations

import contextlib
import os
import platform
import socket
import subprocess
import time
from pathlib import Path

import needs
import pytest

from lab.base.deadline import Deadline
from lab.base.errors import PreconditionError
from lab.host import cgroup, facts


@pytest.fixture
def grouping() -> None:
    if reason := needs.memory_group():
        pytest.skip(reason)


def test_fingerprint_is_of_this_machine() -> None:
    found = facts.fingerprint()
    assert found.cores >= 1
    assert found.memory_bytes > 2**28
    assert found.kernel == Path("/proc/sys/kernel/osrelease").read_text(encoding="ascii").strip()


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("NAME=x\nPRETTY_NAME='An \"Old\" One'\n", 'An "Old" One'),
        ('PRETTY_NAME="It\\$ 12"\n', "It$ 12"),
        ("NAME=x\n", "Linux"),  # as os-release(5) has it
        (None, "unknown"),
    ],
)
def test_a_distribution_by_its_own_name(
    text: str | None, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "os-release"
    if text is not None:
        file.write_text(text, encoding="utf-8")
    monkeypatch.setattr(platform, "_os_release_cache", None)
    monkeypatch.setattr(platform, "_os_release_candidates", (str(file),))
    assert facts.fingerprint().distribution == name


def test_more_memory_than_there_is() -> None:
    with pytest.raises(PreconditionError, match="not enough memory: a huge guest needs about"):
        facts.require_memory(2**60, "a huge guest")
    facts.require_memory(1, "nearly nothing")


def test_a_pool_of_huge_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(facts, "POOL", tmp_path / "none")
    with pytest.raises(PreconditionError, match="needs 4 MiB of them and 0 MiB are free"):
        facts.require_huge_pages(4 << 20, "a guest")
    monkeypatch.setattr(facts, "POOL", tmp_path)
    for name, value in (("nr", 9), ("free", 5), ("resv", 2)):
        (tmp_path / f"{name}_hugepages").write_text(f"{value}\n", encoding="ascii")
    facts.require_huge_pages(3 * facts.HUGE_PAGE, "a guest")
    with pytest.raises(PreconditionError, match="needs 8 MiB of them and 6 MiB") as caught:
        facts.require_huge_pages(4 * facts.HUGE_PAGE, "a guest")
    assert caught.value.hint == f"as root: echo 10 > {tmp_path}/nr_hugepages"


def test_a_group_counts_what_is_in_it_and_goes_away(grouping: None) -> None:
    with cgroup.memory_group() as group:
        assert group is not None
        argv = group.enter(["python3", "-c", "x = bytearray(b'x' * (64 << 20)); print(len(x))"])
        group.reset_peak()
        done = subprocess.run(argv, check=True, capture_output=True, text=True)
        assert done.stdout.strip() == str(64 << 20)
        assert group.peak() > 60 << 20
        assert group.current() < 32 << 20
        path = group.path
    assert not path.exists()


def test_a_limited_group_kills_what_wants_more(grouping: None) -> None:
    with cgroup.memory_group() as group:
        assert group is not None
        group.limit(32 << 20)
        argv = group.enter(["python3", "-c", "x = bytearray(b'x' * (256 << 20))"])
        assert subprocess.run(argv, check=False, capture_output=True).returncode in {-9, 137}


def test_what_a_killed_lab_left_is_ended(grouping: None) -> None:
    with cgroup.memory_group() as group:
        assert group is not None
        left = subprocess.Popen(group.enter(["sleep", "100"]))
        for _ in Deadline.after(10, "it is in the group").poll(0.01):
            if str(left.pid) in (group.path / "cgroup.procs").read_text().split():
                break
        cgroup._kill_members(group.path)
        assert left.wait(10) == -9


def test_processor_time_grows_and_ends_with_the_process() -> None:
    before = facts.cpu_ms(os.getpid())
    assert before is not None
    used = time.process_time()
    while time.process_time() < used + 0.05:
        pass
    after = facts.cpu_ms(os.getpid())
    assert after is not None
    assert after - before >= 10  # in steps of the kernel's clock
    assert facts.cpu_ms(2**22 + 1) is None  # more than there can be


def test_only_what_is_in_a_group_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is listed no more has ended, and its number may be another process's."""
    with subprocess.Popen(["sleep", "100"]) as stays, subprocess.Popen(["sleep", "100"]) as goes:
        listed = [[stays.pid, goes.pid], [goes.pid], [goes.pid]]
        monkeypatch.setattr(cgroup, "_members", lambda _group: listed.pop(0))
        cgroup._kill_members(tmp_path)
        assert goes.wait(10) == -9
        assert stays.poll() is None
        stays.kill()


def test_the_headroom_is_that_of_the_tightest_group(tmp_path: Path) -> None:
    """Of the process's group and all above it, with all their members."""
    inner = tmp_path / "outer" / "inner"
    inner.mkdir(parents=True)
    for group, limit, used in (
        (tmp_path, "max", 500),
        (inner.parent, "1000", 700),
        (inner, "max", 100),
    ):
        (group / "memory.max").write_text(f"{limit}\n", encoding="ascii")
        (group / "memory.current").write_text(f"{used}\n", encoding="ascii")
    assert cgroup.headroom(1, tmp_path, "0::/outer/inner\n") == 300
    (inner / "memory.max").write_text("150\n", encoding="ascii")
    assert cgroup.headroom(1, tmp_path, "0::/outer/inner\n") == 50
    (inner / "memory.current").write_text("200\n", encoding="ascii")
    assert cgroup.headroom(1, tmp_path, "0::/outer/inner\n") == 0


@pytest.mark.parametrize(
    ("limit", "used", "below"),
    [
        ("memory.max", "memory.current", ""),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
    ],
)
def test_what_is_cached_of_files_is_room(tmp_path: Path, limit: str, used: str, below: str) -> None:
    """The kernel drops what is idle of it at once; shmem and anonymous memory stay."""
    (tmp_path / limit).write_text("1000\n", encoding="ascii")
    (tmp_path / used).write_text("900\n", encoding="ascii")
    stat = f"anon 50\n{below}active_file 30\n{below}inactive_file 7\nshmem 3\n"
    own = "active_file 1\n" if below else ""
    (tmp_path / "memory.stat").write_text(own + stat, encoding="ascii")
    told = "3:memory:/\n" if below else "0::/\n"
    assert cgroup.headroom(1, tmp_path, told) == 100
    assert cgroup.headroom(1, tmp_path, told, cached=True) == 107


def test_no_limit_is_no_headroom(tmp_path: Path) -> None:
    """Version 1 has a number for that; and some processes are in no memory group."""
    for name, value in (
        ("memory.limit_in_bytes", 9223372036854771712),
        ("memory.usage_in_bytes", 5),
    ):
        (tmp_path / name).write_text(f"{value}\n", encoding="ascii")
    assert cgroup.headroom(1, tmp_path, "3:cpu,memory:/\n2:pids:/\n") is None
    (tmp_path / "memory.limit_in_bytes").write_text("9\n", encoding="ascii")
    assert cgroup.headroom(1, tmp_path, "3:cpu,memory:/\n2:pids:/\n") == 4
    assert cgroup.headroom(1, tmp_path, "2:pids:/\n") is None


def test_sockets_have_any_name(sockets: Path) -> None:
    names = [os.fsencode(sockets) + name for name in (b"/a b", b"/\xff", b"/plain")]
    with contextlib.ExitStack() as stack:
        for name in names:
            one = stack.enter_context(socket.socket(socket.AF_UNIX))
            one.bind(name)
            one.listen()
        assert {Path(os.fsdecode(name)) for name in names} <= facts.listening_sockets().keys()
