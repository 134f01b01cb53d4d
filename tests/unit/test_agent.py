# SPDX-License-Identifier: GPL-2.0-or-later
"""The in-guest agent, driven over socket pairs: no QEMU, no guest."""

from __future__ import annotations

import itertools
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import needs
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lab.base.deadline import Deadline

SOURCE = Path(__file__).resolve().parents[2] / "guests" / "agent"
MIB = 1 << 20
PAGE = 4096


class Agent:
    """An agent process and the host's ends of its two ports."""

    def __init__(self, binary: Path) -> None:
        self.control, control = socket.socketpair()
        self.heartbeat, heartbeat = socket.socketpair()
        self.process = subprocess.Popen(
            [
                binary,
                "--control",
                f"fd:{control.fileno()}",
                "--heartbeat",
                f"fd:{heartbeat.fileno()}",
            ],
            pass_fds=(control.fileno(), heartbeat.fileno()),
            stderr=subprocess.DEVNULL,
        )
        control.close()
        heartbeat.close()
        self.control.settimeout(20)
        self.heartbeat.settimeout(20)
        self.lines = self.control.makefile("rb")
        self.last_id = 0
        self.events: list[dict[str, Any]] = []
        self.ready = self.receive()

    def receive(self) -> dict[str, Any]:
        message = json.loads(self.lines.readline())
        assert isinstance(message, dict)
        return message

    def start(self, command: str, **arguments: Any) -> int:
        self.last_id += 1
        request = {"id": self.last_id, "cmd": command, **arguments}
        self.control.sendall(json.dumps(request).encode() + b"\n")
        return self.last_id

    def wait(self, *requests: int | None) -> dict[str, Any]:
        """Return the next answer to one of the requests (None: to what could not be read)."""
        while True:
            message = self.receive()
            if "ok" in message and message["id"] in requests:
                return message
            self.events.append(message)

    def call(self, command: str, **arguments: Any) -> dict[str, Any]:
        return self.wait(self.start(command, **arguments))

    def ok(self, command: str, **arguments: Any) -> dict[str, Any]:
        answer = self.call(command, **arguments)
        assert answer["ok"], answer
        return answer

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Stop the whole process for the block.

        A signal only wakes one of its threads, and a SIGCONT that comes before that one has had its
        turn takes the SIGSTOP away unseen.
        """
        self.process.send_signal(signal.SIGSTOP)
        os.waitpid(self.process.pid, os.WUNTRACED)
        yield
        self.process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self.lines.close()
        self.control.close()
        self.heartbeat.close()


@pytest.fixture(scope="session")
def binary(tmp_path_factory: pytest.TempPathFactory, compile_once: Callable[..., None]) -> Path:
    if reason := needs.static_c():
        pytest.skip(reason)
    path = tmp_path_factory.mktemp("agent") / "agent"
    compile_once(SOURCE, path)
    return path


@pytest.fixture
def agent(binary: Path) -> Iterator[Agent]:
    one = Agent(binary)
    yield one
    one.close()


@pytest.fixture(scope="module")  # it is never idle: it checks its memory all the time
def shared_agent(binary: Path) -> Iterator[Agent]:
    """One for all the inputs that hypothesis makes up."""
    one = Agent(binary)
    yield one
    one.close()


def test_agent_is_static(binary: Path) -> None:
    assert b"/lib64/ld-linux" not in binary.read_bytes()


def test_ready_says_what_ping_says(agent: Agent) -> None:
    assert agent.ready.pop("event") == "ready"
    answer = agent.ok("ping")
    assert {key: answer[key] for key in agent.ready} == agent.ready
    assert answer["page_size"] == os.sysconf("SC_PAGESIZE")
    assert answer["kernel"] == os.uname().release


def test_fill_then_verify(agent: Agent) -> None:
    assert agent.ok("fill", bytes=16 * MIB)["pages"] == 4096
    answer = agent.ok("verify")
    assert (answer["pages_checked"], answer["bad"], answer["bad_table_chunks"]) == (4096, 0, 0)
    status = agent.ok("status")
    assert status["state"] == "running"
    assert status["pages"] == 4096
    assert status["pages_checked"] >= 4096
    assert (status["bad_pages"], status["first_bad"]) == (0, None)
    assert status["clock_went_back"] == 0


def test_fill_reports_progress_and_answers_meanwhile(agent: Agent) -> None:
    size = 768 * MIB
    if reason := needs.memory(size + 128 * MIB):
        pytest.skip(reason)
    filling = agent.start("fill", bytes=size)
    assert agent.ok("ping")
    assert all("event" in message for message in agent.events), "a ping does not wait for a fill"
    done = agent.wait(filling)
    assert done["ok"], done
    for event in agent.events:
        assert event["event"] == "fill"
        assert 0 < event["done"] < event["total"] == size


def test_dirty_keeps_the_rate_and_the_content(agent: Agent) -> None:
    agent.ok("fill", bytes=16 * MIB)
    rate = 8 * MIB
    agent.ok("dirty", rate=rate)
    begin = time.monotonic()
    time.sleep(0.5)
    status = agent.ok("status")
    took = time.monotonic() - begin
    assert status["dirty_rate"] == rate
    # A starved machine may be slower than asked for, but nothing may be faster.
    assert 0 < status["pages_dirtied"] * PAGE <= rate * (took + 0.1) + PAGE
    assert agent.ok("verify")["bad"] == 0
    agent.ok("dirty", rate=0)
    stopped = agent.ok("status")["pages_dirtied"]
    time.sleep(0.05)
    assert agent.ok("status")["pages_dirtied"] == stopped


def test_dirty_reaches_every_page(agent: Agent) -> None:
    pages = 5000  # no power of two: the permutation has to skip
    agent.ok("fill", bytes=pages * PAGE)
    agent.ok("dirty", rate=10_000 * MIB)
    while agent.ok("status")["pages_dirtied"] < pages:
        time.sleep(0.005)
    agent.ok("dirty", rate=0)
    for page in (0, 1, pages // 2, pages - 1):
        agent.ok("corrupt", page=page, mode="stale")
    assert agent.ok("verify")["bad"] == 4
    # Written twice in each round or never would leave one of these at its first generation.
    assert agent.ok("status")["first_bad"]["found_generation"] >= 1


@pytest.mark.parametrize(
    ("mode", "bad", "kind", "word"),
    [
        ("flip", 1, "flipped", 256),
        ("zero", 1, "zero", 0),
        ("stale", 1, "stale", 0),
        ("swap", 2, "moved", 0),
    ],
)
def test_damage_is_found(agent: Agent, mode: str, bad: int, kind: str, word: int) -> None:
    agent.ok("fill", bytes=16 * MIB)
    assert agent.ok("verify")["bad"] == 0
    agent.ok("corrupt", page=1234, mode=mode)
    assert agent.ok("verify")["bad"] == bad
    status = agent.ok("status")
    assert status["bad_pages"] == bad
    assert status["bad_table_chunks"] == 0
    first = status["first_bad"]
    assert first["kind"] == kind
    assert first["page"] in ((1234, 1235) if mode == "swap" else (1234,))
    assert first["word"] == word
    assert first["want"] != first["got"]
    if mode == "swap":
        assert {first["page"], first["found_page"]} == {1234, 1235}
    assert agent.ok("verify")["bad"] == bad, "found again in the next pass"
    assert agent.ok("status")["bad_pages"] == bad, "and counted once"


def test_background_check_finds_damage_without_being_asked(agent: Agent) -> None:
    agent.ok("fill", bytes=16 * MIB)
    agent.ok("corrupt", page=4095, mode="flip")
    deadline = time.monotonic() + 10
    while agent.ok("status")["bad_pages"] == 0:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_dirtying_does_not_paint_over_damage(agent: Agent) -> None:
    agent.ok("fill", bytes=4 * MIB)
    agent.ok("corrupt", page=7, mode="zero")
    agent.ok("dirty", rate=1000 * MIB)
    while agent.ok("status")["pages_dirtied"] < 3000:
        time.sleep(0.005)
    assert agent.ok("verify")["bad"] == 1
    assert agent.ok("status")["first_bad"]["kind"] == "zero"


def test_damaged_table_is_told_apart(agent: Agent) -> None:
    agent.ok("fill", bytes=16 * MIB)
    agent.ok("corrupt", page=2000, mode="table")
    answer = agent.ok("verify")
    assert answer["bad_table_chunks"] == 1
    assert agent.ok("status")["bad_table_chunks"] == 1


def test_release_gives_the_memory_back_and_forgets(agent: Agent) -> None:
    agent.ok("fill", bytes=16 * MIB)
    agent.ok("corrupt", page=0, mode="zero")
    agent.ok("verify")
    agent.ok("release")
    status = agent.ok("status")
    assert (status["state"], status["pages"], status["bad_pages"]) == ("empty", 0, 0)
    agent.ok("fill", bytes=MIB)
    assert agent.ok("verify")["bad"] == 0


def test_release_ends_what_is_going_on(agent: Agent) -> None:
    filling = agent.start("fill", bytes=512 * MIB)
    releasing = agent.start("release")
    answer = agent.wait(filling)
    assert not answer["ok"]
    assert agent.wait(releasing)["ok"]


def test_pace_slows_the_background_check(agent: Agent) -> None:
    agent.ok("fill", bytes=16 * MIB)
    agent.ok("pace", verify_rate=MIB)
    before = agent.ok("status")
    begin = time.monotonic()
    time.sleep(0.3)
    after = agent.ok("status")
    took = time.monotonic() - begin
    assert after["verify_rate"] == MIB
    assert (after["pages_checked"] - before["pages_checked"]) * PAGE <= MIB * (took + 0.1) + PAGE


@pytest.mark.parametrize(
    ("command", "arguments", "says"),
    [
        ("fill", {"bytes": 1 << 43}, "not enough memory"),
        ("fill", {"bytes": 0}, "bytes must be"),
        ("fill", {"bytes": -1}, "bytes must be"),
        ("fill", {"bytes": 1.5}, "bytes must be"),
        ("fill", {}, "bytes must be"),
        ("dirty", {"rate": 1}, "fill first"),
        ("verify", {}, "fill first"),
        ("corrupt", {"page": 0, "mode": "flip"}, "fill first"),
        ("corrupt", {"page": 0, "mode": "rot"}, "mode must be"),
        ("corrupt", {"page": 0}, "mode must be"),
        ("dirty", {"rate": "fast"}, "rate must be"),
        ("nonsense", {}, "unknown command"),
    ],
)
def test_refusals_say_why(agent: Agent, command: str, arguments: dict[str, Any], says: str) -> None:
    answer = agent.call(command, **arguments)
    assert not answer["ok"]
    assert says in answer["error"]


def test_refusals_of_a_filled_region(agent: Agent) -> None:
    agent.ok("fill", bytes=PAGE)
    assert "release it first" in agent.call("fill", bytes=PAGE)["error"]
    assert agent.call("corrupt", page=1, mode="flip")["error"] == "no such page"
    assert agent.call("corrupt", page=0, mode="swap")["error"] == "a swap needs two pages"


@pytest.mark.parametrize(
    "line",
    [
        b"{",
        b"[]",
        b"null",
        b"7",
        b'"ping"',
        b"\xff\xfe",
        b'{"id":1,"id":2,"cmd":"ping"}',
        b'{"id":[],"cmd":"ping"}',
        b"[" * 4000,
        b"\0",
        b'{"cmd":"ping"} {}',
        b'{"id":99999999999999999999,"cmd":"ping"}',
    ],
)
def test_malformed_lines_are_answered(agent: Agent, line: bytes) -> None:
    agent.control.sendall(line + b"\n")
    answer = agent.receive()
    assert (answer["id"], answer["ok"]) == (None, False)
    agent.ok("ping")


def test_line_length_is_bounded(agent: Agent) -> None:
    longest = b'{"cmd":"ping","id":"' + b"x" * 4074 + b'"}'
    assert len(longest) == 4096
    agent.control.sendall(longest + b"\n")
    assert agent.receive()["ok"]
    agent.control.sendall(b"x" * 100_000 + b"\n")
    assert agent.receive()["error"] == "line longer than 4096 bytes"
    agent.ok("ping")


@settings(max_examples=200, suppress_health_check=list(HealthCheck))
@given(st.lists(st.binary(max_size=64).map(lambda line: line.replace(b"\n", b"")), max_size=8))
def test_agent_survives_any_bytes(shared_agent: Agent, lines: list[bytes]) -> None:
    for line in lines:
        shared_agent.control.sendall(line + b"\n")
    shared_agent.ok("ping")


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=5,
)


@settings(max_examples=200, suppress_health_check=list(HealthCheck))
@given(
    st.sampled_from(["ping", "dirty", "pace", "verify", "status", "corrupt", "reset_clock"]),
    st.dictionaries(st.sampled_from(["bytes", "rate", "page", "mode", "verify_rate"]), _JSON),
)
def test_agent_survives_any_arguments(
    shared_agent: Agent, command: str, arguments: dict[str, Any]
) -> None:
    # What Python calls JSON (NaN, integers without bound) may be none: then the id is null.
    answer = shared_agent.wait(shared_agent.start(command, **arguments), None)
    assert answer["ok"] or answer["error"]
    shared_agent.ok("ping")


def _beats(agent: Agent, count: int) -> list[dict[str, int]]:
    with agent.heartbeat.makefile("rb") as lines:
        return [json.loads(lines.readline()) for _ in range(count)]


def test_heartbeats_advance(agent: Agent) -> None:
    beats = _beats(agent, 200)
    assert set(beats[0]) == {"n", "mono_ns", "real_ns"}
    for before, after in itertools.pairwise(beats):
        assert after["n"] == before["n"] + 1
        assert after["mono_ns"] > before["mono_ns"]
        assert after["real_ns"] > before["real_ns"]
    # Never early: a burst after a gap would tell the host that there was none.
    assert beats[-1]["mono_ns"] - beats[0]["mono_ns"] >= 190_000_000


def test_unread_heartbeats_are_skipped_whole_and_counted(agent: Agent) -> None:
    agent.heartbeat.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    deadline = time.monotonic() + 20
    while (status := agent.ok("status"))["heartbeats_skipped"] < 20:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    beats = _beats(agent, status["heartbeats"] + 10)  # every line whole, or this fails
    numbers = [beat["n"] for beat in beats]
    assert numbers == sorted(set(numbers))
    assert numbers[-1] - numbers[0] + 1 > len(numbers), "what was skipped shows as a gap"


def test_a_stopped_guest_shows_in_the_largest_step(agent: Agent) -> None:
    """On a busy host the agent may stand still without anybody's doing, but not each time."""
    assert agent.heartbeat.recv(1), "it has begun to look at the clock"
    agent.ok("reset_clock")
    with agent.stopped():
        time.sleep(0.2)
    for _ in Deadline.after(20, "the stop shows").poll():
        if agent.ok("status")["max_step_ns"] >= 190_000_000:
            break
    for _ in Deadline.after(20, "it is forgotten").poll():
        agent.ok("reset_clock")
        if agent.ok("status")["max_step_ns"] < 190_000_000:
            break


def test_poweroff_outside_a_guest_only_ends_the_agent(agent: Agent) -> None:
    agent.ok("poweroff")
    assert agent.process.wait(10) == 0


def test_agent_ends_when_the_host_hangs_up(agent: Agent) -> None:
    agent.lines.close()
    agent.control.close()
    assert agent.process.wait(10) == 0
