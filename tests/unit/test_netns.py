# SPDX-License-Identifier: GPL-2.0-or-later
"""A network of the lab's own; nothing of it is left, however the lab ends."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import needs
import pytest

from lab.base.errors import CannotTellError, PreconditionError
from lab.base.layout import CHECKOUT
from lab.workloads import netns
from lab.workloads.netns import HOST, Segment, segment
from lab.workloads.netnschild import hint

BROADCAST = "192.0.2.255"


@pytest.fixture
def network() -> None:
    if reason := needs.network():
        pytest.skip(reason)


@pytest.fixture
def lan(network: None, tmp_path: Path) -> Iterator[Segment]:
    with segment(tmp_path / "network.log") as made:
        yield made


def test_sockets_are_in_the_namespace(lan: Segment) -> None:
    one = lan.socket(socket.SOCK_DGRAM)
    one.bind((HOST, 0))  # an address that this machine has not
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as ours,
        pytest.raises(OSError, match="assign"),
    ):
        ours.bind((HOST, 0))
    assert lan.socket(socket.SOCK_STREAM).type == socket.SOCK_STREAM


def test_what_one_tap_sends_the_other_gets(lan: Segment) -> None:
    first, second = lan.tap(), lan.tap()
    header = bytes(10)  # virtio-net's, as IFF_VNET_HDR wants it
    frame = b"\xff" * 6 + bytes.fromhex("525400123456") + b"\x88\xb5" + b"pageflip".ljust(50)
    os.write(first, header + frame)
    deadline = time.monotonic() + 5
    got = b""
    while frame not in got and time.monotonic() < deadline:
        try:
            got = os.read(second, 4096)
        except BlockingIOError:
            time.sleep(0.01)
    assert frame in got


def test_a_tap_keeps_seconds_of_traffic_and_counts_what_it_does_not(lan: Segment) -> None:
    tap = lan.tap()
    before = lan.dropped()
    sender = lan.socket(socket.SOCK_DGRAM)
    sender.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
    sender.connect((BROADCAST, 9))
    for _ in range(8_000):
        sender.send(bytes(64))
    assert lan.dropped() == before
    for _ in range(8_000):
        sender.send(bytes(64))
    dropped = lan.dropped() - before
    held = 0
    with suppress(BlockingIOError):
        while os.read(tap, 4096):
            held += 1
    assert 0 < dropped < 8_000
    assert 8_000 < held < 16_000


def test_everything_goes_with_the_block(network: None, tmp_path: Path) -> None:
    before = set(Path("/proc/self/fd").iterdir())
    with segment(tmp_path / "log") as made:
        made.socket(socket.SOCK_DGRAM)
        made.tap()
    assert set(Path("/proc/self/fd").iterdir()) == before


def test_a_killed_lab_leaves_no_process(network: None, tmp_path: Path) -> None:
    code = (
        "import os, signal, sys\nfrom pathlib import Path\n"
        "from lab.workloads.netns import segment\n"
        "with segment(Path(sys.argv[1])) as lan:\n"
        "    kids = Path('/proc/self/task').glob('*/children')\n"
        "    print(*[k.read_text() for k in kids], flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "log"],
        capture_output=True,
        text=True,
        check=False,
        cwd=CHECKOUT,
    )
    assert done.stdout.strip(), done.stderr
    child = Path("/proc") / done.stdout.split()[0]
    deadline = time.monotonic() + 10
    while child.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert done.returncode == -signal.SIGKILL
    assert not child.exists()


def test_what_is_missing_is_said_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "unshare"
    tool.write_text(
        "#!/bin/sh\necho 'unshare: unshare failed: Operation not permitted' >&2\nexit 1\n"
    )
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with (
        pytest.raises(PreconditionError, match=r"network namespace here: .* not permitted"),
        segment(tmp_path / "log"),
    ):
        pass


def test_an_unwilling_child_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = tmp_path / "unshare"
    tool.write_text("#!/bin/sh\nexec sleep 100\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(netns, "_ANSWER_S", 0.1)
    with pytest.raises(CannotTellError, match="has not answered after"), segment(tmp_path / "log"):
        pass


def test_a_child_that_breaks_is_the_labs_own_fault(lan: Segment) -> None:
    lan._control.send(b"NONSENSE")
    with pytest.raises(CannotTellError, match="process has ended: KeyError: 'NONSENSE'") as caught:
        lan.answer()
    assert not isinstance(caught.value, PreconditionError)


def test_each_refusal_has_its_own_advice() -> None:
    assert "chmod 666 /dev/net/tun" in hint(PermissionError(13, "no", "/dev/net/tun"))
    assert "modules" in hint(OSError(95, "not supported"))
