"""Guest memory that is in no file, played by this process's own."""

from __future__ import annotations

import ctypes
import mmap
import os
import platform
from collections.abc import Iterator
from pathlib import Path

import pytest

from torpor.vmm import dirty, nameless
from torpor.vmm.dirty import Range
from torpor.vmm.memory import GuestMemory, save_memory
from torpor.vmm.nameless import SIGNS, MemoryNotFound, find_nameless

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="the sign is that of x86-64")
SIZE = 12 << 20


@pytest.fixture
def area() -> Iterator[mmap.mmap]:
    with mmap.mmap(-1, SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as own:
        yield own


def sign(area: mmap.mmap, at: int, which: int = 0) -> None:
    place, content = SIGNS[which]
    area[at + place : at + place + len(content)] = content


def memory(size: int) -> GuestMemory:
    return GuestMemory(os.getpid(), None, 0, 0, size, is_shared=False)


def exactly(area: mmap.mmap, size: int, monkeypatch: pytest.MonkeyPatch) -> Range:
    """Let the process have one nameless area: the first `size` bytes of this one."""
    start = _address(area)
    found = Range(start, start + size)
    monkeypatch.setattr(nameless, "nameless", lambda pid: [found])
    return found


def _address(area: mmap.mmap) -> int:
    view = ctypes.c_char.from_buffer(area)
    try:
        return ctypes.addressof(view)
    finally:
        del view


@pytest.mark.parametrize("which", range(len(SIGNS)))
def test_memory_of_one_part_is_saved_with_holes_for_zeros(
    area: mmap.mmap, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, which: int
) -> None:
    exactly(area, SIZE, monkeypatch)
    sign(area, 0, which)
    area[5 << 20 : (5 << 20) + 9000] = os.urandom(9000)
    area[7 << 20 : 8 << 20] = bytes(1 << 20)  # touched, and nothing but zeros
    written = save_memory(memory(SIZE), tmp_path / "m", lambda: None)
    assert (tmp_path / "m").read_bytes() == area[:SIZE]
    assert written <= 5 * mmap.PAGESIZE
    assert (tmp_path / "m").stat().st_blocks * 512 < 1 << 20


@pytest.mark.parametrize("is_upper_first", [True, False])
def test_two_parts_that_the_kernel_shows_as_one_are_told_apart(
    area: mmap.mmap, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_upper_first: bool
) -> None:
    exactly(area, SIZE, monkeypatch)
    hole = 8 << 20
    monkeypatch.setattr(nameless, "HOLES_BEGIN", (hole,))
    first_at = SIZE - hole if is_upper_first else 0
    sign(area, first_at)
    area[SIZE - 1] = 7
    area[0] = 9
    save_memory(memory(SIZE), tmp_path / "m", lambda: None)
    rest = area[: SIZE - hole] if is_upper_first else area[hole:SIZE]
    assert (tmp_path / "m").read_bytes() == area[first_at : first_at + hole] + rest


def test_an_area_without_the_sign_of_a_boot_is_not_taken(area: mmap.mmap, monkeypatch: pytest.MonkeyPatch) -> None:
    exactly(area, SIZE, monkeypatch)
    with pytest.raises(MemoryNotFound, match="0 areas"):
        find_nameless(os.getpid(), SIZE)


def test_this_process_has_nameless_areas_and_knows_their_place(area: mmap.mmap) -> None:
    at = _address(area)
    area[0] = 1
    assert any(each.start <= at < each.end for each in dirty.nameless(os.getpid()))
