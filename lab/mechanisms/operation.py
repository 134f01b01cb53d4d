# SPDX-License-Identifier: GPL-2.0-or-later
"""A move that the lab makes itself: it forks the old QEMU, brings the guest over, and commits.

Up to the commit the old QEMU has everything, and each step can be taken back.  The commit is the
command ``cont`` to the new QEMU: just before it, all threads of the old one are held by ptrace(2),
so that no other monitor can set it going either, and after it that one is killed.  Exactly one of
both runs the guest at every instant, and until the commit the old one is whole.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from lab.base.deadline import Deadline
from lab.base.errors import LabError
from lab.base.layout import Layout
from lab.base.process import Foreign
from lab.mechanisms.base import Asked, Driven, Look, set_capabilities, timed
from lab.transplant import devices, helper, stream
from lab.transplant.blocks import RamBlock
from lab.transplant.channel import HelperError
from lab.transplant.helper import Differing, Helper
from lab.transplant.taps import StandIns
from lab.vm import tracelog
from lab.vm.monitor import QmpError
from lab.vm.qemu import Qemu

_PAGE = 4096
#: How long the guest may stand still until it is given up, unless asked otherwise (ms).
_PATIENCE_MS = 2000
#: What the guest may change while the new QEMU starts is an eighth of its memory, and at least
#: this: it is in memory twice until the commit (bytes).
_MAX_CHANGED = 128 * 2**20
_SHARE = 8
_STDERR = 2
#: How much of what a new QEMU says is read (bytes).
_SAID_MOST = 65536


class Operation(Driven):
    """One move of a guest from one QEMU to the next."""

    def __init__(self, old: Qemu, new: Qemu, asked: Asked, *, still: bool = False) -> None:
        """`still` is whether the guest has to stand still for the fork as well."""
        self._old, self._new, self._asked, self._still = old, new, asked, still
        self._stack = ExitStack()
        self._helper: Helper | None = None
        self._taps: StandIns | None = None
        self._blocks: list[RamBlock] = []
        self._moved: list[Differing] = []
        self._us: dict[str, int] = {}
        self._filtered = False
        #: Shared memory, by the blocks' names: the old QEMU's descriptors, and the numbers by which
        #: the new one has them until the guest runs there.
        self._files: dict[str, int] = {}
        self._file_places: dict[str, int] = {}
        self._began = False
        #: What the new QEMU says until the commit (a file in memory).
        self._words = self._stack.enter_context(devices.memory_file("pageflip-words"))[0]
        #: By which numbers it gets descriptors with the guest, and by which it has them until then.
        self._places: dict[int, int] = {}
        #: Whether the guest runs: a paused one arrives paused.
        self._ran = old.state() == "running"
        self._stopped = False
        self._committed = False
        self._settled = False
        self._rehearsed = False

    def begin(self) -> None:
        """Start the new QEMU as a child of the old one; raise when the old one is left as it was.

        The guest runs on, but for the fork itself.
        """
        try:
            devices.check_blockers(self._old)
            self._configuration = devices.configuration(self._old)
            self._blocks = devices.ram_blocks(self._old)
            self._helper = self._started()
            found = self._helper.examine(self._old.pid, self._blocks)
            self._filtered = found.filtered
            self._files = {
                block.name: file
                for block, file in zip(self._blocks, found.files, strict=True)
                if file
            }
            words = [*self._new.machine.argv(), "-S"]
            # By its full path: it is opened as the old QEMU sees it.
            words[0] = str(Path(words[0]).absolute())
            self._began = True
            with self._lent(self._descriptors()) as descriptors, self._standing_still():
                made = self._helper.start(words, descriptors, dry=False)
            self._us |= {"fork-us": made.fork_us, "held-us": made.held_us}
            self._us["become-us"] = made.become_us
            self._begun_ns = time.monotonic_ns()
        except BaseException:
            self.undo()
            self.close()
            raise

    def _started(self) -> Helper:
        log = self._old.log.parent / "transplant.log"
        return self._stack.enter_context(helper.started(Layout.default(), log))

    @contextmanager
    def _standing_still(self) -> Iterator[None]:
        """Let the guest stand still and its disks have nothing to do, if that is needed."""
        if not (self._still and self._ran):
            yield
            return
        self._old.monitor.execute("stop")
        try:
            yield
        finally:
            self._old.monitor.execute("cont")

    def _descriptors(self) -> Mapping[int, int]:
        """Return by which number the new QEMU is to have which descriptor of the lab's.

        Its taps and its standard error are others until the guest runs there.
        """
        numbers = self._new.machine.descriptors
        self._taps = StandIns(numbers, self._old.pid)
        self._stack.callback(self._taps.close)
        self._places = dict(self._taps.places)
        found = {one: self._taps.instead.get(one, one) for one in numbers}
        if Path(f"/proc/{self._old.pid}/fd/{_STDERR}").exists():
            self._places[_STDERR] = max([_STDERR, *numbers, *self._places.values()]) + 1
            found[_STDERR] = self._words
        free = max([_STDERR, *numbers, *self._places.values()]) + 1
        self._file_places = {name: free + i for i, name in enumerate(self._files)}
        return found

    @contextmanager
    def _lent(self, descriptors: Mapping[int, int]) -> Iterator[Mapping[int, int]]:
        """Let the old QEMU have descriptors of the lab's for the fork.

        Yields by which number the new QEMU is to have which of the old one's.
        """
        assert self._taps
        monitor = self._old.monitor
        given = {to: monitor.execute_with(one, "add-fd") for to, one in descriptors.items()}
        found = {to: int(told["fd"]) for to, told in given.items()} | self._taps.real
        if _STDERR in self._places:
            found[self._places[_STDERR]] = _STDERR
        found |= {place: self._files[name] for name, place in self._file_places.items()}
        try:
            yield found
        finally:
            for told in given.values():
                monitor.execute("remove-fd", {"fdset-id": told["fdset-id"]})

    def finish(self, look: Look, resuming: Look) -> None:
        """Bring the guest over and commit; raises before the commit only."""
        assert self._helper
        self._us["start-us"] = (time.monotonic_ns() - self._begun_ns) // 1000
        look(self._new)
        set_capabilities(self._new, ("events",))
        theirs = devices.ram_blocks(self._new)
        with timed(self._us, "handshake-us"):
            self._helper.adopt(theirs, self._file_places)
        self._check_changed(self._helper.count())
        # What has changed so far is brought over now, and once more with the rest when the guest
        # stands still: to write to a page for the first time takes seven times as long.
        self._helper.copy()
        patience = self._asked.patience_ms or _PATIENCE_MS
        deadline = Deadline.after(patience / 1e3, "the guest stands still for the upgrade")
        with timed(self._us, "stop-us"):
            if self._ran:
                self._stopped = True
                self._old.monitor.execute("stop", deadline=deadline)
        with timed(self._us, "device-save-us"):
            state = devices.save(self._old, deadline, live=True)
        with timed(self._us, "changes-us"):
            _, self._moved = self._helper.copy()
        self._check_untouched(self._moved)
        if self._asked.verify:
            self._verify(self._helper.verify())
        deadline.check()
        with timed(self._us, "device-load-us"):
            devices.load(
                self._new, stream.complete(state, self._configuration, self._blocks), deadline
            )
        if self._asked.rehearse:
            self.undo()
            self._rehearsed = True
            return
        self._commit(self._helper, deadline, resuming)

    def _check_changed(self, found: Sequence[Differing]) -> None:
        changed = sum(one.different for one in found) * _PAGE
        private = sum(block.most for block in self._blocks if block.name not in self._files)
        most = max(private // _SHARE, _MAX_CHANGED)
        if changed > most:
            raise HelperError(
                f"the guest has changed {changed // 2**20} MiB since the fork, and not more than "
                f"{most // 2**20} MiB are to be in memory twice"
            )

    def _check_untouched(self, found: Sequence[Differing]) -> None:
        """Raise HelperError if the new QEMU has changed shared memory before it had the guest.

        What the guest has written there since would be lost with the commit.
        """
        for block, one in zip(self._blocks, found, strict=True):
            if block.name in self._files and one.different:
                raise HelperError(
                    f"the new QEMU has written to {one.different} pages of {block.name} already"
                )

    @staticmethod
    def _verify(found: Sequence[Differing]) -> None:
        if bad := sum(one.mismatched for one in found):
            raise HelperError(f"{bad} pages are not the same in both QEMUs")

    def _commit(self, helper: Helper, deadline: Deadline, resuming: Look) -> None:
        """Give the guest to the new QEMU.

        From the command ``cont`` on there is no way back, unless that is refused.
        """
        assert self._taps
        helper.hold(self._places)
        self._taps.remove()
        deadline.check()
        self._new.alive()
        self._new.monitor.execute("query-status", deadline=deadline)  # it answers
        resuming(self._new)
        self._committed = True
        try:
            if self._ran:
                self._new.monitor.execute("cont")
        except QmpError:  # it has answered: the guest has not run there, as somebody has its disk
            self._committed = False
            raise
        finally:
            if self._committed:
                with timed(self._us, "push-us"):
                    self._end_old(helper)
        self._settled = True
        with suppress(LabError):  # the guest has moved, whatever becomes of its huge pages
            helper.collapse(new=True)

    def _end_old(self, helper: Helper) -> None:
        """End the old QEMU, which must not go on; without the helper as well."""
        try:
            helper.finish()
        except LabError:
            Foreign(self._old.pid).kill()

    def undo(self) -> str:
        """Go back, unless the guest is the new QEMU's already."""
        if self._committed or self._settled:
            return ""
        self._settled = True
        how = "; ".join(filter(None, [self._abandon(), *self._said()])) if self._began else ""
        try:
            if self._stopped and not self._old.dead:
                self._old.monitor.execute("cont")
        finally:
            if self._began and self._helper:
                with suppress(LabError):  # the guest has all its memory, in pages of any size
                    self._helper.collapse(new=False)
        return how

    def _said(self) -> list[str]:
        """Return the last lines of what the new QEMU said."""
        text = os.pread(self._words, _SAID_MOST, 0).decode(errors="replace")
        return tracelog.words(text)[-3:]

    def _abandon(self) -> str:
        """End the new QEMU, and leave no trace of it in the old one."""
        assert self._helper
        try:
            how = self._helper.abandon()
        except LabError as error:
            how = error.message
            # With the helper the new QEMU has ended, but for one that was let go; what has ended
            # is left for another helper to clear up.
            if self._new.pid:
                Foreign(self._new.pid).kill()
            if not self._old.dead:
                with suppress(LabError):
                    again = self._started()
                    again.examine(self._old.pid, self._blocks)
                    again.abandon()
                    self._helper = again
        return how

    def close(self) -> None:
        """Go back if that has not been done, and let go of the helper."""
        with self._stack:
            self.undo()
            with suppress(OSError), self._new.log.open("ab") as log:
                log.write(os.pread(self._words, _SAID_MOST, 0))

    def info(self) -> Mapping[str, Any]:
        """Say what was done, in the form of the series' query-migrate."""
        moved: list[Differing | None] = [*self._moved] or [None] * len(self._blocks)
        return {
            "localhost": {
                "rehearsed": self._rehearsed,
                "filtered": self._filtered,
                "blocks": [
                    _told(block, found, shared=block.name in self._files)
                    for block, found in zip(self._blocks, moved, strict=True)
                ],
                **self._us,
            }
        }


def _told(block: RamBlock, found: Differing | None, *, shared: bool) -> Mapping[str, Any]:
    """Return what became of a RAM block, as the series' query-migrate tells it."""
    copied = found.different * _PAGE if found else 0
    absent = found.absent * _PAGE if found else 0
    kept = max(block.used - copied - absent, 0) if found else 0
    return {
        "name": block.name,
        "mechanism": "handover" if shared else "flip",
        "size": block.used,
        "flipped-bytes": 0 if shared else kept,
        "handed-over-bytes": kept if shared else 0,
        "gifted-bytes": 0,
        "copied-bytes": copied,
        "faulted-bytes": 0,
        "zero-bytes": 0,
        "untouched-bytes": absent,
    }
