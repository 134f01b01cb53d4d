# SPDX-License-Identifier: GPL-2.0-or-later
"""The agent's echo servers: what they send back, what they see, and what they damage when asked."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_agent import Agent, binary  # noqa: F401 -- a fixture

from lab.base.deadline import Deadline

#: asm-generic/socket.h
SO_RCVBUFFORCE = 33

WORDS = struct.pack(">512Q", *range(512))


class Echo:
    """An agent that serves on the loopback, and a stream to it."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        self.ports = agent.ok("echo", address="127.0.0.1")
        self.stream = self.connect()

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.ports["tcp_port"]), 10)

    def back(self, count: int) -> bytes:
        got = b""
        while len(got) < count and (some := self.stream.recv(count - len(got))):
            got += some
        return got

    def account(self) -> dict[str, Any]:
        found = self.agent.ok("status")["echo"]
        assert isinstance(found, dict)
        return found


@pytest.fixture
def echo(binary: Path) -> Iterator[Echo]:  # noqa: F811
    one = Echo(Agent(binary))
    yield one
    one.stream.close()
    one.agent.close()


def test_before_it_is_asked_there_is_no_echo(binary: Path) -> None:  # noqa: F811
    agent = Agent(binary)
    assert agent.ok("status")["echo"] is None
    for wrong in ({}, {"address": 7}, {"address": "here"}, {"address": "127.0.0.1", "prefix": 33}):
        assert not agent.call("echo", **wrong)["ok"], wrong
    assert agent.ok("status")["echo"] is None
    agent.close()


def test_a_datagram_goes_back_as_it_came(echo: Echo) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.settimeout(10)
        udp.connect(("127.0.0.1", echo.ports["udp_port"]))
        for datagram in (b"one", b"", b"x" * 1400):
            udp.send(datagram)
            assert udp.recv(2000) == datagram


def flood(echo: Echo, count: int) -> dict[str, Any]:
    """Send datagrams while the agent stands still; return its account once it knows of all."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 16 << 20)
        udp.connect(("127.0.0.1", echo.ports["udp_port"]))
        with echo.agent.stopped():
            for n in range(count):
                udp.send(n.to_bytes(64, "big"))
        for _ in Deadline.after(60, "the agent has taken them all").poll():
            account = echo.account()
            if account["datagrams"] + account["dropped"] == count:
                break
        for n in range(account["datagrams"]):
            assert int.from_bytes(udp.recv(2000, socket.MSG_DONTWAIT), "big") == n
    return account


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may have a buffer of any size")
@pytest.mark.parametrize(("count", "fits"), [(5_000, True), (20_000, False)])
def test_what_comes_while_the_agent_stands_still(echo: Echo, count: int, fits: bool) -> None:
    """What its buffer has room for is answered, the first ones first; the rest is counted."""
    account = flood(echo, count)
    assert account["unanswered"] == 0
    assert (account["dropped"] == 0) == fits
    assert account["datagrams"] >= 5_000


def test_a_numbered_stream_goes_back_and_is_checked(echo: Echo) -> None:
    for start in range(0, len(WORDS), 1000):  # not whole words
        echo.stream.sendall(WORDS[start : start + 1000])
    assert echo.back(len(WORDS)) == WORDS
    account = echo.account()
    assert (account["connections"], account["tcp_bytes"]) == (1, len(WORDS))
    assert (account["tcp_bad_bytes"], account["tcp_first_bad"]) == (0, None)


def test_what_is_wrong_on_the_way_in_is_counted_and_placed(echo: Echo) -> None:
    wrong = bytearray(WORDS)
    wrong[1023] ^= 1
    wrong[2047] ^= 1
    echo.stream.sendall(wrong)
    assert echo.back(len(wrong)) == wrong
    account = echo.account()
    assert (account["tcp_bad_bytes"], account["tcp_first_bad"]) == (2, 1023)


@pytest.mark.parametrize("mode", ["flip", "drop", "double"])
def test_damage_on_the_way_out_is_done_once(echo: Echo, mode: str) -> None:
    echo.agent.ok("echo_damage", mode=mode)
    echo.stream.sendall(WORDS[:800])
    more = {"flip": 0, "drop": -1, "double": 1}[mode]
    got = echo.back(800 + more)
    assert got != WORDS[:800]
    assert echo.account()["tcp_bad_bytes"] == 0
    echo.stream.sendall(WORDS[800:1600])
    assert echo.back(800) == WORDS[800:1600]


def test_a_closed_stream_is_seen_and_a_new_one_begins_at_zero(echo: Echo) -> None:
    assert not echo.agent.call("echo_damage", mode="melt")["ok"]
    echo.agent.ok("echo_damage", mode="close")
    echo.stream.sendall(WORDS[:8])
    assert echo.back(8) == b""
    echo.stream.close()
    echo.stream = echo.connect()
    echo.stream.sendall(WORDS)
    assert echo.back(len(WORDS)) == WORDS
    account = echo.account()
    assert (account["connections"], account["tcp_bad_bytes"]) == (2, 0)
    assert not echo.agent.call("echo", address="127.0.0.1")["ok"], "one is enough"
