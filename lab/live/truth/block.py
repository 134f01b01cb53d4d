# SPDX-License-Identifier: GPL-2.0-or-later
"""The block layer: which drive has which nodes, and which open files these are."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lab.live.truth.ask import Asker
from lab.live.truth.kernel import Opened, identity
from lab.live.truth.model import Bitmap, BlockLayer, Drive, Node
from lab.vm.monitor import QmpError

#: Drivers whose node is a file or a device of this host.
_FILES = frozenset({"file", "host_device", "host_cdrom"})
#: How a name begins that is options.
_OPTIONS = "json:"
#: Throttling, as query-block has it (BlockDeviceInfo); group is a name.
_LIMITS = ("bps", "iops")
#: Of a node, what is compared as it is.
_SETTINGS = ("detect_zeroes", "encrypted", "write_threshold")


class Graph:
    """The nodes of a QEMU's block layer, and what is below each."""

    def __init__(self, answers: Mapping[str, Any], opened: Opened, root: Path, cwd: Path) -> None:
        self._nodes = {node["node-name"]: node for node in answers["nodes"]}
        graph = answers["graph"]
        names = {node["id"]: node["name"] for node in graph["nodes"]}
        kinds = {node["id"]: node["type"] for node in graph["nodes"]}
        self._below: dict[str, dict[str, str]] = {}
        self.parents: dict[str, set[str]] = {}
        for edge in graph["edges"]:
            parent, child = names[edge["parent"]], names[edge["child"]]
            self.parents.setdefault(child, set()).add(kinds[edge["parent"]])
            if kinds[edge["parent"]] == "block-driver":
                self._below.setdefault(parent, {})[edge["name"]] = child
        self._opened, self._root, self._cwd = opened, root, cwd

    def node(self, name: str) -> Node:
        """Return a node with everything below it."""
        told = self._nodes[name]
        file, lost, filename = None, "", str(told.get("file", ""))
        if told["drv"] in _FILES:
            there = identity(self._root / str(self._cwd / filename).lstrip("/"))
            file = self._opened.has(*there) if there else None
            lost = "" if file else filename
            filename = ""
        elif self._below.get(name):
            filename = _strong(filename)
        return Node(
            driver=told["drv"],
            name="" if name.startswith("#") else name,
            filename=filename,
            file=file,
            lost=lost,
            read_only=told["ro"],
            settings={
                **{key: told[key] for key in _SETTINGS if key in told},
                "direct": told["cache"]["direct"],
                "no-flush": told["cache"]["no-flush"],
            },
            bitmaps={one.get("name", "#"): _bitmap(one) for one in told.get("dirty-bitmaps", ())},
            children={role: self.node(child) for role, child in self._below.get(name, {}).items()},
        )

    def roots(self) -> list[str]:
        """Return the named nodes that nothing else has, no drive either."""
        return [
            name
            for name in self._nodes
            if not name.startswith("#") and not self.parents.get(name, set()) - {"block-job"}
        ]


def _strong(filename: str) -> str:
    """Return the options that decide what is read from a node that has others below it.

    QEMU says them in place of a name, which is its child's (block.c: bdrv_refresh_filename()).
    """
    if not filename.startswith(_OPTIONS):
        return ""
    return _OPTIONS + json.dumps(json.loads(filename.removeprefix(_OPTIONS)), sort_keys=True)


def _bitmap(told: Mapping[str, Any]) -> Bitmap:
    return Bitmap(
        granularity=told["granularity"],
        recording=told["recording"],
        persistent=told["persistent"],
    )


def limits(told: Mapping[str, Any]) -> dict[str, Any]:
    """Return the throttling of what query-block calls ``inserted``; empty without any."""
    found = {key: value for key, value in told.items() if key.startswith(_LIMITS)}
    if not any(found.values()):
        return {}
    return {**found, "group": told.get("group", "")}


def block(ask: Asker, opened: Opened, root: Path, cwd: Path) -> BlockLayer:
    """Ask for everything of the block layer; raises what `Asker.all` does."""
    questions = (
        "query-block",
        "query-named-block-nodes",
        "x-debug-query-block-graph",
        "query-jobs",
        "query-block-exports",
    )
    told = [
        [] if isinstance(answer, QmpError) else answer
        for answer in ask.all([(question, {}) for question in questions])
    ]
    drives, nodes, shape, jobs, exports = told
    graph = Graph({"nodes": nodes, "graph": shape or {"nodes": [], "edges": []}}, opened, root, cwd)
    return BlockLayer(
        drives={one["device"] or one.get("qdev", ""): _drive(one, graph) for one in drives},
        others={name: graph.node(name) for name in sorted(graph.roots())},
        jobs={one["id"]: f"{one['type']}, {one['status']}" for one in jobs},
        exports={
            one["id"]: {"type": one["type"], "node-name": one["node-name"]} for one in exports
        },
    )


def _drive(told: Mapping[str, Any], graph: Graph) -> Drive:
    inserted = told.get("inserted")
    return Drive(
        medium=graph.node(inserted["node-name"]) if inserted else None,
        tray_open=told.get("tray_open"),
        limits=limits(inserted or {}),
    )
