# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab.base import becoming, process
from lab.base.deadline import Deadline, DeadlineError
from lab.base.errors import CannotTellError
from lab.base.layout import CHECKOUT


def _runs(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


def _wait_until(true: Callable[[], object]) -> None:
    until = time.monotonic() + 20
    while not true():
        assert time.monotonic() < until, "it has not come about"
        time.sleep(0.01)


def test_output_lines_and_log(tmp_path: Path) -> None:
    seen: list[str] = []
    log = tmp_path / "log"
    done = process.run(
        ["sh", "-c", "echo one; echo two >&2; cat"], stdin="three\n", log=log, on_line=seen.append
    )
    assert done.returncode == 0
    assert done.stdout == "one\ntwo\nthree\n"
    assert seen == ["one", "two", "three"]
    assert log.read_text() == "+ sh -c 'echo one; echo two >&2; cat'\none\ntwo\nthree\n"


def test_environment_is_added_to() -> None:
    done = process.run(["sh", "-c", 'echo "$ADDED:$HOME"'], env={"ADDED": "yes"})
    assert done.stdout == f"yes:{os.environ['HOME']}\n"


def test_a_failure_says_command_status_output_and_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with pytest.raises(process.CommandError) as caught:
        process.run(["sh", "-c", "echo 'it broke'; exit 7"], log=log, hint="mend it")
    message = caught.value.message
    for words in ("sh -c", "exit status 7", "it broke", str(log)):
        assert words in message
    assert caught.value.hint == "mend it"
    assert isinstance(caught.value, CannotTellError)


def test_only_the_end_of_a_long_output_is_shown() -> None:
    with pytest.raises(process.CommandError) as caught:
        process.run(["sh", "-c", "seq 1000; exit 1"])
    assert len(caught.value.message.splitlines()) < 40
    assert "    1000" in caught.value.message
    assert caught.value.output.startswith("1\n2\n")


def test_a_signal_is_named() -> None:
    with pytest.raises(process.CommandError, match="killed by signal 9"):
        process.run(["sh", "-c", "kill -9 $$"])


def test_unchecked_failures_are_returned() -> None:
    assert process.run(["false"], check=False).returncode == 1


def test_no_such_program_is_told() -> None:
    with pytest.raises(process.CommandError, match="no-such-program: no such program") as caught:
        process.run(["no-such-program", "--x"])
    assert "doctor" in caught.value.hint


def test_no_such_directory_is_told(tmp_path: Path) -> None:
    with pytest.raises(process.CommandError, match="No such file"):
        process.run(["true"], cwd=tmp_path / "nowhere")


def test_a_deadline_ends_the_whole_group(tmp_path: Path) -> None:
    script = f"sleep 600 & echo $! >{shlex.quote(str(tmp_path / 'pid'))}; wait"
    start = time.monotonic()
    with pytest.raises(DeadlineError, match=r"not done after 0\.3 s"):
        process.run(["sh", "-c", script], deadline=Deadline.after(0.3, "test"))
    assert time.monotonic() - start < 10
    pid = int((tmp_path / "pid").read_text())
    _wait_until(lambda: not _runs(pid))


def test_one_in_time_is_not_touched_by_its_deadline() -> None:
    assert process.run(["echo", "x"], deadline=Deadline.after(60, "test")).stdout == "x\n"


def test_what_is_spawned_ends_with_the_block_and_its_children_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "_GRACE_S", 0.2)
    pid_file = shlex.quote(str(tmp_path / "pid"))
    script = f"trap '' TERM; sleep 600 & echo $! >{pid_file}; wait"
    with process.spawned(["sh", "-c", script], log=tmp_path / "log") as child:
        _wait_until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text().strip())
        assert child.poll() is None
    assert child.returncode is not None
    pid = int((tmp_path / "pid").read_text())
    _wait_until(lambda: not _runs(pid))


def test_a_stopped_child_may_still_end_in_its_own_way(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    script = f"trap 'exit 7' TERM; : >{shlex.quote(str(ready))}; while :; do sleep 0.01; done"
    with process.spawned(["sh", "-c", script]) as child:
        _wait_until(ready.exists)
        os.kill(child.pid, signal.SIGSTOP)
    assert child.returncode == 7


def test_a_child_dies_with_a_lab_that_is_killed(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    script = (
        f"import sys; sys.path.insert(0, {str(CHECKOUT)!r})\n"
        "from lab.base.process import run\n"
        f"run(['sh', '-c', 'echo $$ >\"$0\"; exec sleep 600', {str(pid_file)!r}])\n"
    )
    lab = subprocess.Popen([sys.executable, "-c", script])
    _wait_until(lambda: pid_file.exists() and pid_file.read_text().strip())
    lab.kill()
    lab.wait()
    _wait_until(lambda: not _runs(int(pid_file.read_text())))


@given(st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))))
def test_a_command_line_can_be_typed(words: list[str]) -> None:
    assert shlex.split(process.command_line(words)) == words


def test_nothing_else_starts_processes() -> None:
    starts = re.compile(
        r"subprocess\.(?:run|Popen|call|check_\w+)\(|os\.(?:system|exec|spawn|fork|popen)"
    )
    found = [
        path.name
        for path in sorted((CHECKOUT / "lab").rglob("*.py"))
        if path.name != "process.py" and starts.search(path.read_text(encoding="utf-8"))
    ]
    assert found == []


def test_git_is_not_led_to_the_repository_of_whoever_called_us(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A git hook and `git rebase --exec` set GIT_DIR, which beats `git -C`."""
    elsewhere, tree = tmp_path / "elsewhere", tmp_path / "tree"
    tree.mkdir()
    monkeypatch.setenv("GIT_DIR", str(elsewhere))
    process.run(["git", "-C", str(tree), "init", "--quiet"])
    assert (tree / ".git").is_dir()
    assert not elsewhere.exists()


def test_git_has_no_other_way_to_be_led_astray() -> None:
    listed = process.run(["git", "rev-parse", "--local-env-vars"]).stdout.split()
    assert set(listed) <= process.GIT_LOCAL


def test_the_child_of_a_child(tmp_path: Path) -> None:
    go = tmp_path / "go"
    os.mkfifo(go)
    with process.spawned(["sh", "-c", f"read line < {go}; sleep 100 & wait"]) as parent:
        child = becoming.ChildOf(parent.pid)
        assert (child.pid, child.poll()) == (0, None)
        go.write_text("go\n")
        for _ in Deadline.after(10, "the sleep").poll(0.01):
            if child.pid:
                break
        assert child.poll() is None
        os.kill(child.pid, signal.SIGKILL)
        for _ in Deadline.after(10, "its end").poll(0.01):
            if child.poll() is not None:
                break
        assert child.poll() == process.ENDED


def test_a_child_that_only_tries_something_is_not_the_one() -> None:
    """It runs its parent's own program, and ends; the one that becomes another comes later."""
    code = (
        "import os, sys, time\n"
        "trial = os.fork() or time.sleep(100)\n"
        "print(trial, flush=True)\n"
        "sys.stdin.readline()\n"
        "os.kill(trial, 9); os.waitpid(trial, 0)\n"
        "new = os.fork() or os.execvp('sleep', ['sleep', '100'])\n"
        "print(new, flush=True)\n"
        "sys.stdin.readline()\n"
        "os.kill(new, 9)\n"
    )
    argv = [sys.executable, "-c", code]
    pipe = subprocess.PIPE
    with subprocess.Popen(argv, stdin=pipe, stdout=pipe, bufsize=0) as parent:
        assert parent.stdin
        assert parent.stdout
        child = becoming.ChildOf(parent.pid)
        assert int(parent.stdout.readline())
        assert (child.pid, child.poll()) == (0, None)
        parent.stdin.write(b"\n")
        new = int(parent.stdout.readline())
        for _ in Deadline.after(10, "the sleep").poll(0.01):
            if child.pid:
                break
        assert (child.pid, child.poll()) == (new, None)
        parent.stdin.write(b"\n")


def test_a_child_with_its_parents_memory_is_the_one() -> None:
    """Its program is another one in the same address space; all that /proc says is the parent's."""
    code = (
        "import ctypes, signal, sys\n"
        "libc = ctypes.CDLL(None)\n"
        "stack = ctypes.create_string_buffer(1 << 16)\n"
        "top = ctypes.c_void_p((ctypes.addressof(stack) + len(stack)) & ~63)\n"
        "vm = 0x100\n"
        "new = libc.clone(libc.sleep, top, vm | signal.SIGCHLD, ctypes.c_void_p(100))\n"
        "print(new, flush=True)\n"
        "sys.stdin.readline()\n"
        "libc.kill(new, 9)\n"
    )
    argv = [sys.executable, "-c", code]
    pipe = subprocess.PIPE
    with subprocess.Popen(argv, stdin=pipe, stdout=pipe) as parent:
        assert parent.stdin
        assert parent.stdout
        new = int(parent.stdout.readline())
        assert becoming.ChildOf(parent.pid).pid == new
        parent.communicate(b"\n")


def test_the_child_of_a_child_ends_with_the_block() -> None:
    with process.spawned(["sh", "-c", "sleep 100 & wait"]) as parent:
        child = becoming.ChildOf(parent.pid)
        for _ in Deadline.after(10, "the sleep").poll(0.01):
            if child.pid:
                break
    for _ in Deadline.after(10, "its end").poll(0.01):
        if child.poll() is not None:
            return


def test_a_child_is_found_when_its_parent_is_gone() -> None:
    argv = ["sh", "-c", "sleep 100 & echo; wait"]
    with subprocess.Popen(argv, start_new_session=True, stdout=subprocess.PIPE) as parent:
        assert parent.stdout
        parent.stdout.readline()
        child = becoming.ChildOf(parent.pid)
        parent.kill()
        parent.wait()
        assert child.poll() is None
        os.kill(child.pid, signal.SIGKILL)
    for _ in Deadline.after(10, "its end").poll(0.01):
        if child.poll() is not None:
            return


def test_what_a_process_becomes_is_not_there_before(tmp_path: Path) -> None:
    go = tmp_path / "go"
    os.mkfifo(go)
    with process.spawned(["sh", "-c", f"read x <{go}; exec sleep 97.25"]) as shell:
        new = becoming.Become(shell, "\x0097.25\x00")
        assert (new.pid, new.poll()) == (0, None)
        go.write_text("go\n")
        for _ in Deadline.after(10, "the sleep").poll(0.01):
            if new.pid:
                break
        assert (new.pid, new.poll()) == (shell.pid, None)
        os.kill(shell.pid, signal.SIGKILL)
        shell.wait()
        assert (new.pid, new.poll()) == (0, -signal.SIGKILL)


def test_a_child_that_can_come_no_more_has_ended() -> None:
    with subprocess.Popen(["sleep", "100"]) as parent:
        child = becoming.ChildOf(parent.pid)
        assert child.poll() is None
        parent.kill()
    assert child.poll() == process.ENDED


def test_a_process_that_is_not_ours_is_held_by_more_than_its_number() -> None:
    """The number is another process's by now: that one is neither looked at nor killed."""
    with subprocess.Popen(["sleep", "100"]) as gone, subprocess.Popen(["sleep", "100"]) as other:
        held = process.Foreign(gone.pid)
        assert held.poll() is None
        held.kill()
        assert gone.wait(10) == -signal.SIGKILL
        assert held.poll() == process.ENDED
        held.pid = other.pid
        held.kill()
        assert held.poll() == process.ENDED
        assert other.poll() is None
        late = process.Foreign(gone.pid)
        late.kill()
        assert late.poll() == process.ENDED
        other.kill()


def test_a_child_of_a_child_is_held_too() -> None:
    with process.spawned(["sh", "-c", "sleep 100 & wait"]) as parent:
        child = becoming.ChildOf(parent.pid)
        for _ in Deadline.after(10, "the sleep").poll(0.01):
            if child.pid:
                break
        held = child._found
        assert held
        held.kill()
        for _ in Deadline.after(10, "its end").poll(0.01):
            if child.poll() is not None:
                break
        assert child._found is held


def test_nothing_is_left_open_of_a_process() -> None:
    before = set(Path("/proc/self/fd").iterdir())
    assert process.Foreign(os.getpid()).poll() is None
    assert set(Path("/proc/self/fd").iterdir()) == before
