# SPDX-License-Identifier: GPL-2.0-or-later
"""What managers keep of a guest, the daemon's lock, and where threads run."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from lab import managers
from lab.base.errors import CannotTellError, PreconditionError, UsageError
from lab.base.identity import Who
from lab.managers import confined, daemon, journal, libvirt
from lab.managers import recover as managed
from lab.managers.base import NewQemu, listeners, new_qemu, told
from lab.managers.daemon import Daemon
from lab.managers.journal import Before, Errand, Guest
from lab.managers.libvirt import Libvirt, Through
from lab.managers.proxmox import Proxmox
from lab.managers.status import DomainStatus, with_emulator
from lab.managers.threads import Place, Places, Threads
from lab.vm.monitor import MonitorError, QmpError

DEFINITION = """<domain type="kvm">
  <name>g1</name>
  <!-- somebody's -->
  <devices><emulator>/old</emulator><graphics type="vnc" passwd="&lt;x&gt;"/></devices>
</domain>"""
STATUS = b"""<!-- generated -->
<domstatus state='running' reason='booted' pid='90'>
  <monitor path='/var/lib/libvirt/qemu/domain-1-g1/monitor.sock' type='unix'/>
  <vcpus><vcpu id='0' pid='98'/><vcpu id='1' pid='99'/><vcpu id='2'/></vcpus>
  <qemuCaps><flag name='netdev.json'/></qemuCaps>
  <blockjobs active='no'/>
  <domain type='qemu' id='1'>
    <name>g1</name>
    <uuid>6059fa6c-2c77-4113-8549-e99ed3520a21</uuid>
    <devices>
      <emulator>/usr/bin/qemu-system-x86_64</emulator>
      <serial type='pty'><source path='/dev/pts/0'/><alias name='serial0'/></serial>
      <console type='pty' tty='/dev/pts/0'><source path='/dev/pts/0'/><alias name='serial0'/>
      </console>
      <channel type='unix'><source path='/run/a'/><alias name='channel0'/></channel>
    </devices>
  </domain>
</domstatus>
"""


def test_what_libvirt_keeps_of_a_domain() -> None:
    status = DomainStatus(STATUS, "g1")
    assert (status.state, status.pid, status.number) == ("running", 90, "1")
    assert status.uuid == "6059fa6c-2c77-4113-8549-e99ed3520a21"
    assert status.monitor == Path("/var/lib/libvirt/qemu/domain-1-g1/monitor.sock")
    assert status.emulator == Path("/usr/bin/qemu-system-x86_64")
    assert status.processors == {0: 98, 1: 99}
    assert list(status.busy()) == []


def test_another_process_is_written_into_it() -> None:
    status = DomainStatus(STATUS, "g1")
    ends = {"charserial0": "/dev/pts/7", "charchannel0": "/dev/pts/8"}
    status.adopt(338, Path("/opt/qemu"), {0: 344, 1: 345}, ends)
    text = status.text()
    again = DomainStatus(text.encode(), "g1")
    assert (again.pid, again.processors) == (338, {0: 344, 1: 345})
    assert again.emulator == Path("/opt/qemu")
    assert text.count("/dev/pts/7") == 3
    assert "/dev/pts/8" not in text  # a channel on a socket has none
    assert "/run/a" in text
    assert "netdev.json" in text
    assert (again.uuid, again.number, again.monitor) == (status.uuid, "1", status.monitor)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("active='no'", "active='yes'", "a block job"),
        ("<blockjobs", "<job type='none' async='migration out'/><blockjobs", "migration out"),
        ("<blockjobs", "<job type='modify' async='none'/><blockjobs", "modify"),
    ],
)
def test_what_libvirt_is_busy_with(old: str, new: str, said: str) -> None:
    (why,) = DomainStatus(STATUS.decode().replace(old, new).encode(), "g1").busy()
    assert said in why


@pytest.mark.parametrize("text", [b"", b"<domstatus", b"<domain/>", b"<domstatus/>"])
def test_what_is_no_status(text: bytes) -> None:
    with pytest.raises(CannotTellError, match="libvirt's status of g1"):
        DomainStatus(text, "g1")


@pytest.mark.parametrize(
    "uri",
    ["qemu+ssh://host/system", "qemu://host/system", "xen:///system", "qemu:///embed", "x"],
)
def test_only_this_hosts_qemus(uri: str) -> None:
    with pytest.raises(UsageError, match="--connect"):
        managers.named(uri)


HOLD = """
import fcntl, sys
held = open(sys.argv[1], "a+b")
fcntl.lockf(held, fcntl.LOCK_EX, 1)
print("held", flush=True)
sys.stdin.read()
"""


@contextmanager
def held(file: Path) -> Iterator[int]:
    """Let another process have libvirt's lock, and return that."""
    argv = [sys.executable, "-c", HOLD, str(file)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdin
        assert child.stdout
        assert child.stdout.readline() == b"held\n"
        yield child.pid
        child.stdin.close()


def test_the_daemons_lock(tmp_path: Path) -> None:
    file = tmp_path / "driver.pid"
    assert daemon.serving(file) == 0
    with held(file) as pid:
        assert daemon.serving(file) == pid
        with (
            pytest.raises(PreconditionError, match="started libvirt's daemon again"),
            daemon.locked_out(file),
        ):
            pass
    assert daemon.serving(file) == 0
    with daemon.locked_out(file):
        asked = "import sys; from lab.managers import daemon; from pathlib import Path\n"
        asked += "print(daemon.serving(Path(sys.argv[1])))"
        argv = [sys.executable, "-c", asked, str(file)]
        said = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
        assert int(said) == os.getpid()
    assert not file.exists()


def test_a_daemon_is_stopped_and_started(tmp_path: Path) -> None:
    where = tmp_path / "environment"
    script = tmp_path / "daemon"
    script.write_text(f'#!/bin/sh\necho "$PLACE $*" > {where}\n[ "$1" ] || exec sleep 100\n')
    script.chmod(0o755)
    with subprocess.Popen(["sh", script], env={"PLACE": "here", "PATH": "/usr/bin:/bin"}) as child:
        while not where.exists() or "sleep" not in Path(f"/proc/{child.pid}/comm").read_text():
            pass
        found = Daemon.of(child.pid, by_itself=False)
        assert "PLACE=here" in found.environment
        reaper = threading.Thread(target=child.wait)
        reaper.start()
        found.stop()
        reaper.join()
        assert child.returncode == -15
    where.unlink()
    found.model_copy(update={"argv": (str(script),)}).start()
    assert where.read_text() == "here --daemon\n"


@pytest.mark.parametrize(
    ("groups", "unit"),
    [
        ("1:name=systemd:/system.slice/libvirtd.service\n0::/\n", "libvirtd.service"),
        ("0::/system.slice/virtqemud.service\n", "virtqemud.service"),
        ("0::/user.slice/user-1000.slice/user@1000.service/app.slice/boxes.service\n", ""),
        ("0::/system.slice/ssh.service\n", ""),
        ("0::/machine.slice/machine-qemu.scope\n", ""),
    ],
)
def test_which_service_a_daemon_is(groups: str, unit: str) -> None:
    assert daemon.unit_of(groups) == unit


def test_a_thread_is_put_where_another_was() -> None:
    mine = Place.of(os.getpid())
    assert mine.groups
    assert all(Path(group).is_dir() for group in mine.groups)
    ready, done = threading.Event(), threading.Event()
    seen: list[int] = []

    def run() -> None:
        seen.append(threading.get_native_id())
        os.sched_setaffinity(0, {min(mine.processors)})
        os.setpriority(os.PRIO_PROCESS, 0, mine.nice + 1)
        ready.set()
        done.wait()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        ready.wait()
        other = Place.of(seen[0])
        assert (other.processors, other.nice) == ((min(mine.processors),), mine.nice + 1)
        other.model_copy(update={"nice": mine.nice + 2}).put(seen[0])
        assert Place.of(seen[0]).nice == mine.nice + 2
        mine.model_copy(update={"nice": mine.nice + 2}).put(seen[0])
        assert Place.of(seen[0]).processors == mine.processors
    finally:
        done.set()
        thread.join()


def test_threads_that_are_gone() -> None:
    places = Places(main=Place.of(os.getpid()), processors={0: Place.of(os.getpid())}, iothreads={})
    with pytest.raises(CannotTellError, match="threads cannot be put"):
        places.put(Threads(main=os.getpid(), processors={0: 2**22 + 1}, iothreads={}))


ANSWERS = {
    "query-chardev": [
        {"label": "charserial0", "filename": "pty:/dev/pts/7"},
        {"label": "charmonitor", "filename": "unix:/m,server=on"},
    ],
    "query-cpus-fast": [{"cpu-index": 1, "thread-id": 5}, {"cpu-index": 0, "thread-id": 4}],
    "query-iothreads": [{"id": "iothread1", "thread-id": 6}],
}


class Answers:
    """A monitor that knows three answers."""

    def execute(self, command: str, *_: object) -> object:
        return ANSWERS[command]


def test_what_a_new_qemu_says_of_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lab.live.look.command_line", lambda _pid: ("/opt/qemu", "-S"))
    assert told(3, Answers()) == NewQemu(
        pid=3,
        program=Path("/opt/qemu"),
        threads=Threads(main=3, processors={1: 5, 0: 4}, iothreads={"iothread1": 6}),
        terminals={"charserial0": "/dev/pts/7"},
    )


def guest(monitor: Path, pid: int) -> Guest:
    where = Path("/usr/bin/qemu")
    return Guest(name="g1", identity="1", pid=pid, monitor=monitor, emulator=where)


def test_who_has_a_guest_is_told_by_the_monitors_socket(tmp_path: Path) -> None:
    path = tmp_path / "m"
    assert new_qemu(guest(path, os.getpid())) is None  # the old one is there
    with subprocess.Popen(["true"]) as gone:
        pass
    assert new_qemu(guest(path, gone.pid)) is None  # nobody has it
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        assert listeners(path) == [os.getpid()]
        with subprocess.Popen(["sleep", "100"], pass_fds=[listener.fileno()]) as child:
            try:
                assert listeners(path) == sorted([os.getpid(), child.pid])
                with pytest.raises(CannotTellError, match="of the processes"):
                    new_qemu(guest(path, gone.pid))
            finally:
                child.kill()


def asked(answer: Callable[[str], str]) -> Through:
    manager = Libvirt("qemu:///session")
    manager.ask = lambda _guest, text: answer(text)  # type: ignore[method-assign]
    return Through(manager, guest(Path("/m"), 1))


def test_qmp_by_way_of_libvirt() -> None:
    through = asked(lambda text: json.dumps({"return": json.loads(text), "id": "libvirt-1"}))
    assert through.execute("stop") == {"execute": "stop"}
    sent = through.execute("qom-get", {"path": "/", "property": "type"})
    assert sent["arguments"] == {"path": "/", "property": "type"}
    with pytest.raises(QmpError, match="g1: stop: no"):
        asked(lambda _: '{"error": {"class": "GenericError", "desc": "no"}}').execute("stop")
    with pytest.raises(MonitorError):
        asked(lambda _: "error: not running").execute("stop")


def errand(lab: Who) -> Errand:
    stopped = Daemon(pid=1, argv=("libvirtd",), environment=())
    return Errand(
        began="then",
        lab=lab,
        connection="qemu:///system",
        daemon=stopped,
        guests=(guest(Path("/m"), 1),),
    )


def test_what_a_killed_lab_has_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    mine = errand(Who.of(os.getpid()))
    mine.write()
    assert journal.read(mine.path) == mine
    assert journal.left() == []  # its lab is at work
    journal.check_finished("qemu:///system")
    with pytest.raises(CannotTellError, match="another lab"):
        managed.recover(mine)
    mine.finish()
    killed = errand(Who(pid=os.getpid(), start=1))
    killed.write()
    assert journal.left() == [killed]
    journal.check_finished("qemu:///session")
    with pytest.raises(PreconditionError, match="an upgrade of g1 that began at then"):
        journal.check_finished("qemu:///system")
    with pytest.raises(PreconditionError, match="was not finished"):
        Libvirt("qemu:///system").find(["g1"])
    killed.path.write_text("{}")
    with pytest.raises(CannotTellError, match="is no journal"):
        journal.left()


def test_a_domain_that_libvirt_knows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    manager = Libvirt("qemu:///session")
    file = tmp_path / "libvirt/qemu/run/g1.xml"
    file.parent.mkdir(parents=True)
    assert manager.settled(guest(Path("/m"), 1))  # there is no such domain
    with subprocess.Popen(["true"]) as gone:
        pass
    for pid, settled in ((os.getpid(), True), (gone.pid, False)):
        file.write_bytes(STATUS.replace(b"pid='90'", f"pid='{pid}'".encode()))
        assert manager.settled(guest(Path("/m"), 1)) is settled


def test_a_definition_gets_another_emulator_and_nothing_else() -> None:
    changed = DEFINITION.replace("/old", "/usr/bin/new")
    assert with_emulator(DEFINITION, Path("/usr/bin/new")) == changed


def test_the_definition_is_written_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """A transient domain has none, and Proxmox VE's guests have no program in theirs."""
    defined: list[str] = []

    def virsh(_self: Libvirt, *words: str, check: bool = True) -> str:
        if words[0] == "define":
            defined.append(Path(words[1]).read_text(encoding="utf-8"))
        return {"list": "g0\ng1", "dumpxml": DEFINITION}.get(words[0], "")

    monkeypatch.setattr(Libvirt, "_virsh", virsh)
    manager = Libvirt("qemu:///system")
    manager.definer(guest(Path("/m"), 1))(Path("/new"))
    assert defined == [DEFINITION.replace("/old", "/new")]
    transient = guest(Path("/m"), 1).model_copy(update={"name": "g2"})
    for other, one in ((manager, transient), (Proxmox(), guest(Path("/m"), 1))):
        with pytest.raises(PreconditionError, match=r"transient|no program"):
            other.definer(one)


@pytest.mark.parametrize("killed_at", [1, 2, 3])
def test_a_domain_is_settled_when_all_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed_at: int
) -> None:
    """Whichever file the lab was about to write when it was killed."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    manager, rewrite = Libvirt("qemu:///session"), libvirt._rewrite
    state = tmp_path / "libvirt/qemu/run"
    state.mkdir(parents=True)
    (state / "g1.xml").write_bytes(STATUS.replace(b"pid='90'", b"pid='999999999'"))
    (state / "g1.pid").write_text("999999999\n", encoding="ascii")
    new = NewQemu(os.getpid(), OTHER, threads := _threads(os.getpid()), {})
    manager._before = {
        "g1": Before(threads=threads, places=Places.of(threads), processors={0: 0, 1: 1})
    }
    written: list[Path] = []

    def until_killed(path: Path, text: str) -> None:
        written.append(path)
        if len(written) == killed_at:
            raise KeyboardInterrupt
        rewrite(path, text)

    monkeypatch.setattr(libvirt, "_rewrite", until_killed)
    with suppress(KeyboardInterrupt):
        manager.adopt(guest(Path("/m"), 1), new)
    assert manager.settled(guest(Path("/m"), 1)) is (killed_at == 3)
    monkeypatch.setattr(libvirt, "_rewrite", rewrite)
    manager.adopt(guest(Path("/m"), 1), new)
    assert manager.settled(guest(Path("/m"), 1))
    assert (state / "g1.pid").read_text(encoding="ascii") == f"{os.getpid()}\n"


def _threads(pid: int) -> Threads:
    return Threads(main=pid, processors={0: pid, 1: pid}, iothreads={})


QEMU, OTHER = Path("/usr/bin/qemu-system-x86_64"), Path("/opt/qemu")


@pytest.mark.parametrize(
    ("label", "new", "context", "said"),
    [
        ("", OTHER, "", ""),
        ("unconfined", OTHER, "", ""),
        ("libvirt-6059 (enforce)", QEMU, "", ""),
        ("libvirt-6059 (complain)", OTHER, "", ""),
        ("libvirt-6059 (enforce)", OTHER, "", "does not let it map /opt/qemu"),
        ("system_u:system_r:svirt_t:s0:c1,c2", OTHER, "qemu_exec_t", ""),
        ("system_u:system_r:svirt_t:s0:c1,c2", OTHER, "usr_t", "SELinux has /opt/qemu as usr_t"),
        ("system_u:system_r:svirt_t:s0:c1,c2", OTHER, "", "SELinux has /opt/qemu as nothing"),
    ],
)
def test_what_a_security_module_would_refuse(
    label: str, new: Path, context: str, said: str
) -> None:
    refused = confined.of_label(label, new, "qemu_exec_t", context)
    assert said in refused
    assert bool(said) == bool(refused)
