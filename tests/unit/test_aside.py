# SPDX-License-Identifier: GPL-2.0-or-later
"""Files that two processes have by one name, and descriptors of another process's."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from lab.base.errors import PreconditionError
from lab.live import aside
from lab.live.aside import Aside, Common, Shared, named
from lab.live.journal import Owner
from lab.live.successor import Passed


def listening(path: Path) -> socket.socket:
    """Listen as QEMU does: over whatever has that name."""
    path.unlink(missing_ok=True)
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(path))
    server.listen()
    return server


def reached(path: Path, server: socket.socket) -> bool:
    """Whether who connects to `path` is heard by `server`."""
    server.settimeout(0.2)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        try:
            server.accept()[0].close()
        except TimeoutError:
            return False
        return True


@contextmanager
def held(files: Sequence[Shared | Common]) -> Iterator[Aside]:
    found = Aside(files)
    with found.held():
        yield found


@pytest.mark.parametrize("removes", [True, False])
def test_a_guest_that_moved_is_reached_by_the_same_name(sockets: Path, removes: bool) -> None:
    path = sockets / "qmp"
    old = listening(path)
    with held(named([path, sockets / "none"])) as files:
        new = listening(path)
        files.keep()
        if removes:  # as the old QEMU does when it ends, if it is without the series
            path.unlink()
    assert reached(path, new)
    assert list(sockets.iterdir()) == [path]
    old.close(), new.close()


def test_a_guest_that_stayed_is_reached_by_the_same_name(sockets: Path) -> None:
    path = sockets / "qmp"
    old = listening(path)
    with held(named([path])):
        new = listening(path)
        new.close()
        path.unlink()
    assert reached(path, old)
    with held(named([path])):  # a new one that was killed removes nothing, one never came
        new = listening(path)
        new.close()
    with held(named([path])):
        pass
    assert reached(path, old)
    assert list(sockets.iterdir()) == [path]
    old.close()


@pytest.mark.parametrize("removes", [True, False])
def test_a_socket_of_both_keeps_its_name(sockets: Path, removes: bool) -> None:
    path = sockets / "monitor"
    both = listening(path)
    assert aside.listening([both.fileno()]) == [path]
    with held(named([path], [path, sockets / "none"])) as files:
        assert reached(path, both)
        files.keep()
        if removes:  # as whichever QEMU ends first does
            path.unlink()
    assert reached(path, both)
    assert list(sockets.iterdir()) == [path]
    both.close()


def test_only_sockets_with_a_name_are_kept(tmp_path: Path) -> None:
    with (tmp_path / "f").open("wb") as file, socket.socket(socket.AF_UNIX) as nameless:
        assert aside.listening([file.fileno(), nameless.fileno()]) == []


def test_nothing_is_moved_when_it_is_not_known_who_has_the_guest(sockets: Path) -> None:
    path = sockets / "qmp"
    old = listening(path)
    with held(named([path])) as files:
        new = listening(path)
        files.leave()
    assert reached(path, new)
    assert reached(sockets / "qmp.pageflip-old", old)
    old.close(), new.close()


def test_while_both_are_there_the_name_is_the_old_ones(sockets: Path) -> None:
    path = sockets / "qmp"
    old = listening(path)
    with held(named([path])) as files:
        new = listening(path)
        files.lend()
        assert reached(path, old)
        path.unlink()  # as a new QEMU without the series does that could not load the guest
    assert reached(path, old)
    with held(named([path])) as files:
        new = listening(path)
        files.lend()
        files.keep()
        assert reached(path, new)
        path.unlink()  # as the old one does
    assert reached(path, new)
    assert list(sockets.iterdir()) == [path]
    old.close(), new.close()


def test_two_names_of_one_file_are_one(sockets: Path) -> None:
    path, elsewhere = sockets / "qmp", sockets / "link"
    old = listening(path)
    elsewhere.symlink_to(sockets)
    found = named([path, elsewhere / "qmp"])
    assert [one.path for one in found] == [path]
    assert Shared.read(found[0].resource()) == found[0]
    old.close()


def test_what_another_upgrade_has_put_aside_is_not_lost(sockets: Path) -> None:
    path, olds = sockets / "qmp", sockets / "qmp.pageflip-old"
    other, old = listening(olds), listening(path)
    with (
        pytest.raises(PreconditionError, match="is there already"),
        held(named([path])),
    ):
        pass
    assert reached(path, old)
    assert reached(olds, other)
    other.close(), old.close()


#: What is done to a file, in this order, by a lab that may be killed after each.
STEPS = ("put", "bind", "lend", "pass_on", "remove")


@pytest.mark.parametrize("lends", [True, False])
@pytest.mark.parametrize("killed_after", range(len(STEPS) + 1))
@pytest.mark.parametrize("owner", [Owner.OLD, Owner.NEW])
def test_another_lab_settles_it_twice_wherever_the_first_was_killed(
    owner: Owner, killed_after: int, lends: bool, sockets: Path
) -> None:
    steps = [step for step in STEPS[:killed_after] if lends or step != "lend"]
    if (owner is Owner.NEW and "bind" not in steps) or (owner is Owner.OLD and "remove" in steps):
        return  # it has nothing, or has ended
    path = sockets / "qmp"
    listeners = [listening(path)]
    (file,) = named([path])
    for step in steps:
        if step == "bind":
            listeners.append(listening(path))
        elif step == "remove":
            path.unlink()
        else:
            getattr(file, step)()
    again = Shared.read(file.resource())
    if owner is Owner.NEW:
        again.pass_on()
        again.pass_on()
        assert reached(path, listeners[1])
    for _ in range(2):
        again.settle(owner)
        assert reached(path, listeners[owner is Owner.NEW])
        assert list(sockets.iterdir()) == [path]
    for one in listeners:
        one.close()


def test_a_descriptor_of_another_process(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("of the other", encoding="utf-8")
    with (
        (tmp_path / "f").open("rb") as file,
        subprocess.Popen(["sleep", "100"], pass_fds=[file.fileno()]) as child,
    ):
        tap = Passed(0, {"": "tap", "fd": str(file.fileno())})
        try:
            with aside.descriptors(child.pid, [tap, tap]) as found:
                assert os.pread(found[0], 100, 0) == b"of the other"
                assert len({*found, file.fileno()}) == 3
            with pytest.raises(OSError, match="Bad file"):
                os.fstat(found[0])
            gone = Passed(0, {"": "tap", "fd": "999"})
            with (
                pytest.raises(PreconditionError, match="cannot have descriptor 999"),
                aside.descriptors(child.pid, [gone]),
            ):
                pass
            named = Passed(0, {"": "tap", "ifname": "t7"})
            with (
                pytest.raises(PreconditionError, match="has 0 descriptors of tap t7, and not 1"),
                aside.descriptors(child.pid, [named]),
            ):
                pass
        finally:
            child.kill()


def test_vhost_gets_descriptors_that_nobody_has_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "vhost").write_text("unused", encoding="utf-8")
    with (tmp_path / "vhost").open("rb") as used:
        number = used.fileno()
        tap = Passed(0, {"": "tap", "fds": f"{number}:{number}", "vhostfds": f"{number}:{number}"})
        monkeypatch.setattr(aside, "_VHOST", str(tmp_path / "vhost"))
        with aside.descriptors(os.getpid(), [tap]) as found:
            used.seek(3)
            places = [os.lseek(one, 0, os.SEEK_CUR) for one in found]
        assert places == [3, 3, 0, 0], "the taps' own, and others"
        monkeypatch.setattr(aside, "_VHOST", str(tmp_path / "none"))
        with (
            pytest.raises(PreconditionError, match="none: No such file"),
            aside.descriptors(os.getpid(), [tap]),
        ):
            pass
