# SPDX-License-Identifier: GPL-2.0-or-later
"""A whole Debian changes QEMUs while its databases, its disk and its network are at work.

Parameters (avocado -p): as in test_upgrade.py.
"""

import avocado
from upgrading import SECOND_QEMU, Upgrading

from lab.base.deadline import Deadline
from lab.model import Outcome, Result, VerdictKind
from lab.vm.qemu import Vm
from lab.vm.qga import guest_agent

_STATE = "/var/lib/pageflip"
#: What each does to its workload unseen, and what is said of it.
_DAMAGES = {
    f"printf X | dd of={_STATE}/disk/journal bs=1 seek=1000 conv=notrunc": (
        "1 records of the journal are damaged"
    ),
    "runuser -u postgres -- psql -c 'UPDATE pgbench_accounts SET abalance = abalance + 1 "
    "WHERE aid = 1'": "accounts, tellers, branches and history differ",
    "pkill -KILL -f 'Digest[:]:SHA'": "the chain was cut off",
    "pkill -KILL -x stress-ng": "stress-ng ended with status 137",
    "runuser -u postgres -- psql -c 'DELETE FROM pgbench_history WHERE ctid IN "
    "(SELECT ctid FROM pgbench_history LIMIT 1)'": "transactions were committed, PostgreSQL has",
    f"sqlite3 -cmd '.timeout 60000' {_STATE}/database/sqlite.db "
    "\"UPDATE t SET text = 'x' WHERE n = 1\"": "rows were committed, sqlite has",
}


class Debian(Upgrading, avocado.Test):
    """The verdict says what the workloads found; here is what it cannot know.

    :avocado: tags=medium
    """

    timeout = 2400
    guest = "debian"
    ram = "1G"
    touch = "50%"
    cpus = 2
    dirty_rate = "10M"  # there is more to do than that

    def test_flip(self) -> None:
        """Private memory changes owner, the disk and its lock with it."""
        names = ("fio_rounds", "journal_records", "transactions", "sqlite_rows", "tcp_bytes")
        result = self.passes("flip", 1 + SECOND_QEMU, workload="disk,database,network,cpu")
        self.worked(result, *names, "stress_ops", "chain_steps")

    def test_new_qemu_killed(self) -> None:
        """The disk stays where the guest stays.

        :avocado: tags=thorough
        """
        result = self.new_killed("flip", 1 + SECOND_QEMU, workload="disk")
        self.assertEqual(result.outcome, Outcome.ROLLED_BACK)
        self.worked(result, "fio_rounds", "journal_records")

    def test_damage(self) -> None:
        """Whatever is changed behind a workload's back is found, and is the upgrade's fault.

        :avocado: tags=thorough
        """

        def damage(old: Vm, _new: Vm) -> None:
            deadline = Deadline.after(120, "the guest damages its data")
            # It is not to be gone before all is done.
            old.monitor.execute("migrate-set-parameters", {"max-bandwidth": 2**20})
            with guest_agent(old) as agent:
                for command in _DAMAGES:
                    done = agent.run(["/bin/sh", "-c", command], deadline)
                    self.assertEqual(done.returncode, 0, done.stderr)
            old.monitor.execute("migrate-set-parameters", {"max-bandwidth": 2**40})

        result = self.upgrade("precopy", 2.3, damage, workload="disk,database,cpu")
        self.assertEqual(result.verdict, VerdictKind.FAIL)
        for words in _DAMAGES.values():
            self.assertIn(words, " ".join(result.reasons))

    def worked(self, result: Result, *names: str) -> None:
        """Assert that every workload did something and found nothing wrong."""
        figures: dict[str, int | float | None] = {}
        for found in result.workloads:
            self.assertEqual(found.problems, [])
            figures |= found.figures
        for name in names:
            self.assertGreater(figures.get(name) or 0, 0, name)
