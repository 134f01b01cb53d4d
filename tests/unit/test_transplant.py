# SPDX-License-Identifier: GPL-2.0-or-later
"""What is pure of the helper in ``transplant/``: called by ctypes, no process is touched."""

from __future__ import annotations

import ctypes
import mmap
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import needs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab.transplant import channel, helper

SOURCE = Path(__file__).resolve().parents[2] / "transplant"
PAGE = 4096
#: Where a test's images are to be; nothing is there.
ADDRESS = 0x7F0000001000
REGISTERS = (
    "r15 r14 r13 r12 rbp rbx r11 r10 r9 r8 rax rcx rdx rsi rdi orig_rax rip cs eflags rsp ss "
    "fs_base gs_base ds es fs gs"
)
pytestmark = pytest.mark.skipif(bool(needs.static_c()), reason=needs.static_c())


class Error(ctypes.Structure):
    _fields_ = (("set", ctypes.c_bool), ("text", ctypes.c_char * 480))


class Segment(ctypes.Structure):
    _fields_ = (
        ("file_offset", ctypes.c_uint64),
        ("start", ctypes.c_uint64),
        ("file_end", ctypes.c_uint64),
        ("zero_from", ctypes.c_uint64),
        ("end", ctypes.c_uint64),
        ("protection", ctypes.c_int),
    )


class Plan(ctypes.Structure):
    _fields_ = (
        ("position_independent", ctypes.c_bool),
        ("header_count", ctypes.c_uint16),
        ("entry", ctypes.c_uint64),
        ("headers", ctypes.c_uint64),
        ("low", ctypes.c_uint64),
        ("high", ctypes.c_uint64),
        ("data_end", ctypes.c_uint64),
        ("count", ctypes.c_size_t),
        ("segments", Segment * 16),
        ("interpreter", ctypes.c_char * 256),
    )


class Mapping(ctypes.Structure):
    _fields_ = (
        ("start", ctypes.c_uint64),
        ("end", ctypes.c_uint64),
        ("offset", ctypes.c_uint64),
        ("device", ctypes.c_uint64),
        ("inode", ctypes.c_uint64),
        ("huge_bytes", ctypes.c_uint64),
        ("flags", ctypes.c_uint),
        ("name", ctypes.c_char * 64),
    )


class Maps(ctypes.Structure):
    _fields_ = (
        ("list", ctypes.POINTER(Mapping)),
        ("count", ctypes.c_size_t),
        ("room", ctypes.c_size_t),
    )


class Block(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_char * 256),
        ("offset", ctypes.c_uint64),
        ("used", ctypes.c_uint64),
        ("most", ctypes.c_uint64),
        ("address", ctypes.c_uint64),
        ("file", ctypes.c_int),
        ("place", ctypes.c_int),
    )


class Shared(ctypes.Structure):
    """struct shared_block."""

    _fields_ = (
        ("number", ctypes.c_size_t),
        ("old", ctypes.c_int),
        ("old_fd", ctypes.c_int),
        ("new", ctypes.c_int),
        ("address", ctypes.c_uint64),
        ("offset", ctypes.c_uint64),
        ("size", ctypes.c_uint64),
    )


class Reader(ctypes.Structure):
    _fields_ = (("at", ctypes.c_void_p), ("end", ctypes.c_void_p), ("bad", ctypes.c_bool))


class Registers(ctypes.Structure):
    """struct user_regs_struct of x86-64 (sys/user.h)."""

    _fields_ = tuple((name, ctypes.c_uint64) for name in REGISTERS.split())


class Call(ctypes.Structure):
    _fields_ = (("number", ctypes.c_uint64), ("arguments", ctypes.c_uint64 * 3))


class Input(ctypes.Structure):
    _fields_ = (
        ("arguments", ctypes.POINTER(ctypes.c_char_p)),
        ("argument_count", ctypes.c_size_t),
        ("environment", ctypes.c_char_p),
        ("environment_size", ctypes.c_size_t),
        ("auxiliary", ctypes.c_void_p),
        ("random", ctypes.c_uint8 * 16),
        ("program_headers", ctypes.c_uint64),
        ("header_count", ctypes.c_uint64),
        ("interpreter_base", ctypes.c_uint64),
        ("entry", ctypes.c_uint64),
        ("ids", ctypes.c_uint64 * 4),
    )


class StackLayout(ctypes.Structure):
    _fields_ = (
        ("pointer", ctypes.c_uint64),
        ("arguments_start", ctypes.c_uint64),
        ("arguments_end", ctypes.c_uint64),
        ("environment_end", ctypes.c_uint64),
        ("auxiliary_count", ctypes.c_size_t),
        ("auxiliary", ctypes.c_uint64 * 128),
    )


@pytest.fixture(scope="module")
def pure(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The helper's sources as a library; they compile without a word."""
    made = tmp_path_factory.mktemp("transplant") / "pure.so"
    flags = [flag for flag in helper.CFLAGS if flag not in {"-static", "-s"}]
    sources = sorted(path.name for path in SOURCE.glob("*.c"))
    argv = ["cc", *flags, *helper.WARNINGS, "-Werror", "-fPIC", "-shared", *sources, "-o", made]
    subprocess.run(argv, cwd=SOURCE, check=True)
    library = ctypes.CDLL(str(made))
    library.elf_code_end.restype = ctypes.c_uint64
    library.read_number.restype = ctypes.c_uint64
    library.read_text.restype = ctypes.c_char_p
    library.ramblock_scan.restype = ctypes.c_size_t
    library.blob_build.restype = ctypes.c_long
    library.blob_size.restype = ctypes.c_size_t
    library.delta_differs.restype = ctypes.c_bool
    library.shared_is.restype = ctypes.c_bool
    library.shared_count.restype = ctypes.c_int64
    library.delta_differs.argtypes = [ctypes.c_uint64, ctypes.c_uint64]
    return library


def segment(kind: int, flags: int, offset: int, address: int, size: int, memory: int) -> bytes:
    return struct.pack("<IIQQQQQQ", kind, flags, offset, address, address, size, memory, PAGE)


def elf(*segments: bytes, entry: int = 0x1010, kind: int = 3, machine: int = 62) -> bytes:
    """A program's first page: ELF64, little-endian."""
    head = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    head += struct.pack("<HHIQQQIHHHHHH", kind, machine, 1, entry, 64, 0, 0, 64, 56, 0, 0, 0, 0)
    head = bytearray(head)
    struct.pack_into("<H", head, 56, len(segments))
    return (bytes(head) + b"".join(segments)).ljust(PAGE, b"\0")


LOAD, INTERP, STACK = 1, 3, 0x6474E551
CODE = segment(LOAD, 5, 0x1000, 0x1000, 0x500, 0x500)
DATA = segment(LOAD, 6, 0x1E00, 0x3E00, 0x300, 0x1400)


def plan(pure: ctypes.CDLL, head: bytes) -> Plan | str:
    made, error = Plan(), Error()
    result = pure.elf_plan(
        head, ctypes.c_size_t(len(head)), ctypes.byref(made), ctypes.byref(error)
    )
    return error.text.decode() if result else made


def test_a_program_is_mapped_by_whole_pages_and_its_last_one_is_cleared(pure: ctypes.CDLL) -> None:
    made = plan(pure, elf(CODE, DATA))
    assert isinstance(made, Plan)
    code, data = made.segments[0], made.segments[1]
    assert (made.count, made.low, made.high) == (2, 0x1000, 0x6000)
    assert (code.start, code.file_end, code.end, code.zero_from) == (0x1000, 0x2000, 0x2000, 0)
    assert (data.file_offset, data.start, data.file_end) == (0x1000, 0x3000, 0x5000)
    assert (data.zero_from, data.end) == (0x4100, 0x6000)
    assert (code.protection, data.protection) == (5, 3)
    assert made.position_independent
    assert made.headers == 0x1000 + 64


def test_a_segment_without_a_file_is_anonymous(pure: ctypes.CDLL) -> None:
    made = plan(pure, elf(CODE, segment(LOAD, 6, 0, 0x4000, 0, 0x1800)))
    assert isinstance(made, Plan)
    empty = made.segments[1]
    assert (empty.start, empty.file_end, empty.zero_from, empty.end) == (0x4000, 0x4000, 0, 0x6000)


@pytest.mark.parametrize(
    ("head", "words"),
    [
        (b"#!/bin/sh\n".ljust(PAGE, b"\0"), "not an ELF file"),
        (b"\x7fELF", "is no program"),
        (elf(CODE, machine=183), "not an ELF file for x86-64"),
        (elf(CODE, kind=4), "no program"),
        (elf(), "headers are not where"),
        (elf(segment(STACK, 6, 0, 0, 0, 0)), "nothing in it"),
        (elf(CODE, segment(STACK, 7, 0, 0, 0, 0)), "stack with code"),
        (elf(CODE, entry=0x9000), "outside of itself"),
        (elf(DATA, CODE), "begins within the one before"),
        (elf(segment(LOAD, 5, 0x1001, 0x1000, 8, 8)), "where none can be"),
        (elf(segment(LOAD, 5, 0x1000, 0x1000, 9, 8)), "where none can be"),
        (elf(segment(LOAD, 5, 0x1000, 2**64 - PAGE, 8, PAGE)), "where none can be"),
        (elf(segment(LOAD, 4, 0x1000, 0x1000, 0x500, 0x900)), "cannot be written"),
        (elf(CODE, segment(INTERP, 4, 0xFF0, 0, 0x20, 0x20)), "name of its interpreter"),
        (elf(*[CODE] * 73), "headers are not where"),
    ],
)
def test_what_is_unknown_is_refused(pure: ctypes.CDLL, head: bytes, words: str) -> None:
    found = plan(pure, head[:PAGE])
    assert isinstance(found, str)
    assert words in found


@given(data=st.data())
def test_no_header_is_read_beyond_its_end(pure: ctypes.CDLL, data: st.DataObject) -> None:
    head = bytearray(elf(CODE, DATA))
    for _ in range(data.draw(st.integers(1, 8))):
        head[data.draw(st.integers(4, 64 + 2 * 56 - 1))] = data.draw(st.integers(0, 255))
    made = plan(pure, bytes(head[: data.draw(st.integers(0, PAGE))]))
    if isinstance(made, Plan):
        assert made.low < made.high <= 0x7FFFFFFFF000
        assert made.low <= made.entry < made.high


def test_this_very_python_is_understood(pure: ctypes.CDLL) -> None:
    made = plan(pure, Path(sys.executable).resolve().read_bytes()[:PAGE])
    assert isinstance(made, Plan)
    assert made.interpreter.startswith(b"/")


def test_behind_the_code_is_room(pure: ctypes.CDLL) -> None:
    def end(offset: int, *segments: bytes) -> int:
        head = elf(*segments)
        return int(pure.elf_code_end(head, ctypes.c_size_t(len(head)), ctypes.c_uint64(offset)))

    assert end(0x1000, CODE, DATA) == 0x1500
    assert end(0x1000, DATA) == 0
    assert end(0x3000, CODE) == 0
    # What is cleared behind the file's part is used.
    assert end(0x1000, segment(LOAD, 7, 0x1000, 0x1000, 0x500, 0x600)) == 0


SMAPS = """\
7f0000000000-7f0000200000 rw-p 00000000 00:00 0
Size:               2048 kB
AnonHugePages:      2048 kB
VmFlags: rd wr mr mw me dc ac sd mg hg
7f0000200000-7f0000300000 rw-p 00000000 00:00 0
VmFlags: rd wr mr mw me ac sd
7f0000400000-7f0000500000 rw-s 00001000 00:05 77    /memfd:ram (deleted)
VmFlags: rd wr sh mr mw me ms lo ht uw
7f0000500000-7f0000600000 rw-s 00000000 00:01 78    /memfd:memory-backend-memfd (deleted)
VmFlags: rd wr sh mr mw me ms dc sd
7f0000600000-7f0000700000 rw-s 00200000 00:01 78    /memfd:memory-backend-memfd (deleted)
VmFlags: rd wr sh mr mw me ms dc sd
7f0000800000-7f0000900000 rw-s 00000000 00:15 79    /dev/shm/ram
VmFlags: rd wr sh mr mw me ms dc sd
7f0000a00000-7f0000b00000 rw-p 00000000 00:01 78    /memfd:memory-backend-memfd (deleted)
VmFlags: rd wr mr mw me dc sd
7fff00000000-7fff00002000 r-xp 00000000 00:00 0                          [vdso]
VmFlags: rd ex mr mw me de sd
"""
READ, WRITE, EXEC, PRIVATE, FILE, DONTFORK, MERGE, HUGE, LOCKED, POOL, WATCHED = (
    1 << number for number in range(11)
)


@pytest.fixture
def maps(pure: ctypes.CDLL) -> Iterator[Maps]:
    made, error = Maps(), Error()
    for line in SMAPS.splitlines(keepends=True):
        assert not pure.maps_line(ctypes.byref(made), line.encode(), ctypes.byref(error))
    yield made
    pure.maps_free(ctypes.byref(made))


def test_mappings_and_their_flags(pure: ctypes.CDLL, maps: Maps) -> None:
    plain, heap, shared, *files, vdso = maps.list[: maps.count]
    assert (plain.start, plain.end, plain.huge_bytes) == (0x7F0000000000, 0x7F0000200000, 2 << 20)
    assert plain.flags == READ | WRITE | PRIVATE | DONTFORK | MERGE | HUGE
    assert heap.flags == READ | WRITE | PRIVATE
    assert shared.flags == READ | WRITE | FILE | LOCKED | POOL | WATCHED
    assert (shared.device, shared.inode) == (os.makedev(0, 5), 77)
    known = [bool(pure.shared_is(ctypes.byref(one))) for one in (plain, shared, *files, vdso)]
    assert known == [False, True, True, True, True, False, False]
    assert (vdso.name, vdso.flags) == (b"[vdso]", READ | EXEC | PRIVATE)


RAM = Block(b"pc.ram", 0, 1 << 20, 1 << 20)


def heap_of(
    *structs: tuple[int, bytes], numbers: tuple[int, int, int] = (0, 1 << 20, 1 << 20)
) -> bytes:
    """What a heap looks like that has struct RAMBlock in it, once for each address and name."""
    return b"".join(
        b"\xaa" * 40 + struct.pack("<QQQQQQI", host, 0, *numbers, 0x5555, 1) + name.ljust(64, b"\0")
        for host, name in structs
    )


def scan(pure: ctypes.CDLL, maps: Maps, heap: bytes) -> list[int]:
    found = (ctypes.c_uint64 * 8)()
    count = pure.ramblock_scan(
        heap,
        ctypes.c_size_t(len(heap)),
        ctypes.byref(RAM),
        ctypes.byref(maps),
        found,
        ctypes.c_size_t(0),
        ctypes.c_size_t(8),
    )
    return list(found[:count])


def test_a_block_is_found_where_a_mapping_begins(pure: ctypes.CDLL, maps: Maps) -> None:
    right, other = (0x7F0000000000, b"pc.ram"), (0x7F0000200000, b"pc.ram")
    assert scan(pure, maps, heap_of(right)) == [0x7F0000000000]
    assert scan(pure, maps, heap_of(right, right)) == [0x7F0000000000]
    assert scan(pure, maps, heap_of(right, other)) == [0x7F0000000000, 0x7F0000200000]
    assert scan(pure, maps, heap_of((0x7F0000001000, b"pc.ram"))) == []
    assert scan(pure, maps, heap_of((0x7F0000000000, b"pc.ram2"))) == []
    assert scan(pure, maps, heap_of(right, numbers=(4096, 1 << 20, 1 << 20))) == []
    assert scan(pure, maps, b"pc.ram\0") == []


MIB = 1 << 20


@pytest.mark.parametrize("at", [0, 4 * MIB - 60, 4 * MIB - 40, 4 * MIB - 8, 64 * MIB, 79 * MIB])
def test_a_block_is_found_anywhere_in_a_large_heap(pure: ctypes.CDLL, at: int) -> None:
    """Here in this process: a kernel and an initrd make a heap of this size."""
    private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    with mmap.mmap(-1, MIB, flags=private) as ram, mmap.mmap(-1, 80 * MIB, flags=private) as heap:
        ram.madvise(mmap.MADV_DONTFORK)
        heap.madvise(mmap.MADV_NOHUGEPAGE)  # not one mapping with its neighbour
        ram[:] = bytes(MIB)
        hold = ctypes.c_char.from_buffer(ram)
        name = b"block.of.this.test"
        # Part by part: this process is searched, and must not have it a second time.
        struct.pack_into("<QQ", heap, at, ctypes.addressof(hold), 0)
        struct.pack_into("<QQQQI", heap, at + 16, 0, MIB, MIB, 0x5555, 1)
        struct.pack_into("<19s", heap, at + 52, name)
        maps, error = Maps(), Error()
        blocks = (Block * 1)(Block(name, 0, MIB, MIB))
        assert not pure.maps_read(ctypes.byref(maps), os.getpid(), ctypes.byref(error)), error.text
        result = pure.ramblock_find(
            os.getpid(), blocks, ctypes.c_size_t(1), ctypes.byref(maps), ctypes.byref(error)
        )
        pure.maps_free(ctypes.byref(maps))
        assert not result, error.text
        assert blocks[0].address == ctypes.addressof(hold)
        del hold


def test_what_was_written_privately_is_shared_and_taken_back(pure: ctypes.CDLL) -> None:
    """The second page was written to, the third one read only, the fourth one is a hole's."""
    pages, page = 5, 4096
    file = os.memfd_create("memory-backend-memfd")
    os.pwrite(file, b"\1" * page + b"\2" * page + b"\3" * page, page)  # the first one before it
    os.ftruncate(file, (pages + 1) * page)
    protection = mmap.PROT_READ | mmap.PROT_WRITE
    with mmap.mmap(file, pages * page, flags=mmap.MAP_PRIVATE, prot=protection, offset=page) as ram:
        hold = ctypes.c_char.from_buffer(ram)
        ram[page] = 77
        assert ram[2 * page] == 3
        os.pwrite(file, b"\4", page)  # the guest goes on: that is not to be undone
        before = os.pread(file, pages * page, page)
        undo, error, me = ctypes.create_string_buffer(4096), Error(), os.getpid()
        block = Shared(3, me, file, me, ctypes.addressof(hold), page, pages * page)
        more = ctypes.byref(block), ctypes.byref(error)
        ram[2 * page] = 3  # its own now, and no other than it was
        assert pure.shared_count(*more) == 1, error.text
        assert not pure.shared_write(undo, *more), error.text
        after = os.pread(file, pages * page, page)
        assert after == before[:page] + b"\x4d" + before[page + 1 :]
        pure.shared_end(undo, True)
        assert os.pread(file, pages * page, page) == before
        assert not any(undo.raw)  # nothing is left open
        del hold
    os.close(file)


@pytest.mark.parametrize(
    ("start", "most", "words"),
    [
        (0x7F0000000000, 0x200000, ""),
        (0x7F0000000000, 0x200001, "does not look like guest memory"),
        (0x7F0000001000, 0x1000, "no mapping begins there"),
        (0x7F0000200000, 0x1000, "does not look like guest memory"),
        (0x7F0000400000, 0x1000, "pool of huge pages"),
        (0x7F0000500000, 0x100000, ""),
        (0x7F0000500000, 0x200000, "not one piece"),
        (0x7F0000800000, 0x1000, ""),
        (0x7F0000A00000, 0x1000, "a private mapping of a file"),
        (0x7F0000200000, 0x200000, "does not look"),
    ],
)
def test_what_a_block_has_to_be(
    pure: ctypes.CDLL, maps: Maps, start: int, most: int, words: str
) -> None:
    block, error = Block(b"pc.ram", 0, most, most, start), Error()
    result = pure.ramblock_check(ctypes.byref(block), ctypes.byref(maps), ctypes.byref(error))
    assert bool(result) == bool(words)
    assert words in error.text.decode()


PRESENT, SWAPPED, SOFT = 1 << 63, 1 << 62, 1 << 55


@pytest.mark.parametrize(
    ("old", "new", "differs"),
    [
        (0, 0, False),
        (0, SOFT, False),
        (PRESENT | 7, PRESENT | 7, False),
        (PRESENT | SOFT | 7, PRESENT | 7, False),
        (PRESENT | 7, PRESENT | 8, True),
        (PRESENT | 7, 0, True),
        (0, PRESENT | 7, True),
        (SWAPPED | 7, SWAPPED | 7, False),
        (SWAPPED | 7, PRESENT | 7, True),
        (PRESENT, PRESENT, True),  # without the right to see frames
    ],
)
def test_the_same_frame_is_the_same_page(
    pure: ctypes.CDLL, old: int, new: int, *, differs: bool
) -> None:
    assert pure.delta_differs(old, new) is differs


def blob(pure: ctypes.CDLL, rax: int, calls: int = 2, room: int = 4096) -> tuple[bytes, str]:
    regs = Registers(rax=rax % 2**64, orig_rax=271, rip=0x401000, rbx=11, rdi=12, rsi=13, rdx=14)
    regs.r10, regs.r8, regs.r9 = 15, 16, 17
    made = (Call * calls)(*[Call(28, (1, 2, 3))] * (calls - 1), Call(435, (0, 0, 0)))
    image, error = ctypes.create_string_buffer(4096), Error()
    size = pure.blob_build(
        image,
        ctypes.c_size_t(room),
        ctypes.c_uint64(ADDRESS),
        ctypes.byref(regs),
        made,
        ctypes.c_size_t(calls),
        ctypes.byref(error),
    )
    return image.raw[: max(size, 0)], error.text.decode()


def registers(pure: ctypes.CDLL, image: bytes) -> tuple[int, ...]:
    code = len(image) - pure.blob_size(ctypes.c_size_t(0)) - 2 * 32
    end = pure.blob_size(ctypes.c_size_t(0)) - 32 - 64  # code and registers
    return struct.unpack("<9Q", image[code + end - 72 : code + end])


def test_the_blob_goes_back_to_where_the_thread_was(pure: ctypes.CDLL) -> None:
    done, _ = blob(pure, 5)
    assert registers(pure, done) == (11, 12, 13, 14, 15, 16, 17, 5, 0x401000)
    # An interrupted call is made again, by its number or as the kernel continues it.
    for error in (-512, -513, -514):
        again, _ = blob(pure, error)
        assert registers(pure, again)[7:] == (271, 0x400FFE)
    continued, _ = blob(pure, -516)
    assert registers(pure, continued)[7:] == (219, 0x400FFE)


def test_the_blob_has_its_calls_and_an_end(pure: ctypes.CDLL) -> None:
    image, _ = blob(pure, 0)
    calls = image[-64 - 3 * 32 : -64]
    assert struct.unpack("<12Q", calls) == (
        *(28, 1, 2, 3),
        *(435, ADDRESS + len(image) - 64, 64, 0),
        *(2**64 - 1, 0, 0, 0),
    )
    assert image[-64:] == bytes(64)
    assert len(image) == pure.blob_size(ctypes.c_size_t(2))


def test_a_blob_that_does_not_fit_is_none(pure: ctypes.CDLL) -> None:
    image, why = blob(pure, 0, room=pure.blob_size(ctypes.c_size_t(2)) - 1)
    assert (image, "there is room for" in why) == (b"", True)


def auxiliary(*pairs: tuple[int, int]) -> ctypes.Array[ctypes.c_uint64]:
    return (ctypes.c_uint64 * 128)(*[number for pair in pairs for number in pair])


def stack(
    pure: ctypes.CDLL, words: list[bytes], environment: bytes, size: int = 16384
) -> tuple[bytes, StackLayout, str]:
    given_words = (ctypes.c_char_p * len(words))(*words)
    # AT_PHDR, AT_BASE, AT_ENTRY, AT_UID, AT_EXECFD, AT_SYSINFO_EHDR, and AT_NULL behind them.
    vector = auxiliary((3, 1), (7, 1), (9, 1), (11, 0), (2, 9), (33, 0x7FFF0000))
    made = Input(
        ctypes.cast(given_words, ctypes.POINTER(ctypes.c_char_p)),
        len(words),
        environment,
        len(environment),
        ctypes.cast(vector, ctypes.c_void_p),
    )
    made.program_headers, made.interpreter_base, made.entry, made.ids[0] = 0x40, 0x50, 0x60, 1000
    image, layout, error = ctypes.create_string_buffer(size), StackLayout(), Error()
    pure.stack_build(
        ctypes.byref(made),
        image,
        ctypes.c_size_t(size),
        ctypes.c_uint64(ADDRESS),
        ctypes.byref(layout),
        ctypes.byref(error),
    )
    return image.raw, layout, error.text.decode()


def test_a_stack_as_a_program_finds_it(pure: ctypes.CDLL) -> None:
    words, variables = [b"/bin/qemu", b"-m", b"4G"], [b"A=1", b"LONG=" + b"x" * 99]
    image, layout, error = stack(pure, words, b"".join(one + b"\0" for one in variables))
    assert error == ""
    bottom = ADDRESS - len(image)

    def number(address: int) -> int:
        return int(struct.unpack_from("<Q", image, address - bottom)[0])

    def text(address: int) -> bytes:
        return image[address - bottom :].partition(b"\0")[0]

    at = layout.pointer
    assert at % 16 == 0
    assert number(at) == 3
    assert [text(number(at + 8 + 8 * i)) for i in range(3)] == words
    assert number(at + 32) == 0
    assert sorted(text(number(at + 40 + 8 * i)) for i in range(2)) == variables
    assert number(at + 56) == 0
    vector = {number(at + 64 + 16 * i): number(at + 72 + 16 * i) for i in range(6)}
    assert vector == {3: 0x40, 7: 0x50, 9: 0x60, 11: 1000, 33: 0x7FFF0000, 0: 0}
    line = image[layout.arguments_start - bottom : layout.arguments_end - bottom]
    assert line == b"/bin/qemu\0-m\x004G\0"


def test_a_stack_that_is_too_small_is_refused(pure: ctypes.CDLL) -> None:
    assert "take more than" in stack(pure, [b"/bin/qemu"], b"A=" + b"x" * 600 + b"\0", 512)[2]
    assert "has no end" in stack(pure, [b"/bin/qemu"], b"A=1")[2]


def read(pure: ctypes.CDLL, payload: bytes, most: int = 64) -> tuple[int, bytes, bool]:
    buffer = ctypes.create_string_buffer(payload, len(payload))
    start = ctypes.addressof(buffer)
    reader = Reader(start, start + len(payload), False)
    found = pure.read_number(ctypes.byref(reader))
    text = pure.read_text(ctypes.byref(reader), ctypes.c_size_t(most))
    return found, text, bool(reader.bad)


def test_the_lab_and_the_helper_speak_the_same_way(pure: ctypes.CDLL) -> None:
    assert read(pure, channel.pack((7, "pc.ram"))) == (7, b"pc.ram", False)
    header = struct.pack("<IHHII", channel.MAGIC, channel.VERSION, 1, 0, 1)
    for wrong, words in (
        (header, b""),
        (b"\0" * 4 + header[4:], b"no frame"),
        (header[:4] + b"\1\0" + header[6:], b"version 1"),
        (header[:8] + b"\xff\xff\xff\0" + header[12:], b"the most is"),
    ):
        error = Error()
        assert bool(pure.frame_check(wrong, ctypes.byref(error))) == bool(words)
        assert words in error.text


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        channel.pack((7,)),
        channel.pack((7, "pc.ram"))[:-1],
        channel.pack((7, "x" * 64)),
        channel.pack((7, 0)),
        channel.pack((7, 2**64 - 1)),
        channel.pack((7, 3)) + b"a\0b\0",
        channel.pack((7, 2)) + b"ab",
    ],
)
def test_a_field_that_is_not_there_is_bad(pure: ctypes.CDLL, payload: bytes) -> None:
    assert read(pure, payload)[1:] == (b"", True)
