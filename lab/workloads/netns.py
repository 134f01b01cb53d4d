# SPDX-License-Identifier: GPL-2.0-or-later
"""A network of the lab's own: a namespace with a bridge in it, and taps on the bridge.

A child process holds the namespace and passes descriptors out of it: taps, which QEMU gets by
number, and sockets, with which the lab talks to the guest.  An ordinary user gets a user namespace
around it.  Nothing of this has a name on the host or needs to be taken down: the kernel removes it
with its last descriptor, however the lab ends.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from lab.base import process
from lab.base.errors import CannotTellError, PreconditionError

#: Documentation addresses (RFC 5737); nothing routes them, and the namespace has no way out.
HOST, GUEST, PREFIX = "192.0.2.1", "192.0.2.2", 24

#: The child has only Python to start (s).
_ANSWER_S = 30.0
_LINE = 65536


class Segment:
    """The bridge, as the lab sees it.  Everything it gives is closed with it."""

    def __init__(
        self,
        control: socket.socket,
        child: subprocess.Popen[bytes],
        log: Path,
        stack: ExitStack,
    ) -> None:
        self._control = control
        self._child = child
        self._log = log
        self._stack = stack

    def tap(self) -> int:
        """Return the descriptor of a new tap on the bridge."""
        descriptor = self._ask("tap")
        self._stack.callback(os.close, descriptor)
        return descriptor

    def socket(self, kind: socket.SocketKind) -> socket.socket:
        """Return an IPv4 socket in the namespace, not connected yet."""
        return self._stack.enter_context(socket.socket(fileno=self._ask(kind.name)))

    def dropped(self) -> int:
        """Return how many packets, of any kind, the taps had no room for until now."""
        self._control.send(b"dropped")
        return int(self.answer()[0]["dropped"])

    def answer(self) -> tuple[dict[str, Any], list[int]]:
        """Return the child's next answer; raise CannotTellError with what it said if it ended."""
        try:
            said, descriptors, _, _ = socket.recv_fds(self._control, _LINE, 1)
        except TimeoutError:
            raise CannotTellError(
                f"the network's process has not answered after {_ANSWER_S:g} s",
                hint=f"its output: {self._log}",
            ) from None
        except ConnectionError:
            said, descriptors = b"", []
        if not said:
            raise self._ended()
        return json.loads(said), descriptors

    def _ended(self) -> CannotTellError:
        """Return why the child has ended: unshare(1) was refused, or there is a bug."""
        with suppress(subprocess.TimeoutExpired):
            self._child.wait(_ANSWER_S)  # it may not have said yet why
        printed = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        last = printed[-1] if printed else "it said nothing"
        if last.startswith("unshare:"):
            return PreconditionError(
                f"this user cannot make a network namespace here: {last}",
                hint="run as root, or allow user namespaces (user.max_user_namespaces, "
                "kernel.unprivileged_userns_clone, kernel.apparmor_restrict_unprivileged_userns)",
            )
        return CannotTellError(
            f"the network's process has ended: {last}", hint=f"its output: {self._log}"
        )

    def _ask(self, what: str) -> int:
        self._control.send(what.encode())
        answer, descriptors = self.answer()
        if not descriptors:
            raise PreconditionError(
                f"no {what} can be had in the lab's network namespace: {answer['error']}",
                hint=answer["hint"],
            )
        return descriptors[0]


@contextmanager
def segment(log: Path) -> Iterator[Segment]:
    """Make the network for the block; the child's output goes to `log`.

    Raises PreconditionError when this user may not.
    """
    mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ExitStack() as stack:
        stack.enter_context(mine)
        mine.settimeout(_ANSWER_S)
        user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
        python = [sys.executable, "-P", "-m", "lab.workloads.netnschild", str(theirs.fileno())]
        with theirs:
            child = stack.enter_context(
                process.spawned(
                    ["unshare", *user, "--net", "--", *python], log=log, pass_fds=[theirs.fileno()]
                )
            )
        made = Segment(mine, child, log, stack)
        answer, _ = made.answer()
        if "error" in answer:
            raise PreconditionError(
                f"no bridge can be made in a network namespace here: {answer['error']}",
                hint=answer["hint"],
            )
        yield made
