# SPDX-License-Identifier: GPL-2.0-or-later
"""From one command line to the next."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from lab.base.layout import Layout
from lab.live import known, successor, words
from lab.live.successor import Successor
from lab.source.releases import load_releases


def made(text: str) -> Successor:
    return successor.successor(
        ["/old/qemu", *shlex.split(text)], Path("/new/qemu"), "pc-q35-10.0", Path("/home")
    )


def line(text: str) -> str:
    """What becomes of some options, without the program and the machine that was not named."""
    return shlex.join(made(f"-M q35 {text}").argv[3:])


def test_options_are_read_as_qemu_reads_them() -> None:
    told = {"": "socket", "id": "a", "path": "/x,y", "server": "server"}
    assert words.values("socket,id=a,path=/x,,y,server") == told
    assert words.values(words.text_of(told)) == told
    assert list(words.pairs(["qemu", "-S", "--append", "-x", "disk.img", "-name", "n"])) == [
        ("S", None), ("append", "-x"), ("hda", "disk.img"), ("name", "n"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("-m 2G -append -x -device virtio-blk-pci,drive=a", None),
        ("-S -daemonize -incoming defer -loadvm s -m 1G", "-m 1G"),
        ("disk.img", "-hda disk.img"),
        ("-pidfile /run/p", None),
        (
            "-qmp unix:/run/q,server,nowait",
            "-chardev socket,id=compat_monitor0,path=/run/q,server=on,wait=off "
            "-mon chardev=compat_monitor0,mode=control",
        ),
        (
            "-monitor unix:/run/m,server=on,wait=off",
            "-chardev socket,id=compat_monitor0,path=/run/m,server=on,wait=off "
            "-mon chardev=compat_monitor0,mode=readline",
        ),
        (
            "-serial file:/var/log/a",
            "-chardev file,id=serial0,path=/var/log/a,append=on -serial chardev:serial0",
        ),
        (
            "-serial none -serial mon:unix:/run/a,,b,server",
            "-serial none -chardev socket,id=serial1,path=/run/a,,b,server=on,wait=off,mux=on "
            "-mon chardev=serial1,mode=readline -serial chardev:serial1",
        ),
        (
            "-debugcon file:/var/log/a,b",
            "-chardev file,id=debugcon,path=/var/log/a,,b,append=on -debugcon chardev:debugcon",
        ),
        (
            "-chardev backend=socket,id=a,path=/run/a,server=yes,wait=no",
            "-chardev backend=socket,id=a,path=/run/a,server=on,wait=off",
        ),
        ('-netdev type=user,id=a -netdev \'{"type": "user", "id": "b"}\'', None),
        ("-serial null -parallel none -monitor vc", None),
        (
            "-chardev socket,id=a,path=/run/a,server=on,wait=on",
            "-chardev socket,id=a,path=/run/a,server=on,wait=off",
        ),
        ("-run-with async-teardown=on,exit-with-parent=off", None),
        ("-chardev file,id=a,path=x", "-chardev file,id=a,path=x,append=on"),
        ("-chardev null,id=a,logfile=x", "-chardev null,id=a,logfile=x,logappend=on"),
    ],
)
def test_what_an_option_becomes(old: str, new: str | None) -> None:
    assert line(old) == (old if new is None else new)


def test_the_machine_is_spelt_with_its_version() -> None:
    assert made("-machine q35,accel=kvm").argv[1:] == ["-machine", "pc-q35-10.0,accel=kvm"]
    assert made("-M type=q35,usb=off").argv[1:] == ["-machine", "pc-q35-10.0,usb=off"]
    assert made("-m 1G").argv[1:] == ["-m", "1G", "-machine", "pc-q35-10.0"]


def test_files_of_both_by_one_name() -> None:
    found = made(
        "-pidfile /run/p -qmp unix:q,server -chardev socket,id=a,path=/run/a,server=on "
        "-vnc unix:/run/v -chardev socket,id=c,path=/run/theirs"
    )
    assert [str(path) for path in found.files] == ["/run/p", "/home/q", "/run/a", "/run/v"]
    assert not found.refusals
    assert "a daemon's directory" in made("-daemonize -pidfile p").refusals[0]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("-vnc :1", "-vnc none"),
        ("-vnc 127.0.0.1:0,to=99,share=ignore,audiodev=a", "-vnc none,share=ignore,audiodev=a"),
        ("-vnc localhost:1,ipv6=on,password=on", "-vnc none,password=on"),
        ("-display vnc=:1,head=1", "-display vnc=none,head=1"),
    ],
)
def test_a_screen_on_a_port_is_listened_at_later(old: str, new: str) -> None:
    assert line(old) == new
    assert not made(old).refusals
    assert len(made(old).screens) == 1
    assert not made("-vnc none -vnc unix:/run/v").screens


def test_a_tap_becomes_a_descriptor() -> None:
    found = made("-netdev tap,id=n,ifname=t0,script=no,downscript=no,vnet_hdr=on -m 1G")
    assert "passed on by the old QEMU" in found.only_child[0]
    assert found.with_descriptors([9])[1:3] == ["-netdev", "tap,id=n,fd=9"]  # QEMU takes no more
    again = successor.successor(
        found.with_descriptors([9]), Path("/newer"), "pc-q35-10.0", Path("/")
    )
    assert [tap.numbers for tap in again.passed] == [[9]]
    assert again.with_descriptors([12])[1:3] == ["-netdev", "tap,id=n,fd=12"]


def test_a_tap_with_queues_and_workers() -> None:
    found = made("-netdev tap,id=a,ifname=t,queues=2,script=no,downscript=no,vhost=on -m 1G")
    (tap,) = found.passed
    assert (tap.numbers, tap.queues, tap.workers) == ([], 2, 0)
    assert found.with_descriptors([8, 9])[2] == "tap,id=a,vhost=on,fds=8:9"
    text = """-netdev '{"type":"tap","fds":"30:31","vhost":true,"vhostfds":"32:33","id":"n"}'"""
    (tap,) = made(text).passed
    assert (tap.numbers, tap.queues, tap.workers) == ([30, 31], 2, 2)
    becomes = made(text).with_descriptors([8, 9, 10, 11])
    assert becomes[2] == "type=tap,vhost=on,id=n,fds=8:9,vhostfds=10:11"
    found = made("-netdev tap,id=a,fd=5,vhostfd=6 -netdev tap,id=b,fd=7")
    assert [one.workers for one in found.passed] == [1, 0]
    words = found.with_descriptors([8, 9, 10])
    assert [words[2], words[4]] == ["tap,id=a,fd=8,vhostfd=9", "tap,id=b,fd=10"]


def test_a_tap_as_proxmox_ve_has_it() -> None:
    scripts = "script=/usr/libexec/qemu-server/pve-bridge"
    scripts += ",downscript=/usr/libexec/qemu-server/pve-bridgedown"
    found = made(f"-id 100 -netdev type=tap,id=net0,ifname=tap100i0,{scripts},vhost=on")
    assert not found.refusals
    words = found.with_descriptors([9])
    assert words[1:5] == ["-id", "100", "-netdev", "type=tap,id=net0,vhost=on,fd=9"]
    assert "nobody runs the script that takes the tap down" in found.remarks[0]


@pytest.mark.parametrize(
    ("text", "becomes"),
    [
        (
            """-netdev '{"type":"tap","fd":"30","id":"n","vhost":false}'""",
            ["-netdev", "type=tap,id=n,vhost=off,fd=9"],
        ),
        (
            "-chardev socket,id=a,fd=28,server=on,wait=on",
            ["-chardev", "socket,id=a,server=on,wait=off,fd=9"],
        ),
        ("-add-fd set=0,fd=31,opaque=log", ["-add-fd", "set=0,opaque=log,fd=9"]),
    ],
)
def test_a_descriptor_that_management_passed_is_passed_on(text: str, becomes: list[str]) -> None:
    found = made(text)
    assert found.with_descriptors([9])[1:3] == becomes
    assert "passed on by the old QEMU" in found.only_child[0]
    assert not found.refusals
    assert bool(found.taps) == ("tap" in becomes[1])


@pytest.mark.parametrize(
    "text",
    [
        "-s",
        "-gdb tcp::1",
        "-snapshot",
        "-spice port=1",
        "-tpmdev emulator,id=t,chardev=c",
        "-runas nobody",
        "-run-with user=nobody",
        "-run-with async-teardown=on,chroot=/srv",
        "-run-with exit-with-parent=on",
        "-drive file=a,snapshot=on",
        "-vnc :1,websocket=on",
        "-vnc viewer:5500,reverse=on",
        "-display vnc=:1,websocket=5700",
        "-display dbus",
        "-serial tcp::1,server",
        "-serial udp::1",
        "-serial mon:telnet::1,server",
        "-chardev socket,id=a,port=1,host=,server=on",
        "-chardev socket,id=a,path=x,abstract=on,server=on",
        "-chardev socket,id=a,fd=4",
        """-netdev '{"type":"user","hostfwd":[{"str":"tcp::1-:2"}],"id":"n"}'""",
        "-chardev spicevmc,id=a,name=vdagent",
        "-netdev user,id=n,hostfwd=tcp::1-:2",
        '-netdev \'{"type": "user", "id": "n", "hostfwd": [{"str": "tcp::1-:2"}]}\'',
        "-netdev type=vde,id=n",
        "-chardev backend=udp,id=a,port=1",
        "-netdev bridge,id=n,br=b",
        "-netdev tap,id=n",
        "-netdev tap,id=n,br=b,helper=/h",
        "-netdev vhost-user,id=n,chardev=c",
        "-device vhost-vsock-pci,guest-cid=3",
        '-device \'{"driver": "vfio-pci", "host": "1"}\'',
    ],
)
def test_what_cannot_be_carried_over(text: str) -> None:
    assert len(made(text).refusals) == 1, made(text)


@pytest.mark.parametrize(
    "text",
    [
        "-nographic",
        "-nographic -serial none",
        "-nographic -monitor none",
        "-serial stdio",
        "-serial mon:stdio",
    ],
)
def test_a_terminal_goes_by_inheritance(text: str) -> None:
    assert len(made(text).only_child) == 1
    assert not made(text).refusals


@pytest.mark.parametrize(
    "text",
    ["-nodefaults", "-serial none -monitor none", "-serial null -qmp none", "-serial none -mon a"],
)
def test_without_a_terminal_nographic_says_nothing(text: str) -> None:
    assert not made(f"-nographic {text}").only_child


@pytest.mark.parametrize(
    "text",
    [
        "-netdev user,id=n",
        "-chardev socket,id=a,path=x",
        "-chardev socket,id=a,path=x,server=on",
        "-chardev pty,id=a",
        "-readconfig f",
        "-display gtk",
        "-daemonize",
    ],
)
def test_what_somebody_has_to_see_to(text: str) -> None:
    assert len(made(text).remarks) == 1
    assert not made(text).refusals
    assert made("-m 1G -vnc none -display none -net none").remarks == []


def test_every_release_s_options_are_known() -> None:
    releases = load_releases(Layout.default().patches / "releases.toml").releases
    assert known.RELEASES.keys() == releases.keys(), "python tests/patches/test_options.py"
    assert not known.WITH & known.WITHOUT
    tables = (successor._DROPPED, successor._REFUSED, successor._SHORT, successor._CARRIED)
    assert frozenset[str]().union(*tables) <= known.WITH | known.WITHOUT


@pytest.mark.parametrize("name", sorted(known.WITHOUT))
def test_an_option_without_a_value_swallows_nothing(name: str) -> None:
    assert any(text.startswith("-snapshot: ") for text in made(f"-{name} -snapshot").refusals)
    assert ("snapshot", None) in words.pairs(["qemu", f"-{name}", "-snapshot"])


@pytest.mark.parametrize("name", sorted(known.WITH))
def test_an_option_with_a_value_keeps_it(name: str) -> None:
    assert list(words.pairs(["qemu", f"-{name}", "-snapshot", "-S"])) == [
        (name, "-snapshot"), ("S", None),
    ]  # fmt: skip


@pytest.mark.parametrize("text", ["-no-hpet -snapshot", "-no-hpet x -snapshot", "-snapshot -x"])
def test_what_no_qemu_has_is_refused(text: str) -> None:
    refused = made(text).refusals
    assert len(refused) == 2
    assert any("no QEMU that the lab knows has this option" in one for one in refused)
    assert any(one.startswith("-snapshot: ") for one in refused)
