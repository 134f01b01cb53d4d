# SPDX-License-Identifier: GPL-2.0-or-later
"""What is told to a QEMU around an upgrade: its drives' limits, and migration's settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fakes import fake_qemu
from made_truth import block, disk_node, drive, truth

from lab.base.deadline import Deadline
from lab.live import amend, check
from lab.live.truth.model import Migration
from lab.vm.monitor import Monitor, monitor

LIMITS = {"bps": 1000, "bps_rd": 0, "bps_wr": 0, "iops": 0, "iops_rd": 0, "iops_wr": 0}
NONE = dict.fromkeys(LIMITS, 0)


def asked(sockets: Path, answers: dict[str, Any], what: Any) -> list[tuple[str, dict[str, Any]]]:
    """Return the commands that change something."""

    def answer(command: str, _arguments: dict[str, Any]) -> dict[str, Any]:
        if command == "migrate-set-parameters" and "refused" in _arguments:
            return {"error": {"class": "GenericError", "desc": "no"}}
        return {"return": answers.get(command, {})}

    path = sockets / "qmp"
    with fake_qemu(path, answer) as fake:
        deadline = Deadline.after(10, "it answers")
        with monitor("fake", path, deadline, lambda: None, lambda _text: None) as qmp:
            what(qmp)
        return [one for one in fake.commands if not one[0].startswith(("query", "qmp_"))]


def test_limits_are_set_where_they_are_others(sockets: Path) -> None:
    old = truth(block=block(drives={
        "d0": drive(disk_node(), limits={**LIMITS, "group": "d0"}), "d1": drive(disk_node()),
        "/machine/x": drive(disk_node(), limits={**LIMITS, "group": ""}),
    }))  # fmt: skip
    there = [
        {"device": "d0", "inserted": NONE}, {"device": "d1", "inserted": LIMITS},
        {"device": "", "qdev": "/machine/x", "inserted": NONE},
    ]  # fmt: skip
    found = asked(sockets, {"query-block": there}, lambda qmp: amend.amend(old, qmp))
    assert found == [
        ("block_set_io_throttle", {"device": "d0", **LIMITS, "group": "d0"}),
        ("block_set_io_throttle", {"device": "d1", **NONE}),
        ("block_set_io_throttle", {"id": "/machine/x", **LIMITS}),
    ]


def test_migration_is_set_as_it_was(sockets: Path) -> None:
    answers = {
        "query-migrate-capabilities": [
            {"capability": "multifd", "state": True}, {"capability": "events", "state": False},
            {"capability": "newer", "state": True},
        ],
        "query-migrate-parameters": {"max-bandwidth": 2**40, "same": 1, "refused": 1, "newer": 1},
    }  # fmt: skip
    wanted = Migration(
        capabilities={"multifd": False, "events": False, "older": True},
        parameters={"max-bandwidth": 7, "same": 1, "refused": 2, "older": 1},
    )
    refused: list[str] = []

    def restore(qmp: Monitor) -> None:
        refused.extend(check.restore(qmp, wanted))

    assert asked(sockets, answers, restore) == [
        ("migrate-set-capabilities", {"capabilities": [{"capability": "multifd", "state": False}]}),
        ("migrate-set-parameters", {"max-bandwidth": 7}),
        ("migrate-set-parameters", {"refused": 2}),
    ]
    assert refused == ["fake: migrate-set-parameters: no"]
