# SPDX-License-Identifier: GPL-2.0-or-later
"""What is asked of the kernel, and what is made of QEMU's answers."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import pytest

from lab.live.truth import kernel, qom
from lab.live.truth.block import Graph
from lab.live.truth.model import Device


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("0100007F:1F90", "127.0.0.1:8080"),
        ("00000000:0016", "0.0.0.0:22"),
        ("00000000000000000000000001000000:0050", "[::1]:80"),
    ],
)
def test_an_address_of_proc_net(text: str, said: str) -> None:
    """On a host that stores the least byte first, as all do that QEMU's KVM knows but s390x."""
    assert kernel.address(text) == said


def test_what_a_process_has_open(tmp_path: Path) -> None:
    image, own = tmp_path / "image", tmp_path / "pid"
    own.touch()
    with image.open("w"), own.open(), Path("/dev/zero").open("rb"):
        moved = image.rename(tmp_path / "moved")
        found = kernel.opened(os.getpid(), [str(own)])
        assert found.has(*(kernel.identity(moved) or (0, 0)))
        assert str(own) not in [one.name for one in found.files]
        assert "/dev/zero" in found.nodes
        # The name that the kernel says is gone, and it is the same file by another.
        second = tmp_path / "second"
        second.hardlink_to(own)
        own.unlink()
        names = [one.name for one in kernel.opened(os.getpid(), [str(second)]).files]
        assert not [name for name in names if name.startswith(str(own))]
    assert not kernel.opened(os.getpid()).has(*(kernel.identity(moved) or (0, 0)))
    assert kernel.identity(image) is None
    assert kernel.identity(tmp_path) is None


def test_where_a_process_listens(sockets: Path) -> None:
    path = sockets / "a b"
    with socket.socket(socket.AF_UNIX) as one, socket.socket() as other:
        one.bind(str(path))
        other.bind(("127.0.0.1", 0))
        mine = kernel.opened(os.getpid()).sockets
        assert str(path) not in [one.address for one in kernel.listeners(os.getpid(), mine)]
        one.listen()
        other.listen()
        found = [(one.kind, one.address) for one in kernel.listeners(os.getpid(), mine)]
        assert ("unix", str(path)) in found
        assert ("tcp", f"127.0.0.1:{other.getsockname()[1]}") in found
        assert kernel.listeners(os.getpid(), []) == []


def test_numbered_devices_have_names_of_their_own() -> None:
    """Whatever is plugged or taken out before them."""
    place, new = "/machine/peripheral-anon", "/machine/unnamed"

    def tree(*kinds: str) -> dict[str, Device]:
        found = {
            f"{place}/device[{number}]": Device(type=kind, properties={})
            for number, kind in enumerate(kinds)
        }
        last = f"{place}/device[{len(kinds) - 1}]"
        found["/machine/i440fx"] = Device(type="pc", properties={"bus": f"{last}/pci.0", "n": 1})
        return qom.renamed(found)

    assert set(tree("e1000", "usb", "usb")) == {
        f"{new}/e1000[0]", f"{new}/usb[0]", f"{new}/usb[1]", "/machine/i440fx",
    }  # fmt: skip
    assert tree("e1000", "usb")["/machine/i440fx"].properties == {
        "bus": f"{new}/usb[0]/pci.0",
        "n": 1,
    }
    assert tree("e1000")[f"{new}/e1000[0]"].asked
    assert not tree("e1000")["/machine/i440fx"].asked
    assert tree("usb")["/machine/i440fx"] == tree("e1000", "usb")["/machine/i440fx"]


def test_names_that_qemu_makes_have_digits_at_random() -> None:
    def netdev(name: str) -> object:
        device = Device(type="e1000", properties={"netdev": name})
        return qom.renamed({"/machine/peripheral/a": device})["/machine/peripheral/a"].properties

    assert netdev("#net071") == netdev("#net026") == {"netdev": "#net0"}
    assert netdev("#net1071") == {"netdev": "#net10"}
    assert netdev("net071") == {"netdev": "net071"}


def test_what_cpuid_tells() -> None:
    words = [
        {"cpuid-register": "EBX", "cpuid-input-eax": 7, "cpuid-input-ecx": 0, "features": 5},
        {"cpuid-register": "ECX", "cpuid-input-eax": 1, "features": 0},
    ]
    assert qom.features(words) == {"0x7.0.EBX": 5}


def node(name: str, driver: str, file: Path | str, **more: Any) -> dict[str, Any]:
    return {
        "node-name": name, "drv": driver, "file": str(file), "ro": False,
        "cache": {"direct": False, "no-flush": False}, **more,
    }  # fmt: skip


def test_a_node_is_the_file_that_is_open(tmp_path: Path) -> None:
    disk, base = tmp_path / "disk", tmp_path / "base"
    base.touch()
    with disk.open("w"), base.open():
        answers = {
            "nodes": [
                node("top", "qcow2", disk), node("#1", "file", "disk"),
                node("#2", "raw", base), node("#3", "file", base), node("loose", "null-co", "x://"),
            ],
            "graph": {
                "nodes": [
                    {"id": 1, "type": "block-backend", "name": "d0"},
                    *({"id": 2 + number, "type": "block-driver", "name": name}
                      for number, name in enumerate(("top", "#1", "#2", "#3", "loose"))),
                ],
                "edges": [
                    {"parent": 1, "child": 2, "name": "root"},
                    {"parent": 2, "child": 3, "name": "file"},
                    {"parent": 2, "child": 4, "name": "backing"},
                    {"parent": 4, "child": 5, "name": "file"},
                ],
            },
        }  # fmt: skip
        opened = kernel.opened(os.getpid())
        graph = Graph(answers, opened, Path("/"), tmp_path)
        top = graph.node("top")
        assert top.lowest.file == opened.has(*(kernel.identity(disk) or (0, 0)))
        assert top.children["backing"].name == ""
        assert top.children["backing"].lowest.file == opened.has(*(kernel.identity(base) or (0, 0)))
        assert graph.roots() == ["loose"]
        assert graph.node("loose").filename == "x://"
        # Another file by the same name is not the one that is open.
        base.rename(tmp_path / "away")
        base.touch()
        again = Graph(answers, opened, Path("/"), tmp_path).node("top")
        assert again.children["backing"].lowest.file is None
        assert again.children["backing"].lowest.lost == str(base)
