# SPDX-License-Identifier: GPL-2.0-or-later
"""The lab's end of the guest's network: what is sent, what comes back, and what that means.

`Traffic` observes, in a thread of its own.  `figures` and `problems` are pure.
"""

from __future__ import annotations

import selectors
import socket
import struct
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from lab.base.deadline import Deadline
from lab.measure.downtime import MARGIN_NS, Window, longest_gap_ms

_TICK_NS = 1_000_000
#: A datagram is its number, and padding to the size of a small request.
_NUMBER = struct.Struct(">Q")
_DATAGRAM_BYTES = 64
#: The stream is such numbers: this many of them each tick, 1 MB/s.
_WORDS = 128
#: So much may be on its way; more is not sent while the guest stands still.
_UNDERWAY_BYTES = 128 * 1024
_CHUNK = 65536
#: asm-generic/socket.h and linux/sock_diag.h
_SO_RCVBUFFORCE, _SO_MEMINFO = 33, 55
_MEMINFO, _MEMINFO_DROPS = struct.Struct("9I"), 8
#: The kernel allows for twice as much; a small datagram costs 768 of it.
_ROOM_BYTES = 4 * 2**20
#: What the stream may take to come back in the end, and the last datagrams (s).
_DRAIN_S, _LAST_S = 30.0, 0.3

FIGURES: Mapping[str, str] = {
    "gap_ms": "longest time without an answered datagram, during the upgrade and a second after it",
    "gap_before_ms": "the same in the second before the upgrade: the noise of this host",
    "datagrams": "sent, one a millisecond",
    "lost": "of them never answered",
    "lost_there": "on the way to the guest's socket: tap, QEMU, the guest's driver",
    "lost_guest": "by the guest: no room in its socket's buffer, or no answer could be sent",
    "lost_back": "on the way back, up to the lab's socket",
    "lost_lab": "by the lab: not sent, or no room in its own socket's buffer",
    "tap_dropped": "packets of any kind for which the taps had no room",
    "doubled": "answers that came twice",
    "tcp_gap_ms": "longest time in which nothing came back on the TCP connection",
    "tcp_bytes": "came back on the TCP connection, as they were sent",
}


@dataclass(frozen=True)
class Echo:
    """An answered datagram: its number and when it came (ns, the host's monotonic clock)."""

    n: int
    host_ns: int


@dataclass
class Seen:
    """What the lab's end saw."""

    sent: int = 0
    #: Of these, what the lab's own kernel refused to send, and had no room for when it came back.
    unsent: int = 0
    dropped: int = 0
    echoes: list[Echo] = field(default_factory=list)
    tcp_sent: int = 0
    tcp_back: int = 0
    tcp_arrivals: list[int] = field(default_factory=list)  # ns
    #: What was the end of the TCP connection, in words.
    tcp_broken: str = ""


@dataclass(frozen=True)
class GuestAccount:
    """What the guest's end saw of the TCP stream, and of the datagrams."""

    tcp_bytes: int
    tcp_bad_bytes: int
    tcp_first_bad: int | None
    #: Datagrams that came out of its socket; what had no room in there; what could not go back.
    datagrams: int
    dropped: int
    unanswered: int


def figures(
    seen: Seen, guest: GuestAccount, tap_dropped: int, window: Window
) -> dict[str, int | float | None]:
    """Return what was measured; its keys are those of FIGURES."""
    arrivals = [echo.host_ns for echo in seen.echoes]
    answered = {echo.n for echo in seen.echoes}
    end_ns = window.end_ns + MARGIN_NS
    return {
        "gap_ms": longest_gap_ms(arrivals, window.start_ns, end_ns),
        "gap_before_ms": longest_gap_ms(
            [at for at in arrivals if at <= window.start_ns],
            window.start_ns - MARGIN_NS,
            window.start_ns,
        ),
        "datagrams": seen.sent,
        "lost": seen.sent - len(answered),
        "lost_there": seen.sent - seen.unsent - guest.dropped - guest.datagrams,
        "lost_guest": guest.dropped + guest.unanswered,
        "lost_back": guest.datagrams - guest.unanswered - seen.dropped - len(seen.echoes),
        "lost_lab": seen.unsent + seen.dropped,
        "tap_dropped": tap_dropped,
        "doubled": len(seen.echoes) - len(answered),
        "tcp_gap_ms": longest_gap_ms(seen.tcp_arrivals, window.start_ns, end_ns),
        "tcp_bytes": seen.tcp_back,
    }


def problems(seen: Seen, guest: GuestAccount, window: Window) -> list[str]:
    """Say what was lost that no network may lose; a datagram may be."""
    underway = seen.tcp_sent - seen.tcp_back
    missing = seen.tcp_sent - guest.tcp_bytes
    checks = {
        seen.tcp_broken: bool(seen.tcp_broken),
        f"{underway} of {seen.tcp_sent} bytes of the TCP stream never came back": underway > 0
        and not seen.tcp_broken,
        f"the guest has got {guest.tcp_bytes} of the {seen.tcp_sent} bytes of the TCP "
        "stream": missing != 0 and not seen.tcp_broken,
        f"the guest got {guest.tcp_bad_bytes} wrong bytes on the TCP stream, the first at "
        f"{guest.tcp_first_bad}": guest.tcp_bad_bytes > 0,
        "no datagram has been answered since the upgrade": not any(
            echo.host_ns > window.end_ns for echo in seen.echoes
        ),
    }
    return [text for text, wrong in checks.items() if wrong]


def words(first: int, count: int) -> bytes:
    """Return `count` of the stream's numbers, from `first` on."""
    return struct.pack(f">{count}Q", *range(first, first + count))


def difference(position: int, sent: bytes, got: bytes) -> str:
    """Say where the stream that came back differs from what was sent, or return an empty string.

    `sent` is at least as long as `got`; both begin at `position`.
    """
    if got == sent[: len(got)]:
        return ""
    where = next(i for i, byte in enumerate(got) if byte != sent[i])
    return (
        f"the TCP stream came back changed at byte {position + where}: "
        f"{got[where : where + 16].hex()} instead of {sent[where : where + 16].hex()}"
    )


def make_room(end: socket.socket) -> None:
    """Give a socket a buffer for what comes while nobody here reads; or what this user may have."""
    try:
        end.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _ROOM_BYTES)
    except PermissionError:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _ROOM_BYTES)


def drops(end: socket.socket) -> int:
    """Return how many datagrams a socket's buffer had no room for."""
    info = end.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, _MEMINFO.size)
    return int(_MEMINFO.unpack(info)[_MEMINFO_DROPS])


class Traffic:
    """Sends and receives until it is told to finish.  Owns its two connected sockets."""

    def __init__(self, datagrams: socket.socket, stream: socket.socket) -> None:
        self._datagrams = datagrams
        self._stream = stream
        self._seen = Seen()
        self._next_word = 0
        self._ready = b""  # to be sent
        self._underway = bytearray()  # sent, not back yet
        self._sending = True
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="network", daemon=True)
        make_room(datagrams)
        datagrams.setblocking(False)
        stream.setblocking(False)
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def wait(self, deadline: Deadline, alive: Callable[[], None]) -> None:
        """Wait until both have been answered once; raise DeadlineError or what `alive` raises."""
        for _ in deadline.poll():
            alive()
            if self._seen.echoes and self._seen.tcp_back:
                return

    def finish(self) -> Seen:
        """Send nothing more, wait for what is underway, and return what was seen."""
        self._sending = False
        until = time.monotonic() + _DRAIN_S
        while self._open and self._underway and time.monotonic() < until:
            time.sleep(0.01)
        time.sleep(_LAST_S)
        self.close()
        self._seen.dropped = drops(self._datagrams)
        return self._seen

    def close(self) -> None:
        """End the thread."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    @property
    def _open(self) -> bool:
        return not self._seen.tcp_broken

    def _run(self) -> None:
        with selectors.DefaultSelector() as ends:
            ends.register(self._datagrams, selectors.EVENT_READ, self._take_datagrams)
            if self._open:
                ends.register(self._stream, selectors.EVENT_READ, self._take_stream)
            self._exchange(ends)

    def _exchange(self, ends: selectors.BaseSelector) -> None:
        tick = time.monotonic_ns()
        while not self._stop.is_set():
            left = max(0, tick - time.monotonic_ns()) / 1e9
            for key, _ in ends.select(left):
                key.data()
            if not self._open and self._stream in ends.get_map():
                ends.unregister(self._stream)
            now = time.monotonic_ns()
            if now >= tick:
                # What this thread slept through is not made up for: a burst would hide a gap.
                tick = max(tick + _TICK_NS, now)
                if self._sending:
                    self._send_datagram()
                    self._send_stream()

    def _send_datagram(self) -> None:
        number = self._seen.sent
        self._seen.sent += 1
        try:
            self._datagrams.send(_NUMBER.pack(number).ljust(_DATAGRAM_BYTES, b"\0"))
        except OSError:
            self._seen.unsent += 1  # the guest's address is not known just now

    def _take_datagrams(self) -> None:
        while True:
            try:
                datagram = self._datagrams.recv(_CHUNK)
            except BlockingIOError:
                return
            except OSError:
                continue  # an earlier one could not be delivered
            self._seen.echoes.append(Echo(_NUMBER.unpack_from(datagram)[0], time.monotonic_ns()))

    def _send_stream(self) -> None:
        if not self._open or len(self._underway) > _UNDERWAY_BYTES:
            return
        if not self._ready:
            self._ready = words(self._next_word, _WORDS)
            self._next_word += _WORDS
        try:
            count = self._stream.send(self._ready)
        except BlockingIOError:
            return
        except OSError as error:
            self._broken(error)
            return
        self._underway += self._ready[:count]
        self._ready = self._ready[count:]
        self._seen.tcp_sent += count

    def _take_stream(self) -> None:
        try:
            got = self._stream.recv(_CHUNK)
        except BlockingIOError:
            return
        except OSError as error:
            self._broken(error)
            return
        if not got:
            self._seen.tcp_broken = "the TCP connection was closed from the guest's side"
            return
        sent = bytes(self._underway[: len(got)])
        if len(got) > len(sent):
            extra = len(got) - len(sent)
            self._seen.tcp_broken = f"{extra} bytes more came back on the TCP stream than were sent"
            return
        self._seen.tcp_broken = difference(self._seen.tcp_back, sent, got)
        if self._open:
            self._seen.tcp_back += len(got)
            self._seen.tcp_arrivals.append(time.monotonic_ns())
            del self._underway[: len(got)]

    def _broken(self, error: OSError) -> None:
        self._seen.tcp_broken = f"the TCP connection broke: {error.strerror or error}"
