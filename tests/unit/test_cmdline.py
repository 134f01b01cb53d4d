# SPDX-License-Identifier: GPL-2.0-or-later
"""From a machine to a command line."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from lab.vm import cmdline
from lab.vm.cmdline import Backing, Machine, Nic

OLD = Machine(
    qemu=Path("/old/qemu"),
    firmware=Path("/fw"),
    kernel=Path("/k"),
    initrd=Path("/i"),
    append="quiet",
    sockets=Path("/s/old"),
    serial_log=Path("/run/old.log"),
    accel="tcg",
    ram_bytes=2**31,
)


def successor(old: Machine = OLD, **more: object) -> Machine:
    return dataclasses.replace(
        cmdline.successor(
            old,
            qemu=Path("/new/qemu"),
            firmware=Path("/firmware"),
            sockets=Path("/s/new"),
            serial_log=Path("/run/new.log"),
            incoming=("defer",),
        ),
        **more,
    )  # type: ignore[arg-type]


def test_an_ordinary_guest_has_ordinary_memory() -> None:
    words = OLD.argv()
    assert words[words.index("-m") + 1] == "2048M"
    assert words[words.index("-machine") + 1] == cmdline.DEFAULT_BOARD
    assert "-object" not in words
    assert "-incoming" not in words


def test_the_steps_of_a_migration_are_traced() -> None:
    words = OLD.argv()
    traced = [words[place + 1] for place, word in enumerate(words) if word == "-trace"]
    assert traced == ["runstate_set", "vmstate_downtime_checkpoin*"]


def test_the_successor_differs_in_what_belongs_to_the_process_only() -> None:
    old, new = OLD.argv(), successor().argv()
    assert new[-2:] == ["-incoming", "defer"]
    changed = [(a, b) for a, b in zip(old, new[:-2], strict=True) if a != b]
    assert changed
    for mine, theirs in (
        ("/old/qemu", "/new/qemu"),
        ("/fw", "/firmware"),
        ("/s/old", "/s/new"),
        ("/run/old.log", "/run/new.log"),
    ):
        changed = [(before.replace(mine, theirs), after) for before, after in changed]
    assert all(before == after for before, after in changed)


def test_shared_memory_for_cpr() -> None:
    words = dataclasses.replace(OLD, backing=Backing.SHARED).argv()
    assert "aux-ram-share=on" in words[words.index("-machine") + 1]
    assert words[words.index("-object") + 1].endswith("share=on")


def test_shared_memory_for_handover() -> None:
    words = dataclasses.replace(OLD, backing=Backing.MEMFD).argv()
    assert "aux-ram-share" not in " ".join(words)
    assert words[words.index("-machine") + 1].endswith("memory-backend=ram")
    assert words[words.index("-object") + 1].startswith("memory-backend-memfd,id=ram,")


def test_private_huge_pages_are_taken_at_once() -> None:
    words = dataclasses.replace(OLD, backing=Backing.HUGETLB).argv()
    assert "share=off,hugetlb=on,hugetlbsize=2M,prealloc=on" in words[words.index("-object") + 1]


def test_two_incoming_channels_and_commas() -> None:
    new = successor(incoming=("unix:/m", cmdline.cpr_channel(Path("/c"))), sockets=Path("/a,b"))
    words = new.argv()
    assert words.count("-incoming") == 2
    assert json.loads(words[-1])["addr"]["path"] == "/c"
    assert any("path=/a,,b/qmp" in word for word in words)


def test_a_payload_boots_without_initramfs_and_command_line() -> None:
    payload = dataclasses.replace(OLD, initrd=None, append="")
    words = payload.argv()
    assert words[words.index("-kernel") + 1] == "/k"
    assert "-initrd" not in words
    assert "-append" not in words
    linux = OLD.argv()
    assert [word for word in linux if word not in ("-initrd", "/i", "-append", "quiet")] == words


def test_a_new_qemu_that_the_old_one_starts_has_its_own_log() -> None:
    assert "-D" not in successor().argv()
    words = successor(trace_log=Path("/run/new.log")).argv()
    assert words[words.index("-D") + 1] == "/run/new.log"


def test_a_card_on_a_tap_that_is_given_by_number() -> None:
    assert OLD.descriptors == ()
    machine = dataclasses.replace(OLD, nics=(Nic(7), Nic(9, "52:54:00:00:00:02")))
    words = machine.argv()
    assert machine.descriptors == (7, 9)
    assert "tap,id=net0,fd=7" in words
    assert any("netdev=net1,mac=52:54:00:00:00:02" in word for word in words)


def test_a_guest_has_the_devices_that_were_asked_for_under_both() -> None:
    more = ("virtio-rng-pci", "e1000e,romfile=")
    old = dataclasses.replace(OLD, devices=more)
    for machine in (old, successor(old)):
        words = machine.argv()
        given = [words[place + 1] for place, word in enumerate(words) if word == "-device"]
        assert tuple(given[-2:]) == more


def test_a_processor_is_named_where_the_board_has_not_the_guest_s() -> None:
    assert "-cpu" not in OLD.argv()
    other = dataclasses.replace(OLD, cpu="cortex-a72")
    words = other.argv()
    assert words[words.index("-cpu") + 1] == "cortex-a72"
    assert successor(other).cpu == "cortex-a72"
