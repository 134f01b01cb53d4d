# SPDX-License-Identifier: GPL-2.0-or-later
"""The account of memory."""

from __future__ import annotations

import mmap
import os
import time
from dataclasses import dataclass

import needs
import pytest

from lab.measure import memory
from lab.measure.memory import huge_pages, pss, sampled, summarise
from lab.model import Sample

GIB = 2**30


@dataclass
class Pid:
    pid: int


def sample(at: float, old: int, new: int, skew: int = 0) -> Sample:
    return Sample(at_ms=at, old_pss_bytes=old, new_pss_bytes=new, skew_bytes=skew)


def test_doubling_is_seen() -> None:
    account = summarise(GIB, [sample(0, GIB, 0), sample(9, GIB, GIB)], 0, None)
    assert account.ratio == pytest.approx(2.0)
    assert account.method == "pss"


def test_torn_readings_are_discarded_and_counted() -> None:
    readings = [
        sample(0, GIB, 0),
        sample(1, GIB, GIB // 2, skew=GIB // 10),
        sample(2, GIB // 2, GIB // 2),
    ]
    account = summarise(GIB, readings, 0, None)
    assert account.ratio == pytest.approx(1.0)
    assert (account.samples, account.samples_discarded) == (3, 1)


def test_the_kernels_peak_has_the_last_word() -> None:
    account = summarise(GIB, [sample(0, GIB, 0)], 0, (GIB, 3 * GIB // 2))
    assert account.method == "cgroup"
    assert account.ratio == pytest.approx(1.5)
    assert account.pss_ratio == pytest.approx(1.0)


def test_reading_this_very_process() -> None:
    before = pss(os.getpid())
    ballast = bytearray(os.urandom(32 * 2**20))
    assert pss(os.getpid()) - before > 24 * 2**20
    assert len(ballast) == 32 * 2**20


def test_huge_pages_are_counted_where_guest_ram_can_be() -> None:
    with mmap.mmap(-1, 64 * 2**20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as ram:
        before = huge_pages(os.getpid(), 64 * 2**20)
        given = needs.huge_bytes()
        ram.madvise(mmap.MADV_HUGEPAGE)
        ram.write(bytes(64 * 2**20))
        if needs.huge_bytes() == given:
            pytest.skip("the kernel gives no huge pages")
        found = huge_pages(os.getpid(), 64 * 2**20) - before
        assert 0 < found <= 64 * 2**20
        assert huge_pages(os.getpid(), 2**40) == 0


def test_the_pools_pages_count_by_half_where_both_have_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    files = {
        "smaps_rollup": b"Pss:  100 kB\nPss_Dirty: 9 kB\nShared_Hugetlb:  4096 kB\n"
        b"Private_Hugetlb:  2048 kB\nSwap: 7 kB\n",
        "smaps": b"7f0000000000-7f0000800000 rw-p 00000000 00:10 1  /memfd:ram (deleted)\n"
        b"Size: 8192 kB\nAnonHugePages:  0 kB\nShmemPmdMapped: 0 kB\n"
        b"Shared_Hugetlb:  4096 kB\nPrivate_Hugetlb:  2048 kB\nSwap: 0 kB\n",
    }
    monkeypatch.setattr(memory, "_read", lambda _pid, name: files[name])
    assert pss(1) == (100 + 2048 + 2048) * 1024
    assert huge_pages(1, 8 << 20) == (4096 + 2048) * 1024


def test_a_process_that_is_gone_uses_nothing() -> None:
    assert (pss(2**22 + 1), huge_pages(2**22 + 1, GIB)) == (0, 0)


def test_sampler_samples_and_stops() -> None:
    with sampled(Pid(os.getpid()), Pid(os.getppid())) as sampler:
        while len(sampler.samples) < 3:
            pass
    count = len(sampler.samples)
    assert all(s.new_pss_bytes > 0 for s in sampler.samples)
    assert len(sampler.samples) == count


def test_readings_that_take_long_are_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    def slowly(_pid: int) -> int:
        time.sleep(0.003)
        return GIB

    monkeypatch.setattr(memory, "pss", slowly)
    with sampled(Pid(1), Pid(2), considerate=True) as sampler:
        time.sleep(0.1)
    assert not sampler.samples
    with sampled(Pid(1), Pid(2)) as sampler:
        time.sleep(0.1)
    assert len(sampler.samples) > 1


def test_a_process_that_became_another_is_counted_once() -> None:
    with sampled(Pid(os.getpid()), Pid(os.getpid())) as sampler:
        while not sampler.samples:
            pass
    assert sampler.samples[0].old_pss_bytes > 0
    assert sampler.samples[0].new_pss_bytes == 0


def test_nothing_is_read_where_that_is_not_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    monkeypatch.setattr(memory, "pss", read.append)
    with sampled(Pid(1), Pid(2), wanted=False) as sampler:
        time.sleep(0.05)
    assert (read, sampler.samples) == ([], [])
    assert memory.Used(None, []).with_new(1, os.getpid(), GIB).memory is None


def test_what_the_new_qemu_is_left_with() -> None:
    used = memory.Used(summarise(100, [], 0, None), [])
    gone_pid = 2**22 + 1
    own = used.with_new(gone_pid, os.getpid(), GIB).memory
    gone = used.with_new(gone_pid, gone_pid, GIB).memory
    assert own is not None
    assert gone is not None
    assert (own.new_pss_bytes or 0) > 2**20
    assert gone.new_pss_bytes is None


def test_where_there_was_no_reading_one_is_made_afterwards() -> None:
    gone_pid = 2**22 + 1
    late = memory.Used(summarise(100, [], 0, None), []).with_new(os.getpid(), gone_pid, GIB).memory
    assert late is not None
    assert late.samples == 1
    assert late.pss_peak_bytes > 2**20
    assert late.pss_ratio == late.pss_peak_bytes / 100
    there = [Sample(at_ms=0, old_pss_bytes=110, new_pss_bytes=0, skew_bytes=0)]
    early = (
        memory.Used(summarise(100, there, 0, None), there)
        .with_new(os.getpid(), gone_pid, GIB)
        .memory
    )
    assert early is not None
    assert (early.samples, early.pss_peak_bytes) == (1, 110)


def test_a_reading_that_takes_very_long_is_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []

    def slowly(pid: int) -> int:
        read.append(pid)
        time.sleep(0.03)
        return GIB

    monkeypatch.setattr(memory, "pss", slowly)
    with sampled(Pid(1), Pid(2), considerate=True):
        pass
    assert read == [1]
