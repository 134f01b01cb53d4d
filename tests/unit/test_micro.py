# SPDX-License-Identifier: GPL-2.0-or-later
"""The guest without Linux: its image, and its JSON reader, natively and with anything at all."""

from __future__ import annotations

import ctypes
import json
import shutil
import struct
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab.base.layout import CHECKOUT, Layout
from lab.guest import images

SOURCE = CHECKOUT / "guests" / "micro"
MULTIBOOT_MAGIC = 0x1BADB002
#: Where a multiboot loader looks for the header (bytes).
MULTIBOOT_SEARCH = 8192
ELF32, MACHINE_386 = 1, 3

for tool in ("cc", "ld", "objcopy"):
    if not shutil.which(tool):
        pytest.skip(f"no {tool}", allow_module_level=True)


def _build(checkout: Path, cache: Path) -> images.GuestImage:
    def fetch(*_: object) -> dict[str, Path]:
        raise AssertionError("a payload needs no packages")

    return images.build("micro", Layout(checkout, cache, cache), lambda _text: None, fetch=fetch)


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> images.GuestImage:
    return _build(CHECKOUT, tmp_path_factory.mktemp("cache"))


def test_it_is_what_a_multiboot_loader_takes(image: images.GuestImage) -> None:
    content = image.kernel.read_bytes()
    assert content[:4] == b"\x7fELF"
    assert content[4] == ELF32
    assert struct.unpack_from("<H", content, 18) == (MACHINE_386,)
    at = content.index(struct.pack("<I", MULTIBOOT_MAGIC))
    assert at % 4 == 0
    assert at + 12 <= MULTIBOOT_SEARCH
    assert sum(struct.unpack_from("<III", content, at)) % 2**32 == 0
    assert (image.initrd, image.append, image.packages) == (None, "", {})


def test_the_loader_copies_little(image: images.GuestImage) -> None:
    """It copies .bss as well, and where KVM emulates that costs a second for each 100 KiB."""
    content = image.kernel.read_bytes()
    offset, size, count = (
        struct.unpack_from("<I", content, 28)[0],
        *struct.unpack_from("<HH", content, 42),
    )
    in_memory = [struct.unpack_from("<I", content, offset + i * size + 20)[0] for i in range(count)]
    assert sum(in_memory) < 128 << 10


def test_same_sources_same_bits(image: images.GuestImage, tmp_path: Path) -> None:
    shutil.copytree(CHECKOUT / "guests", tmp_path / "checkout" / "guests")
    again = _build(tmp_path / "checkout", tmp_path / "cache")
    assert (again.key, again.sha256s) == (image.key, image.sha256s)
    with (tmp_path / "checkout" / "guests" / "agent" / "pattern.c").open("a") as file:
        file.write("/* shared, so it counts */\n")
    assert _build(tmp_path / "checkout", tmp_path / "cache").key != image.key


class _Member(ctypes.Structure):
    _fields_ = (
        ("key", ctypes.c_void_p),
        ("key_len", ctypes.c_size_t),
        ("value", ctypes.c_void_p),
        ("value_len", ctypes.c_size_t),
    )


class _Object(ctypes.Structure):
    _fields_ = (("members", _Member * 16), ("count", ctypes.c_uint))


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    library = tmp_path_factory.mktemp("json") / "json.so"
    subprocess.run(
        ["cc", "-shared", "-fPIC", "-Wall", "-Werror", "-I../agent", "json.c", "-o", library],
        check=True,
        cwd=SOURCE,
    )
    loaded = ctypes.CDLL(str(library))
    loaded.json_read.restype = ctypes.c_char_p
    loaded.json_number.argtypes = (ctypes.c_void_p, ctypes.c_uint64, ctypes.c_void_p)
    loaded.json_number.restype = ctypes.c_bool
    loaded.json_find.restype = ctypes.c_void_p
    return loaded


def _read(reader: ctypes.CDLL, line: bytes) -> dict[str, str] | None:
    """Return the members as JSON texts; None when the line was refused."""
    found = _Object()
    # Exactly as long as the line: whoever reads on reads what is not ours.
    buffer = ctypes.create_string_buffer(line, max(len(line), 1))
    if reader.json_read(ctypes.byref(found), buffer, ctypes.c_size_t(len(line))) is not None:
        return None
    return {
        ctypes.string_at(one.key, one.key_len).decode(): ctypes.string_at(
            one.value, one.value_len
        ).decode()
        for one in found.members[: found.count]
    }


PLAIN = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(st.characters(max_codepoint=126), max_size=20),
)
KEYS = st.text(st.characters(min_codepoint=97, max_codepoint=122), max_size=8)


@given(st.dictionaries(KEYS, PLAIN, max_size=16), st.sampled_from([None, 1]))
def test_flat_objects_are_read(
    reader: ctypes.CDLL, content: dict[str, object], indent: int | None
) -> None:
    read = _read(reader, json.dumps(content, indent=indent).encode())
    assert read is not None
    assert {key: json.loads(value) for key, value in read.items()} == content


@given(st.one_of(st.binary(max_size=64), st.text('{}":,\\u01-.eE truefalsn', max_size=64)))
def test_whatever_is_taken_is_json(reader: ctypes.CDLL, line: bytes | str) -> None:
    raw = line.encode() if isinstance(line, str) else line
    if (read := _read(reader, raw)) is not None:
        for value in read.values():
            json.loads(value)


@pytest.mark.parametrize(
    "line", ["", "{", "[]", '{"a":{}}', '{"a":[1]}', '{"a":1,"a":2}', '{"a":01}', '{"a":1,}', "{}x"]
)
def test_what_is_refused(reader: ctypes.CDLL, line: str) -> None:
    assert _read(reader, line.encode()) is None


@pytest.mark.parametrize(
    ("text", "limit", "number"),
    [
        ("0", 0, 0),
        ("7", 7, 7),
        ("8", 7, None),
        ("18446744073709551615", 2**64 - 1, 2**64 - 1),
        ("18446744073709551616", 2**64 - 1, None),
        ("-1", 9, None),
        ("1.0", 9, None),
        ('"1"', 9, None),
    ],
)
def test_whole_numbers(reader: ctypes.CDLL, text: str, limit: int, number: int | None) -> None:
    found, line = _Object(), f'{{"n":{text}}}'.encode()
    value = ctypes.c_uint64()
    assert reader.json_read(ctypes.byref(found), line, ctypes.c_size_t(len(line))) is None
    taken = reader.json_number(ctypes.byref(found), limit, ctypes.byref(value))
    assert (value.value if taken else None) == number
