# SPDX-License-Identifier: GPL-2.0-or-later
"""What a test has in the place of Proxmox VE's qmeventd: ``qmeventd.py SOCKET LOG``.

Every QEMU connects to it and is asked for its capabilities; the end of a connection is taken for
the end of its guest, which is cleaned up after, as ``qm cleanup`` does: unless another process is
in the guest's pid file by then.
"""

from __future__ import annotations

import os
import re
import select
import socket
import struct
import sys
import threading
from contextlib import suppress
from pathlib import Path


def told(log: Path, text: str) -> None:
    """Write a line down."""
    with log.open("a", encoding="utf-8") as file:
        file.write(text + "\n")


def serve(client: socket.socket, log: Path) -> None:
    """Talk to one QEMU until it is gone."""
    size = struct.calcsize("3i")
    pid, _, _ = struct.unpack("3i", client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
    process = os.pidfd_open(pid)
    words = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
    found = re.search(r"qemu-server/(\d+)\.qmp", " ".join(words))
    assert found
    guest = found.group(1)
    client.recv(65536)
    client.send(b'{"execute": "qmp_capabilities"}\n')
    told(log, f"connected {guest} {pid}")
    with suppress(ConnectionResetError):
        while client.recv(65536):
            pass
    # The connection goes first: the process is still there for a moment.
    select.select([process], [], [])
    told(log, f"gone {guest} {pid}")
    now = Path(f"/run/qemu-server/{guest}.pid")
    owner = now.read_text(encoding="ascii").strip() if now.exists() else ""
    if owner in {"", str(pid)} or not Path("/proc", owner).exists():
        told(log, f"cleanup {guest}")


def main() -> None:
    """Be in the background, and listen."""
    path, log = map(Path, sys.argv[1:3])
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()
    if os.fork():
        return
    os.setsid()
    for number in range(3):
        os.dup2(os.open(os.devnull, os.O_RDWR), number)
    while True:
        client, _ = listener.accept()
        threading.Thread(target=serve, args=[client, log], daemon=True).start()


if __name__ == "__main__":
    main()
