# SPDX-License-Identifier: GPL-2.0-or-later
"""The network workload's figures and problems, and its traffic over the loopback."""

from __future__ import annotations

import dataclasses
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab.base.deadline import Deadline
from lab.measure.downtime import Window
from lab.workloads import traffic
from lab.workloads.traffic import Echo, GuestAccount, Seen, Traffic, difference, figures, problems

MS = 1_000_000
WINDOW = Window(5000 * MS, 5100 * MS)


def seen(pause_ms: int = 0) -> Seen:
    """Four seconds before the upgrade to two after it; nothing for a while from its start on."""
    quiet = range(5000, 5000 + pause_ms)
    echoes = [Echo(n, n * MS) for n in range(1000, 7000) if n not in quiet]
    arrivals = [echo.host_ns for echo in echoes]
    return Seen(sent=7000, echoes=echoes, tcp_sent=800, tcp_back=800, tcp_arrivals=arrivals)


def guest(
    tcp_bytes: int = 800, tcp_bad_bytes: int = 0, tcp_first_bad: int | None = None, **more: int
) -> GuestAccount:
    counted = {"datagrams": 6000, "dropped": 0, "unanswered": 0, **more}
    return GuestAccount(tcp_bytes, tcp_bad_bytes, tcp_first_bad, **counted)


GOOD = guest()


def measured(seen: Seen, guest: GuestAccount = GOOD) -> dict[str, int | float | None]:
    return figures(seen, guest, 0, WINDOW)


def test_every_figure_is_explained() -> None:
    assert measured(seen()).keys() == traffic.FIGURES.keys()


def test_a_pause_is_a_gap_and_what_was_sent_meanwhile_is_lost() -> None:
    found = measured(seen(200))
    assert (found["gap_ms"], found["gap_before_ms"], found["tcp_gap_ms"]) == (201, 1, 201)
    assert (found["datagrams"], found["lost"], found["doubled"]) == (7000, 1200, 0)
    assert problems(seen(200), GOOD, WINDOW) == []


def test_an_answer_that_came_twice_is_counted_once() -> None:
    twice = seen()
    twice.echoes.append(Echo(3000, 5050 * MS))
    found = measured(twice)
    assert (found["lost"], found["doubled"]) == (1000, 1)


def test_figures_of_nothing_are_not_known() -> None:
    found = measured(Seen())
    assert (found["gap_ms"], found["gap_before_ms"], found["tcp_gap_ms"]) == (None, None, None)


@pytest.mark.parametrize(
    ("where", "lab", "told"),
    [
        ("lost_there", {}, {"datagrams": 6000}),
        ("lost_guest", {}, {"datagrams": 6000, "dropped": 1000}),
        ("lost_guest", {}, {"datagrams": 7000, "unanswered": 1000}),
        ("lost_back", {}, {"datagrams": 7000}),
        ("lost_lab", {"unsent": 1000}, {"datagrams": 6000}),
        ("lost_lab", {"dropped": 1000}, {"datagrams": 7000}),
    ],
)
def test_each_loss_has_its_place(where: str, lab: dict[str, int], told: dict[str, int]) -> None:
    """A thousand are lost, by what one of the counters says."""
    found = measured(dataclasses.replace(seen(), **lab), guest(**told))
    places = ("lost_there", "lost_guest", "lost_back", "lost_lab")
    assert {place: found[place] for place in places if found[place]} == {where: found["lost"]}


@given(st.lists(st.integers(0, 50), min_size=6, max_size=6))
def test_the_places_account_for_every_loss(counts: list[int]) -> None:
    unsent, there, no_room, unanswered, back, no_room_here = counts
    got = 900 - unsent - there - no_room
    echoes = [Echo(n, n * MS) for n in range(got - unanswered - back - no_room_here)]
    found = measured(
        Seen(sent=900, echoes=echoes, unsent=unsent, dropped=no_room_here),
        guest(datagrams=got, dropped=no_room, unanswered=unanswered),
    )
    assert (found["lost_there"], found["lost_back"]) == (there, back)
    assert found["lost_guest"] == no_room + unanswered
    assert found["lost_lab"] == unsent + no_room_here
    assert found["lost"] == sum(counts)


@pytest.mark.parametrize(
    ("guest", "change", "says"),
    [
        (
            GOOD,
            {"tcp_broken": "the TCP connection broke: reset"},
            "the TCP connection broke: reset",
        ),
        (GOOD, {"tcp_back": 792}, "8 of 800 bytes of the TCP stream never came back"),
        (guest(792), {}, "the guest has got 792 of the 800 bytes"),
        (guest(800, 3, 17), {}, "the guest got 3 wrong bytes on the TCP stream, the first"),
        (GOOD, {"echoes": [Echo(1, 4000 * MS)]}, "no datagram has been answered since"),
    ],
)
def test_what_no_network_may_lose(
    guest: GuestAccount, change: dict[str, object], says: str
) -> None:
    found = problems(Seen(**{**vars(seen()), **change}), guest, WINDOW)  # type: ignore[arg-type]
    assert len(found) == 1
    assert found[0].startswith(says)


def test_a_broken_connection_is_told_once() -> None:
    broken = Seen(**{**vars(seen()), "tcp_broken": "it broke", "tcp_back": 700})
    assert problems(broken, guest(650), WINDOW) == ["it broke"]


def test_a_difference_is_placed_in_the_stream() -> None:
    sent = traffic.words(10, 4)
    assert difference(80, sent, sent[:20]) == ""
    assert "at byte 97: " in difference(80, sent, sent[:17] + b"\xff" + sent[18:])


Change = Callable[[bytes], bytes]


def tcp_server(listener: socket.socket, change: Change, stop: threading.Event) -> None:
    peer, _ = listener.accept()
    with peer, suppress(ConnectionResetError):  # who has seen enough hangs up
        total = 0
        while not stop.is_set() and (got := peer.recv(4096)):
            total += len(got)
            peer.sendall(change(got) if total > 20_000 else got)
            if total > 20_000 and change(got) == b"":
                return


@contextmanager
def talking(change: Change) -> Iterator[Traffic]:
    stop = threading.Event()
    with ExitStack() as stack:
        echo = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        echo.bind(("127.0.0.1", 0))
        echo.settimeout(0.2)
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))

        def udp_server() -> None:
            while not stop.is_set():
                try:
                    data, peer = echo.recvfrom(2000)
                except TimeoutError:
                    continue
                echo.sendto(data, peer)

        threads = [
            threading.Thread(target=udp_server, daemon=True),
            threading.Thread(target=tcp_server, args=(listener, change, stop), daemon=True),
        ]
        for thread in threads:
            thread.start()
        datagrams = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        datagrams.connect(echo.getsockname())
        stream = stack.enter_context(socket.create_connection(listener.getsockname()))
        both = Traffic(datagrams, stream)
        both.start()
        try:
            yield both
        finally:
            both.close()
            stop.set()
            stream.close()
            for thread in threads:
                thread.join(5)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may have a buffer of any size")
@pytest.mark.parametrize(("count", "fits"), [(5_000, True), (20_000, False)])
def test_what_comes_while_nobody_reads(count: int, fits: bool) -> None:
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as far,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as near,
        socket.socket(socket.AF_INET, socket.SOCK_STREAM) as stream,
    ):
        far.bind(("127.0.0.1", 0))
        near.bind(("127.0.0.1", 0))
        near.connect(far.getsockname())
        Traffic(near, stream)
        for n in range(count):
            far.sendto(n.to_bytes(64, "big"), near.getsockname())
        got = 0
        with suppress(BlockingIOError):
            while near.recv(2000):
                got += 1
        assert got + traffic.drops(near) == count
        assert (got == count) == fits


def test_what_the_lab_cannot_send_is_counted() -> None:
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as connected_to_nobody,
        socket.socket(socket.AF_INET, socket.SOCK_STREAM) as stream,
    ):
        both = Traffic(connected_to_nobody, stream)
        both._send_datagram()
    assert (both._seen.sent, both._seen.unsent) == (1, 1)


def enough(both: Traffic) -> None:
    both.wait(Deadline.after(10, "both answer"), lambda: None)
    for _ in Deadline.after(10, "enough has been sent, or it broke").poll():
        if both._seen.tcp_back > 40_000 or both._seen.tcp_broken:
            return


def test_traffic_that_comes_back_whole() -> None:
    with talking(lambda got: got) as both:
        enough(both)
        found = both.finish()
    assert found.tcp_broken == ""
    assert found.tcp_back == found.tcp_sent > 40_000
    assert len({echo.n for echo in found.echoes}) > 20


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda got: bytes([got[0] ^ 1]) + got[1:], "came back changed at byte"),
        (lambda got: got[1:] or got, "came back changed at byte"),
        (lambda got: got[:1] + got, "byte"),  # one more than was sent, or from there on another
        (lambda _got: b"", "TCP connection"),  # closed or reset
    ],
    ids=["changed", "lost", "doubled", "closed"],
)
def test_traffic_that_does_not(change: Change, says: str) -> None:
    with talking(change) as both:
        enough(both)
        found = both.finish()
    assert says in found.tcp_broken
