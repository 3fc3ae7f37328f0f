"""Where the content of a file lies on the disk, and which of it is shared with clones (FIEMAP, SEEK_DATA)."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

FS_IOC_FIEMAP: Final = 0xC020660B
_HEADER: Final = struct.Struct("=QQLLLL")  # start, length, flags, mapped extents, extent count, reserved
_EXTENT: Final = struct.Struct("=QQQQQLLLL")  # logical, physical, length, reserved × 2, flags, reserved × 3
_EXTENTS_A_CALL: Final = 500
_SHARED: Final = 0x2000
_LAST: Final = 0x1
_UNCERTAIN: Final = 0x2 | 0x4 | 0x8 | 0x80 | 0x100 | 0x200 | 0x400 | 0x800
"""Place not known, not written yet, encoded, encrypted, not aligned, inline, in a tail, reserved and never written."""
_SYNC: Final = 0x1


@dataclass(frozen=True, slots=True)
class Extent:
    """A piece of a file and its place; all in bytes."""

    logical: int
    physical: int
    length: int
    flags: int

    @property
    def is_shared(self) -> bool:
        return bool(self.flags & _SHARED)

    @property
    def is_certain(self) -> bool:
        """Two files with the same place have the same content there."""
        return not self.flags & _UNCERTAIN


def own_bytes(path: Path) -> int:
    """Bytes of extents that no clone shares; all allocated ones where the file system cannot tell.

    Of a live disk that was cloned from a snapshot these are the blocks written since.
    """
    with path.open("rb") as file:
        try:
            return sum(each.length for each in mapped(file.fileno()) if not each.is_shared)
        except OSError:
            return os.fstat(file.fileno()).st_blocks * 512


def mapped(descriptor: int) -> list[Extent]:
    """All extents of an open file, in order. Raises OSError where the file system cannot tell."""
    found: list[Extent] = []
    start = 0
    while True:
        buffer = bytearray(_HEADER.size + _EXTENTS_A_CALL * _EXTENT.size)
        _HEADER.pack_into(buffer, 0, start, 2**64 - 1 - start, _SYNC, 0, _EXTENTS_A_CALL, 0)
        fcntl.ioctl(descriptor, FS_IOC_FIEMAP, buffer)
        count = _HEADER.unpack_from(buffer)[3]
        for index in range(count):
            fields = _EXTENT.unpack_from(buffer, _HEADER.size + index * _EXTENT.size)
            logical, physical, length, flags = *fields[:3], fields[5]
            found.append(Extent(logical, physical, length, flags))
            start = logical + length
        if count == 0 or found[-1].flags & _LAST:
            return found


def data_ranges(descriptor: int) -> Iterator[tuple[int, int]]:
    """Start and end of each part of an open file that is not a hole. Raises OSError."""
    size, end = os.fstat(descriptor).st_size, 0
    while end < size:
        try:
            start = os.lseek(descriptor, end, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing but a hole up to the end
                return
            raise
        end = os.lseek(descriptor, start, os.SEEK_HOLE)
        yield start, end
