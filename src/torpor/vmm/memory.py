"""Memory files: cloned without copying where the file system can, completed with what a VM has made its own."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from torpor.vmm.dirty import Mapping, Range, mappings, merged, private_pages

FICLONE: Final = 0x40049409
CHUNK_BYTES: Final = 4 * 1024 * 1024
GAP_BYTES: Final = 32 * 1024
"""Clean pages between two dirty ones are copied along up to this size: one long write is cheaper than two short ones,
and the file gets fewer extents."""
NO_REFLINK: Final = (errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.ENOSYS)

Checkpoint = Callable[[], None]
"""Called between pieces of work; raises to give it up."""


class MemoryNotFound(Exception):
    """The process does not map its guest's memory as it should."""


@dataclass(frozen=True, slots=True)
class GuestMemory:
    """Where a process keeps the memory of its guest."""

    pid: int
    path: Path
    device: int
    inode: int
    size_bytes: int
    is_shared: bool


def save_memory(memory: GuestMemory, into: Path, checkpoint: Checkpoint) -> int:
    """Write a paused VM's whole memory to a new file and fsync it; returns the bytes that were not shared with the old.

    Blocking. Raises OSError, MemoryNotFound, and what `checkpoint` raises; the caller removes a partial file.
    """
    parts = find_memory(memory)
    target = os.open(into, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o640)
    try:
        source = _open_source(memory, parts[0])
        try:
            copied = clone(source, target, checkpoint)
        finally:
            os.close(source)
        if not memory.is_shared:
            copied += _copy_private(memory.pid, parts, target, checkpoint)
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
    # Some file systems (overlay, btrfs) show another device in maps than in stat; there the path must do.
    is_same_place = mapping.device == memory.device or mapping.path.removesuffix(" (deleted)") == str(memory.path)
    return mapping.inode == memory.inode and is_same_place


def _open_source(memory: GuestMemory, part: Mapping) -> int:
    """The mapped file itself, even when its name is gone or belongs to another file now."""
    link = f"/proc/{memory.pid}/map_files/{part.range.start:x}-{part.range.end:x}"
    for place in (link, memory.path):
        try:
            fd = os.open(place, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            continue  # map_files needs a privilege
        if os.fstat(fd).st_ino == memory.inode:
            return fd
        os.close(fd)
    raise MemoryNotFound(f"the memory file {memory.path} of process {memory.pid} cannot be opened")


def _copy_private(pid: int, parts: Sequence[Mapping], target: int, checkpoint: Checkpoint) -> int:
    source = os.open(f"/proc/{pid}/mem", os.O_RDONLY | os.O_CLOEXEC)
    copied = 0
    try:
        window = memoryview(bytearray(CHUNK_BYTES))
        for part in parts:
            to_file = part.offset - part.range.start
            for range_ in merged(private_pages(pid, part.range), GAP_BYTES):
                _copy(source, target, range_, range_.start + to_file, window, checkpoint)
                copied += range_.size
    finally:
        os.close(source)
    return copied


def _copy_sparse(source: int, target: int, checkpoint: Checkpoint) -> int:
    size = os.fstat(source).st_size
    os.ftruncate(target, size)
    copied = 0
    window = memoryview(bytearray(CHUNK_BYTES))
    for extent in _data(source, size):
        _copy(source, target, extent, extent.start, window, checkpoint)
        copied += extent.size
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


def _copy(source: int, target: int, what: Range, to: int, window: memoryview, checkpoint: Checkpoint) -> None:
    at = what.start
    while at < what.end:
        checkpoint()
        count = os.preadv(source, [window[: min(len(window), what.end - at)]], at)
        if count == 0:
            raise OSError(errno.EIO, "the memory ended early")
        _write(target, window[:count], to + at - what.start)
        at += count


def _write(target: int, data: memoryview, at: int) -> None:
    while data:
        written = os.pwrite(target, data, at)
        data, at = data[written:], at + written
