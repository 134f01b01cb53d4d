# SPDX-License-Identifier: GPL-2.0-or-later
"""The first process of a bed (bed.py): makes it, says so, and reaps until it is killed.

::

    bedinit.py install WHERE ARCHIVE PACKAGE...
    bedinit.py run DESCRIPTOR WHERE ARCHIVE ADDRESS DIRECTORY...

WHERE is an empty directory.  Mounts of a namespace of its own are all that is changed.
"""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress
from pathlib import Path

from pyroute2 import IPRoute

from lab.base import process

_NODES = {
    "null": (1, 3),
    "zero": (1, 5),
    "full": (1, 7),
    "random": (1, 8),
    "urandom": (1, 9),
    "tty": (5, 0),
    "net/tun": (10, 200),
    "fuse": (10, 229),
}
_LINKS = {"fd": "/proc/self/fd", "stdin": "fd/0", "stdout": "fd/1", "stderr": "fd/2"}
#: What a service needs of /run and does not make by itself.
_RUN = ("lock", "user")


def mount(kind: str, where: Path, options: str = "", source: str = "") -> None:
    """Mount a file system (mount(8)); the directory is made."""
    where.mkdir(parents=True, exist_ok=True)
    words = ["-o", options] if options else []
    process.run(["mount", "-t", kind, *words, source or kind, where])


def bind(source: Path, where: Path) -> None:
    """Have a directory in another place as well, with what is mounted below it."""
    where.mkdir(parents=True, exist_ok=True)
    process.run(["mount", "--rbind", source, where])


def overlay(where: Path, archive: Path | None) -> Path:
    """Return a copy of the machine's root, what is written to it being in memory; mounted."""
    process.run(["mount", "--make-rprivate", "/"])
    mount("tmpfs", where, "mode=755")
    upper, work, root = (where / name for name in ("upper", "work", "root"))
    for directory in (upper, work, root):
        directory.mkdir()
    if archive:
        process.run(["tar", "-C", upper, *_XATTRS, "-xf", archive])
    layers = f"lowerdir=/,upperdir={upper},workdir={work}"
    mount("overlay", root, f"{layers},redirect_dir=off,metacopy=off,index=off")
    return root


_XATTRS = ("--xattrs", "--xattrs-include=trusted.overlay.*")


def devices(dev: Path) -> None:
    """Make a /dev of its own."""
    mount("tmpfs", dev, "mode=755,nosuid")
    (dev / "net").mkdir()
    (dev / "mqueue").mkdir()
    mount("devpts", dev / "pts", "newinstance,mode=620,ptmxmode=666,gid=5")
    mount("tmpfs", dev / "shm", "mode=1777")
    (dev / "ptmx").symlink_to("pts/ptmx")
    for name, (major, minor) in _NODES.items():
        os.mknod(dev / name, 0o020666, os.makedev(major, minor))
        (dev / name).chmod(0o666)
    for name, target in _LINKS.items():
        (dev / name).symlink_to(target)


def control_groups(under: Path) -> None:
    """Mount every hierarchy that the machine has at the place where it has it."""
    seen = Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines()
    for line in seen:
        mounted, _, source = line.partition(" - ")
        kind, _, options = source.split(" ", 2)
        where = mounted.split()[4]
        if where == "/sys/fs/cgroup" and kind == "tmpfs":
            mount("tmpfs", under / "sys/fs/cgroup", "mode=755")
        elif kind in {"cgroup", "cgroup2"}:
            wanted = [one for one in options.split(",") if one not in {"rw", "ro"}]
            if "name=systemd" in wanted:
                wanted.insert(0, "none")
            told = ",".join(one for one in wanted if not one.startswith("release_agent"))
            mount(kind, under / where.lstrip("/"), told if kind == "cgroup" else "")
            leaf = under / where.lstrip("/") / "init"
            if kind == "cgroup2" and where == "/sys/fs/cgroup":
                leaf.mkdir(exist_ok=True)  # who has processes lets no group below have a controller
                (leaf / "cgroup.procs").write_text("0", encoding="ascii")


def change_root(root: Path) -> None:
    """Make `root` the root directory of every process here."""
    (root / ".old").mkdir()
    os.chdir(root)
    process.run(["pivot_root", ".", ".old"])
    os.chdir("/")


def open_way(root: Path, path: Path) -> None:
    """Let every user of the bed through to a directory, where it is the machine's owner's alone."""
    path.mkdir(parents=True, exist_ok=True)
    for above in path.parents:
        if not above.is_relative_to(root):
            return
        above.chmod(above.stat().st_mode & 0o7777 | 0o001)


def network(address: str) -> None:
    """Make the loopback and the bridge."""
    where, _, prefix = address.partition("/")
    with IPRoute() as netlink:
        netlink.link("set", index=netlink.link_lookup(ifname="lo")[0], state="up")
        netlink.link("add", ifname="br0", kind="bridge", br_stp_state=0, br_forward_delay=0)
        bridge = netlink.link_lookup(ifname="br0")[0]
        netlink.addr("add", index=bridge, address=where, prefixlen=int(prefix))
        netlink.link("set", index=bridge, state="up")


def install(where: Path, archive: Path, packages: list[str]) -> None:
    """Install packages in an overlay, and pack what that changed."""
    root = overlay(where, None)
    bind(Path("/dev"), root / "dev")
    mount("proc", root / "proc")
    mount("tmpfs", root / "run", "mode=755")
    # Nothing starts a service there (Debian's policy-rc.d).
    policy = root / "usr/sbin/policy-rc.d"
    policy.write_text("#!/bin/sh\nexit 101\n", encoding="ascii")
    policy.chmod(0o755)
    get = ["env", "DEBIAN_FRONTEND=noninteractive", "chroot", root, "apt-get", "-q"]
    wanted = ["install", "-y", "--no-install-recommends", *packages]
    if process.run([*get, *wanted], check=False, on_line=say).returncode != 0:
        process.run([*get, "update"], on_line=say)
        process.run([*get, *wanted], on_line=say)
    process.run([*get, "clean"])
    for name in ("run", "proc", "dev"):
        process.run(["umount", "--recursive", "--lazy", root / name])
    process.run(["umount", root])
    process.run(["tar", "-C", where / "upper", *_XATTRS, "-cf", archive, "."])


def say(line: str) -> None:
    """Pass a line on."""
    sys.stdout.write(line + "\n")


def run(told: int, where: Path, archive: str, address: str, kept: list[Path]) -> None:
    """Be the bed."""
    root = overlay(where, None if archive == "-" else Path(archive))
    devices(root / "dev")
    mount("proc", root / "proc")
    mount("sysfs", root / "sys")
    control_groups(root)
    mount("tmpfs", root / "run", "mode=755")
    for name in _RUN:
        (root / "run" / name).mkdir()
    mount("tmpfs", root / "tmp", "mode=1777")
    for path in sorted(kept):
        place = root / str(path).lstrip("/")
        open_way(root, place)
        bind(path, place)
    change_root(root)
    process.run(["umount", "--recursive", "--lazy", "/.old"])
    Path("/.old").rmdir()
    network(address)
    os.write(told, b"ready")
    os.close(told)
    while True:
        with suppress(ChildProcessError):
            os.wait()
            continue
        signal.sigwait([signal.SIGCHLD])


def main() -> None:
    """Do what the command line says."""
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
    what, *rest = sys.argv[1:]
    if what == "install":
        install(Path(rest[0]), Path(rest[1]), rest[2:])
    else:
        told, where, archive, address, *kept = rest
        run(int(told), Path(where), archive, address, [Path(one) for one in kept])


if __name__ == "__main__":
    main()
