# SPDX-License-Identifier: GPL-2.0-or-later
"""What some tests need of the machine.  Each returns why it is not there, or "".

A need is tried by itself, without the lab and before the test.  A test that has what it needs and
fails has failed: nothing is skipped because something went wrong.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

#: Prints which refusal of the kernel's it met; anything else ends it with a traceback.
_NETWORK = """
import fcntl, os, struct
from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError
try:
    with IPRoute() as netlink:
        netlink.link("add", ifname="probe", kind="bridge")
    descriptor = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(descriptor, 0x400454CA, struct.pack("16sH22x", b"tap%d", 0x1002))
except (OSError, NetlinkError) as error:
    print(f"no bridge with a tap in a network namespace: {error}")
"""
_STATIC = "#include <jansson.h>\nint main(void) { json_decref(json_object()); return 0; }\n"


@functools.cache
def network() -> str:
    """A network namespace, in a user namespace but for root, and in it a bridge and a tap."""
    if not shutil.which("unshare"):
        return "no unshare"
    user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    argv = ["unshare", *user, "--net", "--"]
    made = subprocess.run([*argv, "true"], stderr=subprocess.PIPE, text=True, check=False)
    if made.returncode:
        return made.stderr.strip()
    tried = subprocess.run(
        [*argv, sys.executable, "-c", _NETWORK], stdout=subprocess.PIPE, text=True, check=True
    )
    return tried.stdout.strip()


@functools.cache
def memory_group() -> str:
    """A memory cgroup that can be made, limited, and asked for its peak."""
    root = Path("/sys/fs/cgroup")
    first = (root / "memory" / "tasks").exists()
    peak = "memory.max_usage_in_bytes" if first else "memory.peak"
    group = (root / "memory" if first else root) / f"probe-{os.getpid()}"
    try:
        group.mkdir()
        try:
            (group / peak).read_text(encoding="ascii")
        finally:
            group.rmdir()
    except OSError as error:
        return f"no memory group can be made: {error}"
    return ""


@functools.cache
def static_c() -> str:
    """A compiler that links with the static libraries of libc and jansson."""
    if not shutil.which("cc"):
        return "no C compiler"
    with tempfile.TemporaryDirectory() as directory:
        argv = ["cc", "-static", "-x", "c", "-", "-ljansson", "-o", f"{directory}/probe"]
        tried = subprocess.run(argv, input=_STATIC, capture_output=True, text=True, check=False)
    return f"nothing can be linked statically: {tried.stderr.strip()}" if tried.returncode else ""


def memory(wanted: int) -> str:
    """So many bytes of memory that are available."""
    text = Path("/proc/meminfo").read_text(encoding="ascii")
    available = int(text.partition("MemAvailable:")[2].split()[0]) << 10
    return f"{wanted} bytes of memory are wanted, {available} are there" * (available < wanted)


def huge_bytes() -> int:
    """What of this process is in transparent huge pages, by the kernel's own account."""
    text = Path("/proc/self/smaps_rollup").read_text(encoding="ascii")
    return int(text.partition("AnonHugePages:")[2].split()[0]) << 10
