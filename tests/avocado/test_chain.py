# SPDX-License-Identifier: GPL-2.0-or-later
"""One guest through many QEMUs, one after the other: nothing may grow from hop to hop.

Parameters (avocado -p): ram (512M), touch (75%), dirty_rate (20M), accel (auto), old, new,
hops (20; 100 there and back).
"""

import dataclasses
from contextlib import suppress
from pathlib import Path

import avocado

from lab import options, pipeline
from lab.base.deadline import Deadline
from lab.base.errors import PreconditionError
from lab.base.layout import Layout
from lab.live import joined
from lab.measure import downtime, integrity, memory
from lab.mechanisms import Asked
from lab.mechanisms.move import move
from lab.model import Outcome
from lab.stage import Stage, staged
from lab.vm import cmdline
from lab.vm.monitor import MonitorError
from lab.vm.qemu import Vm

#: Mappings and KiB that a QEMU may have more than another one of the same guest.
_MORE_MAPS, _MORE_KIB = 12, 16 << 10


class Chain(avocado.Test):
    """The checker in the guest runs all the while, and checks everything in the end.

    :avocado: tags=thorough
    """

    timeout = 1800

    def test_flip(self) -> None:
        """From the old release to the new one, and then from the new one to itself."""
        self.chain("new", hops=20)

    def test_remap(self) -> None:
        """The same in one address space, which every QEMU has to leave as it found it."""
        self.chain("new", hops=20, mechanism="remap")

    def test_there_and_back(self) -> None:
        """From the old release to the new one, back, and again."""
        self.chain("new", "old", hops=100)

    def test_transplant(self) -> None:
        """The same as the first, and neither of both needs the series."""
        self.chain("new", hops=20, mechanism="transplant")

    def chain(self, *sides: str, hops: int, mechanism: str = "flip") -> None:
        """Run the guest through QEMUs of `sides`, again and again; cancel where that cannot be."""
        defaults = {
            "ram": "512M",
            "touch": "75%",
            "dirty_rate": "20M",
            "accel": "auto",
            "old": "old",
            "new": "new",
        }
        asked = {name: self.params.get(name, default=value) for name, value in defaults.items()}
        wanted = options.of(mechanism=mechanism, **asked)
        layout = Layout.default().into(Path(self.outputdir))
        try:
            self.run_chain(layout, wanted, sides, int(self.params.get("hops", default=hops)))
        except PreconditionError as error:
            self.cancel(f"{error.message} {error.hint}")

    def run_chain(
        self, layout: Layout, wanted: options.UpgradeOptions, sides: tuple[str, ...], hops: int
    ) -> None:
        """Boot under the old QEMU, go from one to the next, and compare them."""
        with staged(layout, wanted) as stage:
            vm = pipeline.run_under_old(stage)
            seen = []
            for hop in range(1, hops + 2):
                qemu = getattr(stage.pair, sides[(hop - 1) % len(sides)]).path
                vm = self.hop(stage, vm, qemu, f"hop-{hop}")
                seen.append(self.size(vm))
                self.log.info("hop %d: %s", hop, seen[-1])
            found = integrity.check(vm.control, wanted.touched_bytes)
        self.assertEqual(found.status["bad_pages"], 0, found)
        self.assertEqual(found.status["pages"] * 4096, wanted.touched_bytes)
        # Only QEMUs of one kind can be compared; the first one of all had no one before it.
        first, last = seen[1 :: len(sides)][0], seen[1 :: len(sides)][-1]
        self.assertLessEqual(last["maps"], first["maps"] + _MORE_MAPS)
        self.assertEqual(last["descriptors"], first["descriptors"])
        self.assertLessEqual(last["kib"], first["kib"] + _MORE_KIB)

    def hop(self, stage: Stage, old: Vm, qemu: Path, name: str) -> Vm:
        """Let the guest go to another QEMU, and the one it had go away."""
        mechanism, start, sockets = stage.mechanism, stage.start, stage.sockets / name
        machine = cmdline.successor(
            old.machine,
            qemu=qemu,
            firmware=old.machine.firmware,
            sockets=sockets,
            serial_log=start.directory / f"{name}-serial.log",
            incoming=mechanism.incoming(dataclasses.replace(old.machine, sockets=sockets)),
        )
        new = start.expect(name, machine, old)
        moved = move(start, old, new, mechanism, Asked(patience_ms=30_000))
        self.assertEqual(moved.outcome, Outcome.UPGRADED, moved.failure)
        self.assertNotIn("fallback", moved.old_info.get("localhost", {}))
        pause = downtime.pause(
            old.heart.beats,
            new.heart.beats,
            moved.window,
            old.events,
            new.events,
        )
        self.log.info("%s: STOP to RESUME %s ms", name, pause.qmp)
        with suppress(MonitorError):  # it may have ended with the move
            old.monitor.execute("quit")
        for _ in Deadline.after(30, "the last QEMU ends").poll(0.01):
            if old.dead:
                break
        new.heart.wait(100, Deadline.after(60, "the guest's heart beats"), new.alive)
        if mechanism.joins:
            joined.wait_alone(new.pid, str(sockets))
        return new

    def size(self, vm: Vm) -> dict[str, int]:
        """Return what may not grow."""
        process = Path(f"/proc/{vm.pid}")
        return {
            "maps": len((process / "maps").read_text(encoding="utf-8").splitlines()),
            "descriptors": len(list((process / "fd").iterdir())),
            "kib": memory.pss(vm.pid) // 1024,
        }
