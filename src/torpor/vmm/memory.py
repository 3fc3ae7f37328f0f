"""Memory files: cloned without copying where the file system can, completed with what a VM has made its own."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from torpor.vmm.dirty import PAGE_BYTES, Mapping, Range, mappings, merged, private_pages
from torpor.vmm.nameless import MemoryNotFound, Part, find_nameless

FICLONE: Final = 0x40049409
CHUNK_BYTES: Final = 4 * 1024 * 1024
GAP_BYTES: Final = 32 * 1024
"""Clean pages between two dirty ones are copied along up to this size: one long write is cheaper than two short ones,
and the file gets fewer extents."""
MODE: Final = 0o644
"""Each VMM is a user of its own; no other user of the host gets past the directories above."""
NO_REFLINK: Final = (errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.ENOSYS)

JAILED: Final = "/memory"
ZERO_PAGE: Final = bytes(PAGE_BYTES)

Checkpoint = Callable[[], None]
"""Called between pieces of work; raises to give it up."""
Writer = Callable[[int, memoryview, int], int]
"""Writes to a file at a place; returns the bytes written."""


@dataclass(frozen=True, slots=True)
class GuestMemory:
    """Where a process keeps the memory of its guest."""

    pid: int
    path: Path | None
    """None when it is in no file."""
    device: int
    inode: int
    size_bytes: int
    is_shared: bool


def save_memory(memory: GuestMemory, into: Path, checkpoint: Checkpoint) -> int:
    """Write a paused VM's whole memory to a new file and fsync it; returns the bytes that were not shared with the old.

    Blocking. Raises OSError, MemoryNotFound, and what `checkpoint` raises; the caller removes a partial file.
    """
    if memory.path is None:
        return _save_nameless(memory, into, checkpoint)
    parts = find_memory(memory)
    target = os.open(into, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, MODE)
    try:
        source = _open_source(memory, parts[0])
        try:
            copied = clone(source, target, checkpoint)
        finally:
            os.close(source)
        if not memory.is_shared:
            placed = [Part(part.range, part.offset) for part in parts]
            copied += _copy_private(memory.pid, placed, target, checkpoint)
        os.fsync(target)
    finally:
        os.close(target)
    return copied


def _save_nameless(memory: GuestMemory, into: Path, checkpoint: Checkpoint) -> int:
    parts = find_nameless(memory.pid, memory.size_bytes)
    target = os.open(into, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, MODE)
    try:
        os.ftruncate(target, memory.size_bytes)
        copied = _copy_private(memory.pid, parts, target, checkpoint, without_zeros=True)
        os.fsync(target)
    finally:
        os.close(target)
    return copied


def find_memory(memory: GuestMemory) -> list[Mapping]:
    """The mappings of the guest's memory, which together hold every byte of it once. Raises MemoryNotFound, OSError."""
    parts = [m for m in mappings(memory.pid) if _is_of(m, memory)]
    parts.sort(key=lambda part: part.offset)
    reached = 0
    for part in parts:
        if part.offset != reached:
            break
        reached += part.range.size
    if reached != memory.size_bytes:
        raise MemoryNotFound(
            f"process {memory.pid} maps {reached} bytes of {memory.path} in order, not {memory.size_bytes}"
        )
    return parts


def clone(source: int, target: int, checkpoint: Checkpoint) -> int:
    """Give `target`, which is empty, the content of `source`; returns the bytes copied, 0 where extents are shared."""
    try:
        fcntl.ioctl(target, FICLONE, source)
    except OSError as error:
        if error.errno not in NO_REFLINK:
            raise
        return _copy_sparse(source, target, checkpoint)
    return 0


def sync_directory(folder: Path) -> None:
    """Make the names in a directory durable. Blocking; raises OSError."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _is_of(mapping: Mapping, memory: GuestMemory) -> bool:
    # Some file systems (overlay, btrfs) show another device in maps than in stat; there the path must do, which is the
    # one in the VMM's jail.
    names = (JAILED, str(memory.path))
    is_same_place = mapping.device == memory.device or mapping.path.removesuffix(" (deleted)") in names
    return mapping.inode == memory.inode and is_same_place


def _open_source(memory: GuestMemory, part: Mapping) -> int:
    """The mapped file itself, even when its name is gone or belongs to another file now."""
    link = f"/proc/{memory.pid}/map_files/{part.range.start:x}-{part.range.end:x}"
    for place in (link, str(memory.path)):
        try:
            fd = os.open(place, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            continue  # map_files needs a privilege
        if os.fstat(fd).st_ino == memory.inode:
            return fd
        os.close(fd)
    raise MemoryNotFound(f"the memory file {memory.path} of process {memory.pid} cannot be opened")


def _copy_private(
    pid: int, parts: Sequence[Part], target: int, checkpoint: Checkpoint, *, without_zeros: bool = False
) -> int:
    source = os.open(f"/proc/{pid}/mem", os.O_RDONLY | os.O_CLOEXEC)
    copied = 0
    write = _write_without_zeros if without_zeros else _write
    try:
        window = memoryview(bytearray(CHUNK_BYTES))
        for part in parts:
            to_file = part.offset - part.range.start
            for range_ in merged(private_pages(pid, part.range), GAP_BYTES):
                copied += _copy(source, target, range_, range_.start + to_file, window, checkpoint, write)
    finally:
        os.close(source)
    return copied


def _copy_sparse(source: int, target: int, checkpoint: Checkpoint) -> int:
    size = os.fstat(source).st_size
    os.ftruncate(target, size)
    copied = 0
    window = memoryview(bytearray(CHUNK_BYTES))
    for extent in _data(source, size):
        copied += _copy(source, target, extent, extent.start, window, checkpoint, _write)
    return copied


def _data(file: int, size: int) -> Iterator[Range]:
    """The parts of a file that are not holes."""
    end = 0
    while end < size:
        try:
            start = os.lseek(file, end, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing but a hole up to the end
                return
            raise
        end = os.lseek(file, start, os.SEEK_HOLE)
        yield Range(start, end)


def _copy(
    source: int, target: int, what: Range, to: int, window: memoryview, checkpoint: Checkpoint, write: Writer
) -> int:
    at = what.start
    written = 0
    while at < what.end:
        checkpoint()
        count = os.preadv(source, [window[: min(len(window), what.end - at)]], at)
        if count == 0:
            raise OSError(errno.EIO, "the memory ended early")
        written += write(target, window[:count], to + at - what.start)
        at += count
    return written


def _write(target: int, data: memoryview, at: int) -> int:
    total = len(data)
    while data:
        written = os.pwrite(target, data, at)
        data, at = data[written:], at + written
    return total


def _write_without_zeros(target: int, data: memoryview, at: int) -> int:
    """Leave holes for pages of zeros; memory of its own is given to a process in pieces of up to 2 MiB."""
    total = 0
    start = 0
    for place in range(0, len(data) + 1, PAGE_BYTES):
        page = bytes(data[place : place + PAGE_BYTES])
        if page and page != ZERO_PAGE:
            continue
        if start < place:
            total += _write(target, data[start:place], at + start)
        start = place + PAGE_BYTES
    return total
