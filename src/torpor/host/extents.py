"""Which bytes of a file are its own and which it shares with clones (the FIEMAP ioctl)."""

from __future__ import annotations

import fcntl
import os
import struct
from pathlib import Path
from typing import Final

FS_IOC_FIEMAP: Final = 0xC020660B
_HEADER: Final = struct.Struct("=QQLLLL")  # start, length, flags, mapped extents, extent count, reserved
_EXTENT: Final = struct.Struct("=QQQQQLLLL")  # logical, physical, length, reserved × 2, flags, reserved × 3
_EXTENTS_A_CALL: Final = 500
_SHARED: Final = 0x2000
_LAST: Final = 0x1
_SYNC: Final = 0x1


def own_bytes(path: Path) -> int:
    """Bytes of extents that no clone shares; all allocated ones where the file system cannot tell.

    Of a live disk that was cloned from a snapshot these are the blocks written since.
    """
    with path.open("rb") as file:
        try:
            return _own_bytes(file.fileno())
        except OSError:
            return os.fstat(file.fileno()).st_blocks * 512


def _own_bytes(descriptor: int) -> int:
    total = start = 0
    while True:
        buffer = bytearray(_HEADER.size + _EXTENTS_A_CALL * _EXTENT.size)
        _HEADER.pack_into(buffer, 0, start, 2**64 - 1 - start, _SYNC, 0, _EXTENTS_A_CALL, 0)
        fcntl.ioctl(descriptor, FS_IOC_FIEMAP, buffer)
        mapped = _HEADER.unpack_from(buffer)[3]
        is_last = mapped == 0
        for index in range(mapped):
            logical, _, length, _, _, flags, *_ = _EXTENT.unpack_from(buffer, _HEADER.size + index * _EXTENT.size)
            start = logical + length
            total += 0 if flags & _SHARED else length
            is_last = is_last or bool(flags & _LAST)
        if is_last:
            return total
