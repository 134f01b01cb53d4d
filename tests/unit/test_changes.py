# SPDX-License-Identifier: GPL-2.0-or-later
"""What a running QEMU has that its command line does not say."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from made_truth import block, device, disk_node, drive, file_node, truth

from lab.live import words
from lab.live.changes import changes
from lab.live.truth import kernel
from lab.live.truth.model import Bitmap, Chardev, Device, OpenFile

QEMU = "/usr/bin/qemu-system-x86_64"
DEVICES = {
    "/machine/peripheral/a": device(),
    "/machine/peripheral-anon/usb-tablet[0]": device("usb-tablet"),
}


def told(*argv: str, why: Mapping[str, str] = MappingProxyType({}), **more: Any) -> list[str]:
    whole = {"block": block(drives={}), **more}
    argv = ("-netdev", "user,id=n0", "-device", "virtio-blk-pci,id=a", *argv)
    return list(changes([QEMU, *argv], truth(**whole), why))


def test_nothing_has_changed() -> None:
    assert told(devices=DEVICES) == []
    labels = (
        "#chr073",
        "serial0",
        "compat_monitor0",
        "serial1-base",
        "debugcon",
        "vc0",
        "parallel0",
    )
    assert told(chardevs={label: Chardev(where="") for label in labels}) == []


def test_a_device_has_the_node_that_its_option_says() -> None:
    disk = ("-blockdev", "file,node-name=f,filename=/i", "-blockdev", "raw,node-name=b,file=f",
            "-device", "ide-hd,drive=b")  # fmt: skip
    own = block(drives={"x": drive(file_node(name="b"))})
    assert not [text for text in told(*disk, block=own) if "another node" in text]
    for other in (drive(file_node(name="top")), drive(None)):
        said = told(*disk, block=block(drives={"x": other}))
        assert "-device ide-hd,drive=b has another node than b by now, or none" in said
    by_drive = ("-drive", "if=none,id=b,file=/i", "-device", "ide-hd,drive=b")
    said = told(*by_drive, block=block(drives={"b": drive(file_node(name="#block1"))}))
    assert not [text for text in said if "another node" in text]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"why": {"device late": "so it is"}},
         "device late was added while the guest ran: so it is"),
        ({"why": {"object o": "so it is"},
          "objects": {"o": Device(type="iothread", properties={})}},
         "object o was added while the guest ran: so it is"),
        ({"devices": {}}, "device a was taken out while the guest ran"),
        ({"chardevs": {"serialX": Chardev(where="")}}, "character device serialX was added"),
        ({"networks": {"n1": "index=0,type=user"}}, "network backend n1 was added"),
        ({"objects": {"o": Device(type="iothread", properties={})}}, "object o was added"),
        ({"root": "/srv"}, "it runs in /srv (chroot)"),
        ({"block": block(drives={}, jobs={"j": "mirror, ready"})}, "job j is there (mirror, r"),
        ({"block": block(drives={}, others={"n": file_node()})}, "block node n was added"),
        ({"block": block(drives={}, exports={"e": {"type": "nbd", "node-name": "n"}})},
         "export e of n was added"),
        ({"block": block(drives={"d0": drive(file_node(None, driver="nbd", bitmaps={
            "b": Bitmap(granularity=1, recording=True, persistent=False)}))})},
         "dirty bitmap b of d0 is in memory only"),
        ({"block": block(drives={"d0": drive(disk_node(None, children={
            "file": file_node(None, lost="/gone")}))})},
         "/gone, which d0 is in, is not the file that QEMU has open"),
    ],
)  # fmt: skip
def test_what_has_changed(more: dict[str, Any], said: str) -> None:
    (found,) = told(**{"devices": DEVICES, **more})
    assert found.startswith(said)


@pytest.mark.parametrize(
    "text",
    [
        "-drive=file={0},format=qcow2",
        "-hda={0}",
        '-blockdev={{"driver": "qcow2", "file": {{"driver": "file", "filename": "{0}"}}}}',
        "-blockdev=driver=file,node-name=x,filename={0}",
        "-drive=file=disk,,1.qcow2",
    ],
)
def test_an_image_is_the_file_and_not_its_name(tmp_path: Path, text: str) -> None:
    image = tmp_path / "disk,1.qcow2"
    image.touch()
    where = kernel.identity(image) or (0, 0)
    file = OpenFile(device=where[0], inode=where[1], name=str(image))
    more: dict[str, Any] = {"cwd": str(tmp_path), "files": [file]}
    more["block"] = block(drives={"d0": drive(disk_node(file))})
    name, _, value = text.format(
        str(image).replace(",", ",,") if "{{" not in text else image
    ).partition("=")
    argv = (name, value)
    assert told(*argv, devices=DEVICES, **more) == []
    # Another file has its name.
    image.rename(tmp_path / "away")
    image.touch()
    said = told(*argv, devices=DEVICES, **more)
    assert said == [f"the image of d0 is {image} by now", f"{image} is not open any more"]
    # It was taken out.
    empty = {**more, "files": [], "block": block(drives={"d0": drive(None)})}
    assert told(*argv, devices=DEVICES, **empty) == [f"{image} is not open any more"]


def test_a_configuration_file_is_words() -> None:
    text = """
    # a comment
    [chardev "s"]
      backend = "socket"
      path = "/run/a,b"
      server = "on"
    [machine]
      type = "q35"
    [memory]
      size = "1G"
    """
    assert words.configured(text) == [
        "-chardev", "id=s,backend=socket,path=/run/a,,b,server=on", "-machine", "type=q35",
        "-m", "size=1G",
    ]  # fmt: skip
    with pytest.raises(ValueError, match="line 1"):
        words.configured("[nothing]")
    with pytest.raises(ValueError, match="line 1"):
        words.configured('file = "x"')
