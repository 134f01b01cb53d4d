# SPDX-License-Identifier: GPL-2.0-or-later
"""The program as a shell runs it: its exit code is of what was done, whatever becomes of the words.

What goes wrong around it is told in words, and is no bug of the lab's.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lab.base.layout import CHECKOUT

PROGRAM = [sys.executable, "-P", "-m", "lab"]
#: A verb that does nothing but print, and one that prints more than a pipe holds and has failed.
LIST = shlex.join([*PROGRAM, "guest", "list"])
FAKE = """
import sys, types
from rich.console import Console
from lab import __main__, cli
verb = types.ModuleType("fake")
verb.add_arguments = lambda _parser: None
def run(_options):
    for stream in (sys.stdout, sys.stderr):
        Console(file=stream).print(("x" * 70 + "\\n") * 1500)
        stream.write(("x" * 70 + "\\n") * 1500)
    return 2
verb.run = run
sys.modules["fake"] = verb
cli.VERBS["fake"] = ("fake", "fake")
sys.argv = ["pageflip", "fake"]
sys.exit(__main__.main())
"""


def shell(text: str, cwd: Path = CHECKOUT, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-c", f"set -o pipefail; {text}"],
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(CHECKOUT), **env},
        timeout=60,
    )


def told(done: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    """Assert that it ended so, with these words and no traceback."""
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    for word in words:
        assert word in done.stderr


FULL = "pageflip: not everything could be written to stdout: No space left on device"


@pytest.mark.parametrize(
    "way",
    [
        ">&-",
        "2>&-",
        "<&- >&- 2>&-",
        "| true",
        "2>&1 >/dev/full | true",
        ">/dev/full",
        "2>/dev/full",
    ],
)
def test_the_exit_code_is_of_what_was_done(way: str) -> None:
    done = shell(f"{shlex.join([sys.executable, '-c', FAKE])} {way}")
    told(done, 2, *([FULL] if way == ">/dev/full" else []))


def test_a_full_disk_behind_stdout_is_told() -> None:
    told(shell(f"{LIST} >/dev/full"), 0, FULL)
    assert shell(f"{LIST} | true").stderr == ""
    assert shell(f"{LIST} >&-").stderr == ""
    told(shell(f"{shlex.join(PROGRAM)} --help >/dev/full"), 0)


def test_a_closed_descriptor_is_nobody_elses() -> None:
    """What is opened first would get its number, and what is printed would go there."""
    code = (
        "import os, sys; from lab.base import streams; streams.steady();"
        "one = os.open('/dev/zero', os.O_RDONLY); print('out'); sys.exit(one < 3)"
    )
    told(shell(f"{shlex.join([sys.executable, '-c', code])} <&- >&- 2>&-"), 0)
    echo = "import subprocess; from lab.base import streams; streams.steady();"
    echo += "raise SystemExit(subprocess.run(['sh', '-c', 'echo x; echo y >&2']).returncode)"
    told(shell(f"{shlex.join([sys.executable, '-c', echo])} >&- 2>&-"), 0)


@pytest.mark.parametrize("module", ["rich", "lab.cli", "lab.base.streams"])
def test_ctrl_c_during_the_imports(tmp_path: Path, module: str) -> None:
    """A module that does not come to its end is imported instead of the one of that name."""
    (tmp_path / "sitecustomize.py").write_text(
        "import importlib.abc, sys, time\n"
        "class Slow(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path, target=None):\n"
        f"        if name == {module!r}:\n"
        "            sys.meta_path.remove(self)\n"
        "            print('here', flush=True)\n"
        "            while True:\n"
        "                time.sleep(0.1)\n"
        "sys.meta_path.insert(0, Slow())\n"
    )
    with subprocess.Popen(
        [*PROGRAM, "guest", "list"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=CHECKOUT,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    ) as process:
        assert process.stdout
        assert process.stderr
        assert process.stdout.readline() == "here\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
        assert process.stderr.read() == "pageflip: interrupted\n"


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("/sys", "build"),
        ("/proc", "build"),
        ("file", "build"),
        ("file", "guest build tiny"),
        ("file", "patches lint"),
    ],
)
def test_caches_that_cannot_be_used(tmp_path: Path, place: str, words: str) -> None:
    (tmp_path / "file").touch()
    base = tmp_path / place
    done = shell(f"{shlex.join(PROGRAM)} {words}", tmp_path, XDG_CACHE_HOME=str(base))
    told(done, 3, f"the caches in {base}/pageflip cannot be used", "XDG_CACHE_HOME")


def test_a_cache_that_is_no_directory(tmp_path: Path) -> None:
    (tmp_path / "pageflip").mkdir()
    (tmp_path / "pageflip" / "downloads").touch()
    done = shell(f"{shlex.join(PROGRAM)} build", tmp_path, XDG_CACHE_HOME=str(tmp_path))
    told(done, 3, f"{tmp_path}/pageflip/downloads: ", "XDG_CACHE_HOME")


def test_the_doctor_sees_it(tmp_path: Path) -> None:
    done = shell(f"{shlex.join(PROGRAM)} doctor", tmp_path, XDG_CACHE_HOME="/sys", COLUMNS="200")
    told(done, 3)
    assert "the caches in /sys/pageflip cannot be used" in done.stdout


def test_no_home_and_no_current_directory(tmp_path: Path) -> None:
    gone = f"mkdir {tmp_path}/gone; cd {tmp_path}/gone; rmdir {tmp_path}/gone"
    told(shell(f"{gone}; {LIST}"), 3, "the current directory cannot be used", "what to do")
    code = (
        "import os, pwd, sys\n"
        "def nobody(_uid): raise KeyError\n"
        "pwd.getpwuid = nobody\n"
        "from lab.cli import main; sys.exit(main(['guest', 'list']))"
    )
    homeless = f"unset HOME XDG_CACHE_HOME; {shlex.join([sys.executable, '-c', code])}"
    told(shell(homeless), 3, "there is no place for the caches", "XDG_CACHE_HOME")


def test_a_number_that_is_none() -> None:
    told(shell(f"{shlex.join(PROGRAM)} upgrade --pid ² --new /x"), 2, "neither a process id nor")


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_interpreters_own_end_is_not_interrupted(signum: int) -> None:
    """An object that is taken down with its module sends the signal: Python's handlers are gone."""
    code = (
        "import os, sys\n"
        "class Late:\n"
        f"    def __del__(self, kill=os.kill, pid=os.getpid()): kill(pid, {int(signum)})\n"
        "late = Late()\n"
        "from lab.__main__ import main\n"
        "sys.argv = ['pageflip', '--version']\n"
        "sys.exit(main())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=CHECKOUT, check=False)
    assert done.returncode == 0
