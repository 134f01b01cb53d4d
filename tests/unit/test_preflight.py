# SPDX-License-Identifier: GPL-2.0-or-later
"""What is said of a running QEMU: a fake one, and answers of our own."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shlex
import socket
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from fakes import fake_qemu
from made_truth import block, truth

from lab import mechanisms
from lab.base import number
from lab.base.errors import PreconditionError, UsageError
from lab.host import facts
from lab.live import look, outside, preflight
from lab.live.look import Backend, Running
from lab.live.successor import Passed, Successor
from lab.live.truth.model import Device, Listener
from lab.source.series import STOCK
from lab.verbs import bisect
from lab.vm import binary
from lab.vm.binary import Binary

NEW = Binary(
    Path("/new/qemu"),
    "10.2.2",
    "",
    None,
    frozenset({"migrate", "localhost-migrate"}),
    frozenset({"normal", "cpr-transfer"}),
    frozenset({"copy", "gift", "handover", "flip"}),
)


def qemu(
    *argv: str, share: bool = False, aux: bool = False, blockers: tuple[str, ...] = ()
) -> Running:
    return Running(
        pid=1,
        argv=("/old/qemu-system-x86_64", *argv),
        monitor=Path("/run/q"),
        binary=NEW,
        state="running",
        machine="pc-q35-10.0",
        accel="kvm",
        ram=(Backend("pc.ram", 2**31, share),),
        blockers=blockers,
        aux_share=aux,
    )


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    """A new QEMU that has a few devices, and a host with 4 GiB free."""
    said = {
        "-version": "QEMU emulator version 10.2.2\n",
        "-device": 'name "virtio-blk-pci", bus PCI, alias "virtio-blk"\n',
        "-machine": "pc-q35-10.0 old\n",
        "-object": "List:\n  iothread\n  memory-backend-file\n",
        "-accel": "Accelerators:\nkvm\ntcg\n",
    }
    monkeypatch.setattr(
        preflight.process,
        "run",
        lambda argv, **_: subprocess.CompletedProcess(
            argv, 0, "q: -run-with: invalid option" if "-run-with" in argv else said[argv[1]], ""
        ),
    )
    monkeypatch.setattr(preflight.memory, "pss", lambda _pid: 2**31)
    monkeypatch.setattr(preflight.facts, "memory_bytes", lambda _field: 2**32)


def examined(found: Running) -> preflight.Preflight:
    return preflight.examine(found, NEW, preflight.successor(found, NEW))


def possible(found: Running) -> set[str]:
    return {way.mechanism for way in examined(found).ways if way.possible}


def test_an_ordinary_guest() -> None:
    found = examined(qemu("-m", "2G"))
    assert found.best == "flip"
    assert possible(qemu()) == {
        "flip", "flip-late", "gift", "copy", "postcopy", "precopy", "multifd", "stop-copy",
    }  # fmt: skip
    ways = {way.mechanism: way for way in found.ways}
    assert ways["flip"].extra_bytes < 2**27
    assert ways["precopy"].extra_bytes > 2**31
    assert "private (pc.ram)" in ways["cpr-transfer"].reasons[0]


@pytest.mark.parametrize("words", ["pci-serial-2x", "vmbus-bridge"])
def test_what_qemu_crashes_over_is_not_asked_for(words: str) -> None:
    said = f"device {words}: QEMU crashes when it saves its state"
    ways = examined(qemu("-device", words, "-cpu", "max,hv-time")).ways
    assert not any(way.possible for way in ways)
    assert all(said in " ".join(way.reasons) for way in ways)


def test_a_bus_of_hyper_v_s_is_there_with_its_interrupts() -> None:
    found = qemu("-device", "vmbus-bridge", "-cpu", "max,hv-vpindex,hv-synic=on")
    for accel, crashes in (("kvm", False), ("tcg", True)):
        for way in examined(dataclasses.replace(found, accel=accel)).ways:
            assert ("QEMU crashes" in " ".join(way.reasons)) == crashes


def test_who_may_start_no_process_is_not_asked_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """By its sandbox; whoever starts the new QEMU himself may."""
    denied = qemu("-sandbox", "on,elevateprivileges=deny,spawn=deny")
    for filtered in (True, False):
        monkeypatch.setattr(preflight.joined, "filtered", lambda _mode, told=filtered: told)
        ways = {way.mechanism: way for way in examined(denied).ways}
        for name in ("flip", "flip-late", "remap"):
            said = [one for one in ways[name].reasons if "may start no other QEMU" in one]
            assert bool(said) is filtered, name
        assert ways["gift"].possible
        assert ways["precopy"].possible
        assert "flip" in possible(qemu("-sandbox", "on,spawn=upgrade"))
        assert "flip" in possible(qemu("-sandbox", "on"))


def test_a_guest_on_shared_memory() -> None:
    assert "flip" not in possible(qemu(share=True))
    assert {"handover", "gift"} <= possible(qemu(share=True))
    assert examined(qemu(share=True)).best == "handover"
    assert "cpr-transfer" not in possible(qemu(share=True))
    assert "cpr-transfer" in possible(qemu(share=True, aux=True))
    on_file = ("-object", "memory-backend-file,id=pc.ram,mem-path=/dev/shm/x,size=2G,share=on")
    assert "ignore-shared" in possible(qemu(*on_file, share=True))


def test_a_managed_guests_new_qemu_is_a_child_of_the_old_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(mechanisms.Transplant, "missing", lambda *_: "")
    monkeypatch.setattr(outside, "reasons", lambda _found: [])
    for found, best in ((qemu(), "flip"), (qemu(share=True), "transplant")):
        seen = preflight.examine(found, NEW, preflight.successor(found, NEW), managed=True)
        assert seen.best == best
        for way in seen.ways:
            child = way.mechanism in {"flip", "flip-late", "remap", "transplant"}
            refused = any("those of a child of the old QEMU only" in why for why in way.reasons)
            assert refused is not child, way


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ("-device nvme,serial=1", "does not save the state"),
        ('-device {"driver":"virtio-mem-pci"}', "managed in parts"),
        ("-object sev-guest,id=s", "is its secret"),
        ("-runas nobody", "cannot become it"),
        ("-overcommit mem-lock=on", "would lock"),
        ("-realtime mlock=on", "would lock"),
        ("", "does not list its RAM blocks"),
    ],
)
def test_what_stands_against_taking_it_from_outside(words: str, why: str) -> None:
    said = list(outside.reasons(qemu(*shlex.split(words, posix=False))))
    assert why in said[0]
    harmless = "-device virtio-blk-pci -object iothread,id=i -overcommit mem-lock=off"
    assert len(list(outside.reasons(qemu(*harmless.split())))) == 1


def test_memory_that_was_allocated_is_not_allocated_once_more() -> None:
    said = "-mem-prealloc -object memory-backend-ram,id=m,prealloc=on,size=1G "
    said += '-object {"id":"n","prealloc":true,"host-nodes":[0]} -object iothread,id=i '
    words = f"{said}-netdev tap,id=t,fd=7 -name prealloc=on".split()
    made = outside.inheriting(Successor(["/q", *words], passed=[Passed(9, {"fd": "7"})]))
    assert made.with_descriptors([9]) == [
        *("/q", "-S", "-object", "memory-backend-ram,id=m,prealloc=off,size=1G"),
        *("-object", '{"id": "n", "prealloc": false, "host-nodes": [0]}'),
        *("-object", "iothread,id=i", "-netdev", "fd=9", "-name", "prealloc=on"),
    ]


def test_shared_memory_that_it_must_not_open() -> None:
    """It gets a file without a name in its place, unless the file is there for more than that."""
    file = "memory-backend-file,id=m,mem-path=/run/a,,b,share=on"
    other = '{"qom-type":"memory-backend-file","id":"n","mem-path":"/d","share":true,"size":4096}'
    more = ("", "size=1G,pmem=on", "size=1G,readonly=on", "size=1G,rom=on", "size=1G,offset=4096")
    kept = [f"{file},{one}".rstrip(",") for one in more]
    private = "memory-backend-file,id=p,mem-path=/run/c,size=1G,share=off"
    said = [f"{file},size=1G,discard-data=on,rom=auto,readonly=off", other, *kept, private]
    made = Successor(["/q", *(word for text in said for word in ("-object", text))])
    assert outside.inheriting(made).argv[2::2] == [
        "memory-backend-memfd,id=m,share=on,size=1G",
        '{"id": "n", "share": true, "size": 4096, "qom-type": "memory-backend-memfd"}',
        *kept,
        private,
    ]
    assert outside.shared_files(made) == kept


def test_all_features_of_a_version_are_not_those_of_another() -> None:
    told = "-cpu max: the processor is whatever a version can emulate, and these are two"
    older = dataclasses.replace(NEW, version="10.0.13")
    for cpu in ("max", "max,sse4a=off"):
        same = qemu("-cpu", cpu)
        assert told in examined(dataclasses.replace(same, binary=older)).ways[0].reasons
        assert told not in examined(same).ways[0].reasons
    for kind, refused in (("max-x86_64-cpu", True), ("qemu64-x86_64-cpu", False)):
        has = truth(devices={"/machine/unnamed/cpu[0]": Device(type=kind, properties={})})
        found = dataclasses.replace(qemu("-cpu", "max"), binary=older, truth=has)
        assert (told in examined(found).ways[0].reasons) == refused


def test_no_way_at_all() -> None:
    for found in (
        qemu(blockers=("a device cannot be moved",)),
        qemu("-device", "edu"),
    ):
        told = examined(found)
        assert told.best is None
        assert not any(way.possible for way in told.ways)
    assert "the new QEMU has no device edu" in told.ways[0].reasons
    assert possible(qemu("-device", "virtio-blk"))
    for argv, lacking in (
        (("-run-with", "x"), "the new QEMU says: -run-with: invalid option"),
        (("-object", "can-bus"), "the new QEMU has no object can-bus"),
    ):
        assert lacking in examined(qemu(*argv)).ways[0].reasons
    assert not any(" has no " in one for one in examined(qemu("-s")).ways[0].reasons)


def test_only_the_old_qemu_can_start_the_new_one() -> None:
    tap = qemu("-netdev", "tap,id=n,ifname=t,script=no,downscript=no")
    assert possible(tap) == set()  # this QEMU's localhost-migrate has no argument fds
    able = dataclasses.replace(tap.binary, localhost_arguments=frozenset({"fds"}))
    assert possible(dataclasses.replace(tap, binary=able)) == {"flip", "flip-late"}
    assert possible(qemu("-s")) == set()
    assert possible(dataclasses.replace(qemu(), changes=("a device was plugged in",))) == set()


def test_memory_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight.facts, "memory_bytes", lambda _field: 2**30)
    assert possible(qemu()) == {"flip", "flip-late", "gift", "copy", "postcopy"}


@pytest.mark.parametrize("room_mib", [127, 128, 129, None])
def test_the_memory_group_has_to_have_room_for_a_second_qemu(
    monkeypatch: pytest.MonkeyPatch, room_mib: int | None
) -> None:
    """The kernel would kill one of both, and may go on to the other; a fork copies page tables."""
    room = None if room_mib is None else room_mib * 2**20
    monkeypatch.setattr(preflight.cgroup, "headroom", lambda _pid, *, cached: room)
    monkeypatch.setattr(preflight.process, "status", lambda _pid, _name: "1024 kB")
    ways = {way.mechanism: way for way in examined(qemu()).ways}
    assert ways["flip"].possible == (room_mib in {129, None})
    assert ways["gift"].possible
    if room_mib == 127:
        wanted = "129 MiB of memory have to be available, and 127 MiB are"
        assert ways["flip"].reasons == [wanted]


def test_every_cost_is_of_a_mechanism() -> None:
    assert preflight._COSTS.keys() <= {one.name for one in mechanisms.MECHANISMS}


def test_options_are_read_as_qemu_reads_them() -> None:
    argv = ("qemu", "-chardev", "socket,id=m,path=/run/m", "--mon", "chardev=m,mode=control")
    assert look.monitor_of(1, argv) == Path("/run/m")
    assert look.monitor_of(1, ("qemu", "-qmp", "unix:/run/q,server=on")) == Path("/run/q")
    with pytest.raises(PreconditionError, match="no QMP monitor"):
        look.monitor_of(1, ("qemu", "-monitor", "stdio"))


def test_a_monitor_that_management_passed_is_found(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as nameless:
        listener.bind(str(tmp_path / "m"))
        listener.listen()
        chardev = f"socket,id=m,fd={listener.fileno()},server=on,wait=off"
        argv = ("qemu", "-chardev", chardev, "-mon", "chardev=m,mode=control")
        assert look.monitor_of(os.getpid(), argv) == tmp_path / "m"
        chardev = f"socket,id=m,fd={nameless.fileno()},server=on,wait=off"
        argv = ("qemu", "-chardev", chardev, "-mon", "chardev=m,mode=control")
        with pytest.raises(PreconditionError, match="no QMP monitor"):
            look.monitor_of(os.getpid(), argv)


NO_NUMBERS = ["²", "٣", "-1", "1_0", " 7", "", "9" * 5000]


@pytest.mark.parametrize("what", [*NO_NUMBERS, "999999999", "/nowhere", "abc"])
def test_nobody_to_ask(what: str) -> None:
    with pytest.raises(UsageError, match=r"neither|no process|too long"):
        look.look(what)


@pytest.mark.parametrize("text", NO_NUMBERS)
def test_what_is_no_number(text: str) -> None:
    """Python's isdigit() is true of some of them, and int() takes others."""
    assert number.whole(text) is None
    assert Passed(1, {"fd": text}).numbers == []
    with pytest.raises(UsageError, match="is no patch"):
        bisect.number_of(text, STOCK)


def test_a_path_that_no_file_can_have() -> None:
    with pytest.raises(UsageError, match="File name too long"):
        binary.inspect(Path("/" + "x" * 300))


def test_a_thread_is_named_by_its_process() -> None:
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(threading.get_native_id).result()
        assert other != os.getpid()
        assert look._process_of(other) == look._process_of(os.getpid()) == os.getpid()
    assert look._process_of(999999999) == 999999999


def test_a_process_that_is_no_qemu() -> None:
    with subprocess.Popen(["sleep", "100"]) as child:
        try:
            with pytest.raises(UsageError, match="is no QEMU"):
                look.look(str(child.pid))
        finally:
            child.kill()


def test_a_running_one_is_asked_and_nothing_more(
    sockets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers: dict[str, Any] = {
        "query-qmp-schema": [],
        "query-commands": [{"name": "migrate"}],
        "query-version": {"qemu": {"major": 10, "minor": 0, "micro": 13}},
        "query-memdev": [
            {"id": "pc.ram", "size": 2**30, "share": False},
            {"id": "window", "size": 2**20, "share": True},
        ],
        "query-status": {"status": "running"},
        "query-kvm": {"enabled": False},
        "query-migrate": {"blocked-reasons": ["so it is"]},
        "query-block": [{"device": "cd"}],
        "query-named-block-nodes": [],
        "x-debug-query-block-graph": {"nodes": [], "edges": []},
        "query-jobs": [],
        "query-block-exports": [],
        "query-blockstats": [],
        "device-list-properties": [],
        "query-chardev": [{"label": "serial0", "filename": "disconnected:unix:/run/s,server=on"}],
        "query-name": {},
        "query-uuid": {"UUID": "0"},
        "query-cpus-fast": [{"cpu-index": 0, "thread-id": 5}],
        "query-memory-size-summary": {"base-memory": 2**30},
        "query-migrate-capabilities": [{"capability": "events", "state": False}],
        "query-migrate-parameters": {},
        "human-monitor-command": "e.0: index=0,type=nic,model=e\r\n \\ n0: index=0,type=tap,fd=5",
        "qom-get": "pc-q35-10.0-machine",
    }
    asked: list[str] = []
    hmp: list[str] = []

    def answer(command: str, arguments: dict[str, Any]) -> dict[str, Any]:
        asked.append(command)
        if command == "qom-list":
            return {"return": devices.get(arguments["path"], [])}
        if arguments.get("property") == "hotplugged":
            return {"return": arguments["path"].endswith("late")}
        if command == "human-monitor-command":
            hmp.append(arguments["command-line"])
        return {"return": answers[command]}

    hotplugged = [{"name": "type", "type": "string"}, {"name": "hotplugged", "type": "bool"}]
    devices = {
        "/machine": [
            {"name": "type", "type": "string"},
            {"name": "peripheral", "type": "child<container>"},
        ],
        "/machine/peripheral": [
            {"name": "early", "type": "child<x>"},
            {"name": "late", "type": "child<x>"},
        ],
        "/machine/peripheral/early": hotplugged,
        "/machine/peripheral/late": hotplugged,
    }
    argv = (
        "/old/qemu-system-x86_64", "-device", "ivshmem-plain,memdev=window",
        "-device", "x,id=early", "-device", '{"driver": "x", "id": "gone"}',
        "-netdev", "tap,id=n0",
    )  # fmt: skip
    monkeypatch.setattr(look, "command_line", lambda _pid: argv)
    with fake_qemu(sockets / "qmp", answer):
        found = look.look(str(sockets / "qmp"))
    assert (found.machine, found.accel, found.state) == ("pc-q35-10.0", "tcg", "running")
    assert found.ram == (Backend("pc.ram", 2**30, share=False),)
    assert found.blockers == ("so it is",)
    assert found.changes == (
        "device late was added while the guest ran: it is on no bus, where QEMU does not tell its "
        "place",
    )
    assert found.remarks == ("device gone was taken out while the guest ran",)
    assert '{"driver": "x", "id": "gone"}' not in found.argv
    # Nothing that changes anything.
    questions = r"x-debug-query-|query-|qom-get|qom-list|device-list-properties|human"
    assert all(re.match(questions, one) for one in asked)
    assert set(hmp) == {"info network", "info ramblock"}
    truth = found.truth
    assert truth
    assert truth.chardevs["serial0"].where == "unix:/run/s,server=on"
    assert truth.networks == {"e.0": "index=0,type=nic,model=e", "n0": "index=0,type=tap"}
    assert truth.machine.cpus == [{"index": 0}]
    assert json.loads(examined(found).model_dump_json())["ram_bytes"] == 2**30


def test_a_qemu_by_another_name() -> None:
    """Some distributions' is called kvm; and its command line may be no UTF-8."""
    argv = [b"/usr/bin/kvm", b"-c", b"echo; read line", b"\xff"]
    pipe = subprocess.PIPE
    with subprocess.Popen(argv, executable="/bin/sh", stdin=pipe, stdout=pipe) as child:
        assert child.stdout
        child.stdout.readline()
        assert os.fsencode(look.command_line(child.pid)[-1]) == b"\xff"


def test_a_configuration_file_is_read(tmp_path: Path) -> None:
    file = tmp_path / "a.cfg"
    file.write_text('[chardev "m"]\nbackend = "socket"\npath = "/run/m"\n[mon]\n'
                    'chardev = "m"\nmode = "control"\n', encoding="utf-8")  # fmt: skip
    argv = look.configured(os.getpid(), ("qemu", "-S", "-readconfig", str(file), "-m", "1G"))
    assert look.monitor_of(1, argv) == Path("/run/m")
    assert argv[:2] == ("qemu", "-S")
    assert argv[-2:] == ("-m", "1G")
    unreadable = ("qemu", "-readconfig", str(tmp_path / "none"))
    assert look.configured(os.getpid(), unreadable) == unreadable


def test_a_script_is_no_program_for_flip(tmp_path: Path) -> None:
    script = tmp_path / "wrapper"
    script.write_text('#!/bin/sh\nexec qemu "$@"\n', encoding="utf-8")
    new = dataclasses.replace(NEW, path=script)
    told = preflight.examine(qemu(), new, preflight.successor(qemu(), new))
    able = {way.mechanism for way in told.ways if way.possible}
    assert "precopy" in able
    assert not able & {"flip", "flip-late"}
    assert "is a script" in told.ways[0].reasons[0]


def test_sockets_are_asked_for_and_not_only_read(tmp_path: Path) -> None:
    """What listens that no option names is refused; a relative name is from where it started."""
    argv = ("-qmp", "unix:q,server,nowait")
    named = [Listener(kind="unix", address="q"), Listener(kind="unix", address="/home/q")]
    found = dataclasses.replace(qemu(*argv), truth=truth(listeners=named[:1]), cwd=Path("/home"))
    assert preflight.successor(found, NEW).refusals == []
    for more in (Listener(kind="unix", address="/run/nbd"), Listener(kind="tcp", address="*:1")):
        found = dataclasses.replace(found, truth=truth(listeners=[*named, more]))
        (said,) = preflight.successor(found, NEW).refusals
        assert said.startswith(f"it listens on {more.kind} {more.address}")
    daemon = dataclasses.replace(
        qemu("-daemonize"), truth=truth(listeners=named[:1], block=block(drives={})), cwd=Path("/")
    )
    assert (
        "q is relative, and a daemon's directory" in preflight.successor(daemon, NEW).refusals[-1]
    )


def test_qmp_passes_utf8() -> None:
    ways = {way.mechanism: way.reasons for way in examined(qemu("-name", "a\udcff")).ways}
    assert ways["flip"] == ["its command line is not UTF-8, and QMP passes nothing else"]
    assert ways["gift"] == []


@pytest.mark.parametrize(
    "words",
    ["-kernel @", "-initrd @", "-L @", "-fw_cfg name=opt/a,file=@", "-acpitable sig=A,data=@"],
)
def test_what_a_daemon_reads_at_its_start(words: str) -> None:
    """Where it was started nobody knows any more; whoever is no daemon is there still."""

    def refusals(name: str, *more: str) -> list[str]:
        argv = words.replace("@", name).split(" ")
        return preflight.successor(qemu(*more, *argv), NEW).refusals

    assert refusals("k") == refusals("/k", "-daemonize") == []
    assert refusals("k", "-daemonize") == [
        "k is relative, and a daemon's directory is not known any more"
    ]


def test_a_log_is_not_emptied(tmp_path: Path) -> None:
    found = dataclasses.replace(qemu("-D", "q.log"), cwd=tmp_path)
    assert preflight.successor(found, NEW).refusals == []
    (tmp_path / "q.log").touch()
    assert preflight.successor(found, NEW).refusals == []
    (tmp_path / "q.log").write_text("something", encoding="utf-8")
    assert "would empty it" in preflight.successor(found, NEW).refusals[0]


def test_memory_in_a_private_file(tmp_path: Path) -> None:
    memory = {"mem-path": str(tmp_path), "share": False}
    objects = {"pc.ram": Device(type="memory-backend-file", properties=memory)}
    found = dataclasses.replace(qemu(), truth=truth(objects=objects, listeners=[]))
    assert possible(found) == {"postcopy", "precopy", "multifd", "stop-copy"}
    assert facts.filesystem(Path("/proc/self")) == "proc"


def test_memory_in_a_file_that_both_have(tmp_path: Path) -> None:
    """What is copied from a page arrives in that page, later: only what leaves it alone will do.

    Of a directory each QEMU has a file of its own.
    """
    (file := tmp_path / "ram").touch()
    copying = {"postcopy", "precopy", "multifd", "stop-copy", "gift", "copy", "transplant"}
    for path, able in ((file, False), (tmp_path, True)):
        memory = {"mem-path": str(path), "share": True}
        objects = {"pc.ram": Device(type="memory-backend-file", properties=memory)}
        found = qemu("-object", "memory-backend-file,id=pc.ram", share=True, aux=True)
        found = dataclasses.replace(found, truth=truth(objects=objects, listeners=[]))
        assert bool(possible(found) & copying) is able
        assert {"handover", "ignore-shared", "cpr-transfer"} <= possible(found)
