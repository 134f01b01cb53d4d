# SPDX-License-Identifier: GPL-2.0-or-later
"""What libvirt keeps of a running domain: the status XML.  Pure.

In libvirt: qemuDomainObjPrivateXMLFormat() in src/qemu/qemu_domain.c, virDomainObjFormat() in
src/conf/domain_conf.c.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lxml import etree

from lab.base.errors import CannotTellError


def with_emulator(definition: str, program: Path) -> str:
    """Return the XML of a domain with another emulator."""
    root = etree.fromstring(definition.encode(), _parser())
    root.find("devices/emulator").text = str(program)
    return str(etree.tostring(root, encoding="unicode"))


def _parser() -> etree.XMLParser:
    return etree.XMLParser(resolve_entities=False, no_network=True)


class DomainStatus:
    """The status XML of one domain; raise CannotTellError for what is none."""

    def __init__(self, text: bytes, name: str) -> None:
        try:
            self._root = etree.fromstring(text, _parser())
        except etree.XMLSyntaxError as error:
            raise self._strange(name, str(error)) from error
        if self._root.tag != "domstatus" or self._root.find("domain/devices/emulator") is None:
            raise self._strange(name, f"<{self._root.tag}>")

    @staticmethod
    def _strange(name: str, why: str) -> CannotTellError:
        return CannotTellError(
            f"libvirt's status of {name} is not what it is known to be: {why}",
            hint="libvirt 9 and later keep <domstatus>; nothing has been changed",
        )

    def _one(self, path: str) -> Any:
        found = self._root.find(path)
        if found is None:
            raise self._strange(str(self._root.findtext("domain/name")), f"no <{path}>")
        return found

    @property
    def state(self) -> str:
        """The domain's state, such as ``running``."""
        return str(self._root.get("state"))

    @property
    def pid(self) -> int:
        """QEMU's process."""
        return int(self._root.get("pid"))

    @property
    def uuid(self) -> str:
        """The domain's UUID."""
        return str(self._one("domain/uuid").text)

    @property
    def number(self) -> str:
        """The number that the running domain has."""
        return str(self._one("domain").get("id"))

    @property
    def monitor(self) -> Path:
        """The monitor's socket."""
        return Path(self._one("monitor").get("path"))

    @property
    def emulator(self) -> Path:
        """The program that libvirt started."""
        return Path(self._one("domain/devices/emulator").text)

    @property
    def processors(self) -> dict[int, int]:
        """The threads of the guest's processors, where libvirt knows them."""
        found = self._root.findall("vcpus/vcpu")
        return {int(one.get("id")): int(one.get("pid")) for one in found if one.get("pid")}

    def busy(self) -> Iterator[str]:
        """Yield what libvirt is doing with the domain that would not survive its restart."""
        job = self._root.find("job")
        if job is not None:
            kinds = [job.get(name, "none") for name in ("async", "type")]
            yield from (f"a job is going on: {kind}" for kind in kinds if kind != "none")
        if any(one.get("active") == "yes" for one in self._root.findall("blockjobs")):
            yield "a block job is going on"

    def adopt(
        self, pid: int, emulator: Path, processors: Mapping[int, int], terminals: Mapping[str, str]
    ) -> None:
        """Write another process into it.

        `processors` are the threads of the guest's processors, `terminals` the names of terminals
        by QEMU's ids of character devices: libvirt's aliases, after "char".
        """
        self._root.set("pid", str(pid))
        self._one("domain/devices/emulator").text = str(emulator)
        for one in self._root.findall("vcpus/vcpu"):
            if one.get("pid"):
                one.set("pid", str(processors[int(one.get("id"))]))
        for device in self._root.find("domain/devices"):
            alias = device.find("alias")
            end = terminals.get(f"char{alias.get('name')}") if alias is not None else None
            source = device.find("source")
            if end and source is not None and device.get("type") == "pty":
                source.set("path", end)
                if device.get("tty"):
                    device.set("tty", end)

    def text(self) -> str:
        """Return it as libvirt reads it."""
        return str(etree.tostring(self._root.getroottree(), encoding="unicode")) + "\n"
