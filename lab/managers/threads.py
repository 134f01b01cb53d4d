# SPDX-License-Identifier: GPL-2.0-or-later
"""Where QEMU's threads run: their cgroups, processors and priorities, as management set them.

A new QEMU's threads begin where the thread was that started them, so that a quota or a pinning of
the guest's processors would hold nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from lab.base.errors import CannotTellError
from lab.live.truth.ask import Talks
from lab.model import Model


class Place(Model):
    """Where one thread runs."""

    #: The directories of its groups, without the file that lists their threads.
    groups: tuple[str, ...]
    processors: tuple[int, ...]
    policy: int
    priority: int
    nice: int

    @classmethod
    def of(cls, thread: int) -> Place:
        """Return where a thread runs (cgroups(7), sched(7)); raise OSError when it is gone."""
        return cls(
            groups=tuple(map(str, _groups(thread))),
            processors=tuple(sorted(os.sched_getaffinity(thread))),
            policy=os.sched_getscheduler(thread),
            priority=os.sched_getparam(thread).sched_priority,
            nice=os.getpriority(os.PRIO_PROCESS, thread),
        )

    def put(self, thread: int) -> None:
        """Let a thread run there; raise OSError."""
        now = Place.of(thread)
        for group in self.groups:
            if group not in now.groups:
                _listing(Path(group)).write_text(str(thread), encoding="ascii")
        # A set of processors is lost when the group changes: it comes after.
        os.sched_setaffinity(thread, self.processors)
        if (self.policy, self.priority) != (now.policy, now.priority):
            os.sched_setscheduler(thread, self.policy, os.sched_param(self.priority))
        if self.nice != now.nice:
            os.setpriority(os.PRIO_PROCESS, thread, self.nice)


def _groups(thread: int) -> Iterator[Path]:
    """Yield the directory of each group that a thread is in."""
    mounted = dict(_hierarchies())
    for line in Path(f"/proc/{thread}/cgroup").read_text(encoding="utf-8").splitlines():
        _, controllers, path = line.split(":", 2)
        if where := mounted.get(controllers):
            yield where / path.lstrip("/")


def _hierarchies() -> Iterator[tuple[str, Path]]:
    """Yield what /proc/PID/cgroup calls a hierarchy, and where it is mounted; "" is version 2's."""
    for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines():
        mounted, _, source = line.partition(" - ")
        kind, _, options = source.split(" ", 2)
        if kind == "cgroup2":
            yield "", Path(mounted.split()[4])
        elif kind == "cgroup":
            known = set(options.split(",")) & _controllers()
            named = [one for one in options.split(",") if one.startswith("name=")]
            for name in (*named, ",".join(one for one in options.split(",") if one in known)):
                if name:
                    yield name, Path(mounted.split()[4])


def _controllers() -> set[str]:
    """Return the controllers that the kernel knows (cgroups(7))."""
    lines = Path("/proc/cgroups").read_text(encoding="ascii").splitlines()[1:]
    return {line.split()[0] for line in lines}


def _listing(group: Path) -> Path:
    """Return the file that a thread's number is written to."""
    one = group / "tasks"
    return one if one.exists() else group / "cgroup.threads"


class Threads(Model):
    """A QEMU's threads, those that management knows by what they do."""

    main: int
    #: By the index of the processor.
    processors: dict[int, int]
    #: By the id of the object.
    iothreads: dict[str, int]

    @classmethod
    def of(cls, pid: int, qmp: Talks) -> Threads:
        """Ask a QEMU for its threads."""
        cpus = qmp.execute("query-cpus-fast")
        iothreads = qmp.execute("query-iothreads")
        return cls(
            main=pid,
            processors={int(cpu["cpu-index"]): int(cpu["thread-id"]) for cpu in cpus},
            iothreads={str(one["id"]): int(one["thread-id"]) for one in iothreads},
        )


class Places(Model):
    """Where the threads of a QEMU run."""

    main: Place
    processors: dict[int, Place]
    iothreads: dict[str, Place]

    @classmethod
    def of(cls, threads: Threads) -> Places:
        """Return where threads run now; raise OSError when one is gone."""
        return cls(
            main=Place.of(threads.main),
            processors={index: Place.of(one) for index, one in threads.processors.items()},
            iothreads={name: Place.of(one) for name, one in threads.iothreads.items()},
        )

    def put(self, threads: Threads) -> None:
        """Let a successor's threads run where their predecessors did; raise CannotTellError.

        Its other threads run where the main one does, as it started them.
        """
        known = {
            **{one: self.processors.get(index) for index, one in threads.processors.items()},
            **{one: self.iothreads.get(name) for name, one in threads.iothreads.items()},
        }
        try:
            self.main.put(threads.main)
            for thread, place in known.items():
                if place:
                    place.put(thread)
        except OSError as error:
            raise CannotTellError(
                f"process {threads.main} runs the guest, but its threads cannot be put where its "
                f"predecessor's were: {error}",
                hint="quotas and pinning of the guest's processors do not hold until they are",
            ) from error
        for task in Path(f"/proc/{threads.main}/task").iterdir():
            if int(task.name) not in known:
                with suppress(OSError):  # a worker comes and goes
                    self.main.put(int(task.name))
