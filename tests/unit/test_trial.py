# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether a new QEMU can be started beside the old one just to be looked at."""

from __future__ import annotations

from typing import Any, cast

import pytest
from made_truth import truth

from lab.live import trial
from lab.live.successor import Successor
from lab.live.truth.model import Chardev, Device


class Found:
    """What is asked of a running QEMU."""

    def __init__(self, **more: Any) -> None:
        self.truth = truth(**more)


def reasons(*only_child: str, **more: Any) -> list[str]:
    made = Successor(["/new"], only_child=[*only_child])
    return list(trial.reasons(cast("Any", Found(**more)), made))


def memory(**properties: Any) -> dict[str, Any]:
    return {"objects": {"ram": Device(type="memory-backend", properties=properties)}}


def test_most_can() -> None:
    where = ("null", "unix:/run/a,server=on", "tcp:127.0.0.1:1,server=on", "pty")
    chardevs = {str(number): Chardev(where=one) for number, one in enumerate(where)}
    assert reasons(chardevs=chardevs, **memory(prealloc=False, hugetlb=False)) == []
    # Guest memory in a file is mapped, and not touched.
    assert reasons(**memory(**{"mem-path": "/dev/shm"})) == []


@pytest.mark.parametrize(
    ("more", "why"),
    [
        (memory(prealloc=True), "ram would take its memory once more"),
        (memory(hugetlb=True), "ram would take its memory once more"),
        ({"chardevs": {"c": Chardev(where="unix:/run/daemon")}},
         "c would connect to unix:/run/daemon once more"),
    ],
)  # fmt: skip
def test_some_cannot(more: dict[str, Any], why: str) -> None:
    assert reasons(**more) == [why]


def test_what_only_the_old_one_starts() -> None:
    assert reasons("a tap") == ["a tap"]
