# SPDX-License-Identifier: GPL-2.0-or-later
"""What runs inside the lab's network namespace: ``python -m lab.workloads.netnschild DESCRIPTOR``.

Makes the bridge, then answers on the socket that it was given until the lab closes it.  A request
is one word; the answer is a JSON object, with the descriptor that was asked for if it was one.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import struct
import sys

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from lab.workloads.netns import HOST, PREFIX

_BRIDGE = "guests"
_TUN = "/dev/net/tun"
#: linux/if_tun.h
_TUNSETIFF = 0x400454CA
_IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR = 0x0002, 0x1000, 0x4000
_WORD_BYTES = 64
#: What a tap keeps for a guest that stands still: seconds of the lab's traffic (packets).
_QUEUED = 10_000


def bridge(netlink: IPRoute) -> int:
    """Make the bridge, with the host's address, and return its index; raise NetlinkError."""
    # Nothing here can make a loop, and what listens for 15 s forwards nothing meanwhile.
    netlink.link("add", ifname=_BRIDGE, kind="bridge", br_stp_state=0, br_forward_delay=0)
    index: int = netlink.link_lookup(ifname=_BRIDGE)[0]
    netlink.addr("add", index=index, address=HOST, prefixlen=PREFIX)
    netlink.link("set", index=index, state="up")
    return index


def tap(netlink: IPRoute, master: int) -> int:
    """Return a new tap on the bridge; it goes with its descriptor.  Raises OSError, NetlinkError.

    With virtio-net headers, as every tap has that management software makes for QEMU.
    """
    descriptor = os.open(_TUN, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        request = struct.pack("16sH22x", b"tap%d", _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR)
        name = fcntl.ioctl(descriptor, _TUNSETIFF, request)[:16].rstrip(b"\0").decode()
        index = netlink.link_lookup(ifname=name)[0]
        netlink.link("set", index=index, master=master, txqlen=_QUEUED, state="up")
    except (OSError, NetlinkError):
        os.close(descriptor)
        raise
    return descriptor


def dropped(netlink: IPRoute) -> int:
    """Return how many packets, of any kind, the taps had no room for.  Raises NetlinkError."""
    taps = netlink.get_links(kind="tun")
    return sum(tap.get_attr("IFLA_STATS64")["tx_dropped"] for tap in taps)


def refuse(control: socket.socket, error: Exception) -> None:
    """Answer with what went wrong, and what the user can do about it."""
    control.send(json.dumps({"error": str(error), "hint": hint(error)}).encode())


def hint(error: Exception) -> str:
    """Return what the user can do about it."""
    if isinstance(error, OSError) and error.filename == _TUN:
        return f"chmod 666 {_TUN} is what most distributions ship; modprobe tun if there is none"
    return "the kernel needs the modules tun and bridge"


def serve(control: socket.socket, netlink: IPRoute, master: int) -> None:
    """Answer until the lab is gone."""
    while word := control.recv(_WORD_BYTES).decode():
        try:
            if word == "dropped":
                control.send(json.dumps({"dropped": dropped(netlink)}).encode())
                continue
            if word == "tap":
                given = tap(netlink, master)
            else:
                given = socket.socket(socket.AF_INET, socket.SocketKind[word]).detach()
        except (OSError, NetlinkError) as error:
            refuse(control, error)
            continue
        socket.send_fds(control, [b"{}"], [given])
        os.close(given)


def main() -> None:
    """Hold the namespace for as long as the lab wants it."""
    with socket.socket(fileno=int(sys.argv[1])) as control, IPRoute() as netlink:
        try:
            master = bridge(netlink)
        except NetlinkError as error:
            refuse(control, error)
            return
        control.send(b"{}")
        serve(control, netlink, master)


if __name__ == "__main__":
    main()
