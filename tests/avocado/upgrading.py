# SPDX-License-Identifier: GPL-2.0-or-later
"""What the tests of an upgrade have in common, whatever the guest.

A mixin: avocado finds tests without importing them, by classes that name avocado.Test themselves.
"""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

from lab import mechanisms, options, pipeline
from lab.base.deadline import Deadline
from lab.base.errors import PreconditionError
from lab.base.layout import Layout
from lab.base.record import as_json
from lab.mechanisms import Asked, Flip, Gift
from lab.mechanisms.move import Interfere
from lab.model import Outcome, Result
from lab.vm.qemu import Qemu, Vm

#: What the second QEMU itself needs, as a share of a guest of 1 GiB, and the noise of a busy host.
SECOND_QEMU = 0.15


#: A guest that stands still for longer is stuck (ms).  A busy host's speed is no test's business.
_STUCK_MS = 120_000


def kill_new(_old: Vm, new: Vm) -> None:
    """Kill the new QEMU; one that the old QEMU starts, as soon as it is there."""
    for _ in Deadline.after(30, "the new QEMU is there").poll(0.001):
        if new.pid:
            os.kill(new.pid, signal.SIGKILL)
            return


def stop_new(_old: Vm, new: Vm) -> None:
    """Stop the new QEMU as soon as it is there: it hangs."""
    for _ in Deadline.after(30, "the new QEMU is there").poll(0.001):
        if new.pid:
            os.kill(new.pid, signal.SIGSTOP)
            return


@contextmanager
def _told(changed: Callable[[dict[str, Any]], dict[str, Any]]) -> Iterator[None]:
    """Change what the old QEMU is told when it is asked for a flip."""
    arguments = Flip.arguments

    def otherwise(self: Flip, old: Qemu, new: Qemu, asked: Asked) -> dict[str, Any]:
        return changed(arguments(self, old, new, asked))

    with mock.patch.object(Flip, "arguments", otherwise):
        yield


def held() -> AbstractContextManager[None]:
    """Let flip wait, with the new QEMU ready and the guest running, for somebody to say go on."""
    return _told(lambda told: {**told, "hold": True})


def hung() -> AbstractContextManager[None]:
    """Let flip start a program that stops itself, which no busy host makes too late."""
    return _starts("kill -STOP $$")


def dying() -> AbstractContextManager[None]:
    """Let flip start a program that dies, with SIGKILL."""
    return _starts("kill -KILL $$")


def _starts(script: str) -> AbstractContextManager[None]:
    shell = ["/bin/sh", "-c", script]
    return _told(lambda told: {**told, "exec": [*shell, *told["exec"]]})


def frozen() -> AbstractContextManager[None]:
    """Stop the new QEMU that gift is to move the guest to: it takes nothing until it is killed."""
    arguments = Gift.arguments

    def otherwise(self: Gift, old: Qemu, new: Qemu, asked: Asked) -> dict[str, Any]:
        os.kill(new.pid, signal.SIGSTOP)
        return arguments(self, old, new, asked)

    return mock.patch.object(Gift, "arguments", otherwise)


#: These start the new QEMU while the guest runs.  What it changes meanwhile is there three times at
#: the end: the page as it was, which the kernel keeps with its huge page; the old QEMU's; and the
#: new one's.  How much that is, is a matter of time.
_EARLY = {"flip", "transplant"}
#: No more than that, however long it takes.
_DOUBLED = 2.3

#: Freed in pieces, a huge page stays the kernel's until memory is short (docs/architecture.md).
_OTHERS = {"postcopy": 2.0}


class Upgrading:
    """Upgrades the guest that the test class names, and checks what every upgrade must keep."""

    timeout = 600
    guest = "tiny"
    ram = "1G"
    touch = "75%"
    cpus = 1
    dirty_rate = "50M"

    def upgrade(
        self,
        mechanism: str,
        memory_ratio: float,
        interfere: Interfere[Vm] | None = None,
        **more: object,
    ) -> Result:
        """Upgrade the guest and return the result; cancel when this host cannot do it.

        `more` are options of ``pageflip upgrade``, with ``_`` for ``-``.  What the guest changes
        while the new QEMU starts comes on top of `memory_ratio`.
        """
        early = mechanism in _EARLY
        most = max(memory_ratio, _DOUBLED) if early else memory_ratio
        asked = {
            "guest": self.guest,
            "ram": self.ram,
            "touch": self.touch,
            "cpus": self.cpus,
            "machine": "",
            "dirty_rate": self.dirty_rate,
            "accel": "auto",
            "old": "old",
            "new": "new",
            "limit_pause_ms": _STUCK_MS,
        }
        asked = {key: self.params.get(key, default=value) for key, value in asked.items()}
        asked |= {key: value for key, value in more.items() if value}
        wanted = options.of(mechanism=mechanism, limit_memory_ratio=most, **asked)
        layout = Layout.default().into(Path(self.outputdir))
        try:
            result = pipeline.upgrade_once(layout, wanted, interfere)
        except PreconditionError as error:
            self.cancel(f"{error.message} {error.hint}")
        self.log.info("again: %s", wanted.reproduce)
        for line in as_json(result).splitlines():
            self.log.info(line)
        if early and result.outcome is Outcome.UPGRADED:
            changed = self.moved(result, "copied_bytes")
            most = memory_ratio + 2 * changed / result.memory.before_bytes
            self.assertLessEqual(result.memory.ratio, most, f"{changed} bytes were changed")
        return result

    def new_killed(self, mechanism: str, memory_ratio: float, **more: object) -> Result:
        """Upgrade, and kill the new QEMU before it has the guest, however late a busy host is.

        flip waits for that, gift's does nothing until then, and what flip-late starts kills itself.
        """
        late = mechanism.endswith("flip-late")
        before = {"flip": held, "gift": frozen}.get(mechanism, dying if late else nullcontext)
        with before():
            return self.upgrade(mechanism, memory_ratio, None if late else kill_new, **more)

    def passes(
        self,
        mechanism: str,
        memory_ratio: float,
        **more: object,
    ) -> Result:
        """Upgrade, and assert integrity, the pause and the memory."""
        result = self.upgrade(mechanism, memory_ratio, **more)
        self.assertEqual(result.reasons, [])
        self.assertEqual(result.outcome, Outcome.UPGRADED)
        self.assertEqual(result.integrity.bad_pages, 0)
        self.assertEqual(result.integrity.pages_total * 4096, result.touched_bytes)
        self.assertGreaterEqual(result.integrity.pages_checked_after, result.integrity.pages_total)
        self.assertGreater(result.integrity.pages_dirtied, 0)
        return result

    def memory_ratio(self, name: str, ram: str) -> float:
        """Return how much of the guest's RAM that mechanism may take, with QEMU's own memory."""
        mechanism = mechanisms.named(name)
        ratio = 2.0 if mechanism and mechanism.doubles else _OTHERS.get(name, 1.0)
        # What is not the guest's RAM weighs more the smaller that is.
        return ratio + SECOND_QEMU * max(1.0, 2**30 / options.size(ram))

    def moved(self, result: Result, counter: str) -> int:
        """Return a counter's sum over all blocks (bytes)."""
        return sum(getattr(block, counter) for block in result.blocks)
