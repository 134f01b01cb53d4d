# SPDX-License-Identifier: GPL-2.0-or-later
"""The set-up script, in a world of stubs: no package is installed and no network asked."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from lab.base.layout import CHECKOUT

_TOOLS = ("cat", "cp", "env", "flock", "grep", "ls", "mkdir", "readlink", "rm", "sed", "sh")
_TOOLS += ("sha256sum", "sleep", "tail", "touch", "tr")
_LISTS = (
    "packages.txt",
    "packages-check.txt",
    "guests/debian/packages.txt",
    "guests/tiny-arm64/packages.txt",
)
# Stands for every python: makes an environment whose python is itself, and tells what it was asked.
_PYTHON = r"""#!/bin/sh
echo "python $*" >>"$STUB_LOG"
case "$1 $2" in
    "-c "*) exit "${STUB_OLD_PYTHON:-0}" ;;
    "-m venv") mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
    "-m pip")
        [ -z "${STUB_PIP_FAILS:-}" ] || { echo "ERROR: pip's own words"; exit 1; }
        [ -z "${STUB_PIP_SLOW:-}" ] || sleep 0.5
        [ -z "${STUB_PIP_KILLED:-}" ] || kill -9 0 ;;
    "-P -m") shift 3; echo "lab:" "$@"; exit "${STUB_STATUS:-0}" ;;
esac
"""
_DPKG_QUERY = r"""#!/bin/sh
echo "dpkg-query" >>"$STUB_LOG"
for word; do
    case $word in
        -*|*'$'*) continue ;;
        ${STUB_MISSING:-none}) continue ;;
        ${STUB_REMOVED:-none}) echo "rc  $word" ;;
        *) echo "ii  $word" ;;
    esac
done
[ -z "${STUB_MISSING:-}" ]
"""
_APT_GET = r"""#!/bin/sh
echo "apt-get $*" >>"$STUB_LOG"
n=0
while [ "$n" -lt 30 ]; do
    n=$((n + 1))
    echo "apt's line $n."
done
sleep "${STUB_APT_S:-0}"
echo "E: apt's own words" >&2
exit "${STUB_APT_STATUS:-0}"
"""
_SUDO = r"""#!/bin/sh
echo "sudo" >>"$STUB_LOG"
[ -z "${STUB_SUDO_FAILS:-}" ] || exit 1
[ "$1" != -p ] || shift 2
exec "$@"
"""


@dataclass
class World:
    checkout: Path
    bin: Path
    log: Path

    def stub(self, name: str, text: str) -> None:
        (self.bin / name).unlink(missing_ok=True)
        (self.bin / name).write_text(text)
        (self.bin / name).chmod(0o755)

    def environment(self, **extra: str) -> dict[str, str]:
        return {"PATH": str(self.bin), "STUB_LOG": str(self.log), "HOME": "/nowhere", **extra}

    def start(
        self, *words: str, script: str | Path = "", cwd: Path | None = None, **extra: str
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [script or self.checkout / "pageflip", *words],
            env=self.environment(**extra),
            cwd=cwd,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
            start_new_session=True,
        )

    def did(self, what: str) -> list[str]:
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [line for line in lines if line.startswith(what)]


@pytest.fixture
def world(tmp_path: Path) -> World:
    checkout, bin_ = tmp_path / "a checkout", tmp_path / "bin"
    checkout.mkdir()
    bin_.mkdir()
    for name in ("pageflip", "pyproject.toml", *_LISTS):
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(CHECKOUT / name, checkout / name)
    for tool in _TOOLS:
        found = shutil.which(tool)
        assert found, tool
        (bin_ / tool).symlink_to(found)
    # The one program that is called by its path.
    script = (checkout / "pageflip").read_text().replace("/usr/bin/python3", f"{bin_}/python3")
    (checkout / "pageflip").write_text(script)
    world = World(checkout, bin_, tmp_path / "log")
    world.stub("python3", _PYTHON)
    world.stub("dpkg-query", _DPKG_QUERY)
    world.stub("apt-get", _APT_GET)
    world.stub("id", "#!/bin/sh\necho 1000\n")
    return world


def test_the_first_start_sets_up_and_the_second_only_hands_over(world: World) -> None:
    first = world.start("upgrade", "--json", "a b")
    assert (first.returncode, first.stdout) == (0, "lab: upgrade --json a b\n"), first.stderr
    assert "the set-up is complete" in first.stderr
    assert len(world.did("python -m venv")) == 1
    assert world.did("python -m pip")[0].endswith(f"--editable {world.checkout}[dev]")
    world.log.unlink()
    second = world.start("doctor")
    assert (second.stdout, second.stderr) == ("lab: doctor\n", "")
    assert world.log.read_text() == "python -P -m lab doctor\n"


def test_a_second_start_adds_next_to_nothing(world: World) -> None:
    world.start()
    times = []
    for _ in range(5):
        start = time.monotonic()
        world.start()
        times.append(time.monotonic() - start)
    assert min(times) < 0.1  # 10 ms or so; the python here is a stub


def test_the_exit_status_is_the_labs(world: World) -> None:
    assert world.start(STUB_STATUS="1").returncode == 1


def test_from_anywhere_and_through_links(world: World, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(world.checkout / "pageflip")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "again").symlink_to("../link")
    for script in (tmp_path / "link", "elsewhere/again", "./link"):
        done = world.start("x", script=script, cwd=tmp_path)
        assert done.stdout == "lab: x\n", done.stderr
    assert world.start("x", script="./pageflip", cwd=world.checkout).stdout == "lab: x\n"
    assert len(world.did("python -m venv")) == 1


def test_without_sudo_the_administrators_command_is_told(world: World) -> None:
    done = world.start(STUB_MISSING="libaio-dev")
    assert (done.returncode, done.stdout) == (3, "")
    assert "there is no sudo" in done.stderr
    assert "    apt-get install libaio-dev\n" in done.stderr
    assert world.did("apt-get") == []
    assert not (world.checkout / ".venv").exists()


def test_sudo_is_asked_once_and_the_packages_are_named(world: World) -> None:
    world.stub("sudo", _SUDO)
    done = world.start("x", STUB_MISSING="lib[as][il]*-dev")
    assert done.stdout == "lab: x\n", done.stderr
    assert world.did("sudo") == ["sudo"]
    assert "sudo is asked for once to install them: libslirp-dev libaio-dev\n" in done.stderr
    assert "libslirp-dev libaio-dev" in world.did("apt-get install")[0]


def test_what_is_optional_ends_nothing(world: World) -> None:
    done = world.start("x", STUB_MISSING="libseccomp-dev")
    assert done.stdout == "lab: x\n", done.stderr
    assert "going on without libseccomp-dev:" in done.stderr
    assert "With them: apt-get install libseccomp-dev\n" in done.stderr
    assert world.start("x", STUB_MISSING="libseccomp-dev").stderr == ""  # said once


def test_optional_packages_that_refuse_do_not_stop_the_others(world: World) -> None:
    world.stub("id", "#!/bin/sh\necho 0\n")
    refusing = _APT_GET.replace("sleep", 'case "$*" in *seccomp*) exit 100 ;; esac\nsleep')
    world.stub("apt-get", refusing)
    done = world.start("x", STUB_MISSING="[gl][ci][cb]*")
    assert done.stdout == "lab: x\n", done.stderr
    *_, last = world.did("apt-get install")
    assert " gcc libc6-dev " in last
    assert "seccomp" not in last
    assert any("seccomp" in line for line in world.did("apt-get install"))


def test_sudo_that_is_refused_ends_it(world: World) -> None:
    world.stub("sudo", _SUDO)
    done = world.start(STUB_MISSING="gcc", STUB_SUDO_FAILS="1")
    assert done.returncode == 3
    assert "    apt-get install gcc\n" in done.stderr
    assert not (world.checkout / ".venv").exists()


def test_root_needs_no_sudo(world: World) -> None:
    world.stub("id", "#!/bin/sh\necho 0\n")
    done = world.start("x", STUB_MISSING="gcc")
    assert done.stdout == "lab: x\n", done.stderr
    assert world.did("sudo") == []
    assert any(line.endswith(" gcc") for line in world.did("apt-get install"))


def test_what_apt_says_is_in_the_log(world: World) -> None:
    world.stub("id", "#!/bin/sh\necho 0\n")
    done = world.start("x", STUB_MISSING="gcc")
    assert done.stdout == "lab: x\n"
    assert len(done.stderr.splitlines()) == 3  # what is installed, what is made, and that it is
    log = (world.checkout / "out" / "set-up.log").read_text()
    assert log.startswith("apt's line 1.\n")
    assert "E: apt's own words" in log


def test_apt_that_fails_is_told_by_the_end_of_its_words(world: World) -> None:
    world.stub("id", "#!/bin/sh\necho 0\n")
    done = world.start("x", STUB_MISSING="gcc", STUB_APT_STATUS="100")
    assert done.returncode == 3
    assert "    apt-get install gcc\n" in done.stderr
    lines = done.stderr.splitlines()
    assert lines[1:21] == [*(f"apt's line {n}." for n in range(12, 31)), "E: apt's own words"]
    assert lines[21] == f"pageflip: all of it: {world.checkout}/out/set-up.log"


def test_a_terminal_sees_what_is_being_done_on_one_line(world: World) -> None:
    world.stub("id", "#!/bin/sh\necho 0\n")
    ours, theirs = os.openpty()
    environment = world.environment(STUB_MISSING="gcc", STUB_APT_S="1.2")
    argv = [world.checkout / "pageflip", "x"]
    subprocess.run(
        argv, env=environment, stdout=subprocess.DEVNULL, stderr=theirs, timeout=30, check=True
    )
    os.close(theirs)
    seen = os.read(ours, 65536).decode()
    os.close(ours)
    assert "\r\033[K    apt's line 30." in seen
    assert "\r\033[Kpageflip: making the Python environment" in seen  # in that line's place
    assert seen.count("\n") == 3


def test_check_is_given_what_its_tests_need_too(world: World) -> None:
    world.stub("sudo", _SUDO)
    done = world.start("check", "--all", STUB_MISSING="[cgm][chm]*")
    assert done.stdout == "lab: check --all\n", done.stderr
    assert world.did("sudo") == ["sudo"]
    for package in ("gcc", "ccache", "chromium", "mmdebstrap"):
        assert f" {package} " in f"{world.did('apt-get install')[0]} "
    world.log.unlink()
    assert world.start("check").stderr == ""
    assert world.did("dpkg-query") == []
    with (world.checkout / "packages-check.txt").open("a") as file:
        file.write("another -  a list that has changed\n")
    assert world.start("check", STUB_MISSING="another").returncode == 0
    assert world.did("apt-get install")[0].endswith(" another")
    assert world.did("python -m pip") == []
    world.start("x")
    assert world.start("check").stderr == ""  # each remembers its own


@pytest.mark.parametrize("words", [("check", "--quick"), ("check", "unit", "-h"), ("upgrade",)])
def test_the_tests_needs_are_not_everybodys(world: World, words: tuple[str, ...]) -> None:
    assert world.start(*words, STUB_MISSING="[cm][hm]*").returncode == 0
    assert world.start(*words).stderr == ""
    # And that they were not looked at is made up for.
    assert world.start("check", STUB_MISSING="[cm][hm]*").returncode == 3


def test_a_package_that_was_removed_is_missing(world: World) -> None:
    done = world.start(STUB_REMOVED="ccache")
    assert done.returncode == 3
    assert "    apt-get install ccache\n" in done.stderr


def test_apt_can_be_left_out(world: World) -> None:
    done = world.start("x", STUB_MISSING="gcc", PAGEFLIP_NO_APT="1")
    assert done.stdout == "lab: x\n"
    assert world.did("dpkg-query") == []
    assert world.start("check", STUB_MISSING="chromium", PAGEFLIP_NO_APT="1").stderr == ""
    # The packages have not been looked at yet: that is made up for.
    assert world.start("x", STUB_MISSING="gcc").returncode == 3


def test_elsewhere_than_debian_the_programs_are_looked_for(world: World) -> None:
    for name in ("apt-get", "dpkg-query"):
        (world.bin / name).unlink()
    done = world.start("x")
    assert done.returncode == 3
    assert "has no apt" in done.stderr
    assert "    ccache: makes a second build quick" in done.stderr
    assert "    libaio.h: " in done.stderr
    for name in ("make", "git", "ccache", "patch", "perl", "cpio", "xz", "gpgv", "setpriv"):
        world.stub(name, "#!/bin/sh\n")
    for name in ("gcc", "pkg-config", "shellcheck"):
        world.stub(name, "#!/bin/sh\nexit 0\n")
    assert world.start("x").stdout == "lab: x\n"
    done = world.start("check")
    assert done.returncode == 3
    assert "    chromium: draws the report" in done.stderr
    assert "    gcc: " not in done.stderr


def test_an_old_python_is_refused(world: World) -> None:
    done = world.start(STUB_OLD_PYTHON="1")
    assert done.returncode == 3
    assert "no Python of 3.11" in done.stderr
    assert not (world.checkout / ".venv").exists()


def test_pip_that_fails_leaves_nothing_half_done(world: World) -> None:
    done = world.start(STUB_PIP_FAILS="1")
    assert done.returncode == 3
    assert "ERROR: pip's own words" in done.stderr
    assert "pip says why above" in done.stderr
    assert "ERROR: pip's own words" in (world.checkout / "out" / "set-up.log").read_text()
    assert not (world.checkout / ".venv").exists()
    assert world.start("x").stdout == "lab: x\n"


def test_a_set_up_that_was_killed_is_done_again(world: World) -> None:
    assert world.start(STUB_PIP_KILLED="1", PAGEFLIP_NO_APT="1").returncode != 0
    (world.checkout / ".venv" / "half").touch()
    world.log.unlink()
    assert world.start("x", PAGEFLIP_NO_APT="1").stdout == "lab: x\n"
    assert len(world.did("python -m venv")) == 1
    assert not (world.checkout / ".venv" / "half").exists()


def test_new_dependencies_are_added(world: World) -> None:
    world.start()
    world.log.unlink()
    with (world.checkout / "pyproject.toml").open("a") as file:
        file.write("# another\n")
    assert world.start("x").stdout == "lab: x\n"
    assert len(world.did("python -m pip")) == 1
    assert world.did("python -m venv") == []


def test_a_checkout_that_was_moved_is_set_up_again(world: World, tmp_path: Path) -> None:
    world.start()
    world.checkout.rename(tmp_path / "moved")
    world.checkout = tmp_path / "moved"
    world.log.unlink()
    assert world.start("x").stdout == "lab: x\n"
    assert len(world.did("python -m venv")) == 1


def test_two_at_once_set_up_once(world: World) -> None:
    both = [
        subprocess.Popen(
            [world.checkout / "pageflip", "x"],
            env=world.environment(STUB_PIP_SLOW="1"),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    said = [one.communicate(timeout=30) for one in both]
    assert [out for out, _ in said] == ["lab: x\n"] * 3
    assert len(world.did("python -m pip")) == 1
    assert any("waiting for another set-up" in err for _, err in said)


def test_a_checkout_that_is_somebody_elses(world: World) -> None:
    world.checkout.chmod(0o555)
    # Root may write anywhere, but for this.
    bounded = ("setpriv", "--bounding-set", "-dac_override") if os.geteuid() == 0 else ()
    done = subprocess.run(
        [*bounded, world.checkout / "pageflip"],
        env=world.environment(PATH=f"{world.bin}:{os.environ['PATH']}"),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    world.checkout.chmod(0o755)
    assert done.returncode == 3
    assert "cannot be written to" in done.stderr


def test_shellcheck_has_nothing_to_say() -> None:
    if not shutil.which("shellcheck"):
        pytest.skip("shellcheck is not here")
    done = subprocess.run(
        ["shellcheck", CHECKOUT / "pageflip"], capture_output=True, text=True, check=False
    )
    assert done.stdout == ""
