"""Memory files made from this process's own private mapping."""

from __future__ import annotations

import mmap
import os
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from torpor.vmm import memory
from torpor.vmm.blocking import GivenUp
from torpor.vmm.memory import GuestMemory, clone, save_memory
from torpor.vmm.nameless import MemoryNotFound

SIZE = 8 << 20


def go_on() -> None:
    """A checkpoint that lets everything pass."""


@dataclass
class Own:
    """This process playing a VMM."""

    memory: GuestMemory
    content: mmap.mmap


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Own]:
    path = tmp_path / "memory"
    with path.open("wb") as file:
        file.truncate(SIZE)
        file.seek(3 << 20)
        file.write(os.urandom(100_000))
    with path.open("r+b") as opened, mmap.mmap(opened.fileno(), 0, flags=mmap.MAP_PRIVATE) as content:
        choose = random.Random(3)
        for _ in range(300):
            at = choose.randrange(SIZE - 4)
            content[at : at + 4] = b"mine"
        status = path.stat()
        yield Own(GuestMemory(os.getpid(), path, status.st_dev, status.st_ino, SIZE, is_shared=False), content)


def test_a_saved_memory_file_is_what_the_process_sees(own: Own, tmp_path: Path) -> None:
    save_memory(own.memory, tmp_path / "saved", go_on)
    assert (tmp_path / "saved").read_bytes() == own.content[:]


def test_a_memory_file_that_was_replaced_is_still_the_source(own: Own, tmp_path: Path) -> None:
    assert own.memory.path is not None
    own.memory.path.unlink()
    own.memory.path.write_bytes(bytes(SIZE))
    save_memory(own.memory, tmp_path / "saved", go_on)
    assert (tmp_path / "saved").read_bytes() == own.content[:]


def test_a_mapping_of_another_size_is_not_taken(own: Own, tmp_path: Path) -> None:
    with pytest.raises(MemoryNotFound):
        save_memory(replace(own.memory, size_bytes=SIZE * 2), tmp_path / "saved", go_on)


def test_a_mapping_of_another_file_is_not_taken(own: Own, tmp_path: Path) -> None:
    with pytest.raises(MemoryNotFound):
        save_memory(replace(own.memory, inode=1), tmp_path / "saved", go_on)


def test_a_save_can_be_given_up_between_two_pieces(own: Own, tmp_path: Path) -> None:
    def refuse() -> None:
        raise GivenUp

    with pytest.raises(GivenUp):
        save_memory(own.memory, tmp_path / "saved", refuse)


def test_copying_without_reflink_keeps_content_and_holes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "FICLONE", 0)  # no such ioctl: ENOTTY, as on a file system without reflink
    source, target = tmp_path / "source", tmp_path / "target"
    with source.open("wb") as file:
        for at in (0, 5 << 20, 40 << 20):
            file.seek(at)
            file.write(os.urandom(70_000))
        file.truncate(64 << 20)
    with source.open("rb") as from_, target.open("wb") as to:
        copied = clone(from_.fileno(), to.fileno(), go_on)
    assert target.read_bytes() == source.read_bytes()
    assert copied < 1 << 20
    assert target.stat().st_blocks * 512 < 1 << 20


def test_an_empty_memory_file_is_cloned_to_its_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "FICLONE", 0)
    source, target = tmp_path / "source", tmp_path / "target"
    with source.open("wb") as file:
        file.truncate(1 << 20)
    with source.open("rb") as from_, target.open("wb") as to:
        assert clone(from_.fileno(), to.fileno(), go_on) == 0
    assert target.stat().st_size == 1 << 20
