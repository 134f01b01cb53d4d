# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import fake_source
import pytest

from lab.base import layout as layouts
from lab.base.errors import CannotTellError
from lab.base.layout import CHECKOUT, Layout, locked


def test_the_cache_is_where_xdg_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert Layout.default().cache == tmp_path / "pageflip"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/somebody")
    assert Layout.default().cache == Path("/home/somebody/.cache/pageflip")
    assert (Layout.default().checkout / "pyproject.toml").is_file()


def test_runs_have_directories_of_their_own(tmp_path: Path) -> None:
    layout = fake_source.layout(tmp_path)
    one, two = layout.new_run(), layout.new_run()
    assert one != two
    assert one.parent == two.parent == layout.out


def test_a_run_directory_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "out").touch()
    with pytest.raises(CannotTellError, match="cannot make the run directory") as caught:
        fake_source.layout(tmp_path).new_run()
    assert "--out" in caught.value.hint


def test_a_lock_is_held_by_one_at_a_time(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    order: list[str] = []
    inside, go_on = threading.Event(), threading.Event()

    def first() -> None:
        with locked(tmp_path / "thing"):
            inside.set()
            go_on.wait(10)
            order.append("first")

    thread = threading.Thread(target=first)
    thread.start()
    assert inside.wait(10)
    threading.Timer(0.1, go_on.set).start()
    with locked(tmp_path / "thing", "waiting for the first"):
        order.append("second")
    thread.join()
    assert order == ["first", "second"]
    assert "waiting for the first" in capsys.readouterr().err


def test_a_lock_goes_with_the_process(tmp_path: Path) -> None:
    script = (
        f"import os, sys; sys.path.insert(0, {str(CHECKOUT)!r})\n"
        "from pathlib import Path\nfrom lab.base.layout import locked\n"
        f"with locked(Path({str(tmp_path / 'thing')!r})):\n    os._exit(9)\n"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 9
    with locked(tmp_path / "thing"):
        pass


def test_sockets_have_short_names(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/nowhere")
    with layouts.socket_directory() as directory:
        assert directory.is_dir()
        assert len(str(directory)) < 60
    assert not directory.exists()


def test_a_roomy_directory_is_not_in_memory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    with layouts.socket_directory() as small, layouts.socket_directory(roomy=True) as roomy:
        assert small.parent == tmp_path
        assert roomy.parent != tmp_path


def test_the_submodules_directory_does_not_hide_qemu_qmp(tmp_path: Path) -> None:
    (tmp_path / "qemu" / "python").mkdir(parents=True)
    script = "import sys; sys.path.insert(0, '.'); import qemu.qmp; print(qemu.qmp.__name__)"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout == "qemu.qmp\n"
    assert not (CHECKOUT / "qemu" / "__init__.py").exists()
