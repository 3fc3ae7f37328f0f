"""Which pages of a private file mapping a process has made its own.

Such a page is anonymous: present (or swapped out) and no page of the file. Everything else still is what the file
holds. The kernel says it through PAGEMAP_SCAN (6.7 and later) or, slower, through one word a page in
/proc/PID/pagemap (Documentation/admin-guide/mm/pagemap.rst).
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

PAGE_BYTES: Final = mmap.PAGESIZE
PAGEMAP_SCAN: Final = 0xC0606610
PAGE_IS_FILE: Final = 1 << 2
PAGE_IS_PRESENT: Final = 1 << 3
PAGE_IS_SWAPPED: Final = 1 << 4
REGIONS_A_SCAN: Final = 8192
WORD_BYTES: Final = 8
PAGES_A_READ: Final = 1 << 17
# Bits of the highest byte of a pagemap word: 7 present, 6 swapped, 5 page of a file (or shared).
IS_PRIVATE: Final = bytes(1 if byte & 0b1100_0000 and not byte & 0b0010_0000 else 0 for byte in range(256))


@dataclass(frozen=True, slots=True, order=True)
class Range:
    """Addresses from `start` up to and without `end`."""

    start: int
    end: int

    @property
    def size(self) -> int:
        return self.end - self.start


@dataclass(frozen=True, slots=True)
class Mapping:
    """A part of a process's memory that maps a part of a file (proc(5), maps)."""

    range: Range
    offset: int
    """In the file."""
    device: int
    inode: int
    path: str


class _ScanArguments(ctypes.Structure):
    """struct pm_scan_arg of linux/fs.h."""

    _fields_ = tuple(
        (name, ctypes.c_uint64)
        for name in (
            "size", "flags", "start", "end", "walk_end", "vec", "vec_len", "max_pages",
            "category_inverted", "category_mask", "category_anyof_mask", "return_mask",
        )
    )  # fmt: skip


class _Region(ctypes.Structure):
    """struct page_region of linux/fs.h."""

    _fields_ = (("start", ctypes.c_uint64), ("end", ctypes.c_uint64), ("categories", ctypes.c_uint64))


def mappings(pid: int) -> list[Mapping]:
    """Every file mapping of a process, by address. Raises OSError."""
    found = []
    for line in Path(f"/proc/{pid}/maps").read_bytes().decode(errors="surrogateescape").splitlines():
        fields = line.split(maxsplit=5)
        if len(fields) == 6 and fields[4] != "0":
            start, _, end = fields[0].partition("-")
            major, _, minor = fields[3].partition(":")
            device = os.makedev(int(major, 16), int(minor, 16))
            place = Range(int(start, 16), int(end, 16))
            found.append(Mapping(place, int(fields[2], 16), device, int(fields[4]), fields[5]))
    return found


def nameless(pid: int) -> list[Range]:
    """Every readable and writable part of a process's memory that belongs to no file, by address. Raises OSError."""
    found = []
    for line in Path(f"/proc/{pid}/maps").read_bytes().decode(errors="surrogateescape").splitlines():
        fields = line.split(maxsplit=5)
        if len(fields) == 5 and fields[1] == "rw-p" and fields[4] == "0":
            start, _, end = fields[0].partition("-")
            found.append(Range(int(start, 16), int(end, 16)))
    return found


def private_pages(pid: int, within: Range) -> list[Range]:
    """The private pages of a process in a part of its memory, as sorted ranges that do not touch. Raises OSError."""
    fd = os.open(f"/proc/{pid}/pagemap", os.O_RDONLY)
    try:
        try:
            return list(merged(scanned(fd, within), 0))
        except OSError as error:
            if error.errno not in (errno.ENOTTY, errno.EINVAL):
                raise
            return list(merged(read_out(fd, within), 0))
    finally:
        os.close(fd)


def scanned(fd: int, within: Range) -> Iterator[Range]:
    """By PAGEMAP_SCAN. Raises OSError with ENOTTY on a kernel without it."""
    regions = (_Region * REGIONS_A_SCAN)()
    start = within.start
    while start < within.end:
        arguments = _ScanArguments(
            size=ctypes.sizeof(_ScanArguments), start=start, end=within.end,
            vec=ctypes.addressof(regions), vec_len=REGIONS_A_SCAN,
            category_inverted=PAGE_IS_FILE, category_mask=PAGE_IS_FILE,
            category_anyof_mask=PAGE_IS_PRESENT | PAGE_IS_SWAPPED, return_mask=PAGE_IS_FILE,
        )  # fmt: skip
        count = fcntl.ioctl(fd, PAGEMAP_SCAN, arguments)
        yield from (Range(region.start, region.end) for region in regions[:count])
        start = arguments.walk_end


def read_out(fd: int, within: Range) -> Iterator[Range]:
    """By reading the pagemap file."""
    page, last = within.start // PAGE_BYTES, within.end // PAGE_BYTES
    while page < last:
        words = os.pread(fd, min(PAGES_A_READ, last - page) * WORD_BYTES, page * WORD_BYTES)
        count = len(words) // WORD_BYTES
        if count == 0:
            raise OSError(errno.EIO, "the pagemap ended early")
        # One byte of each word decides; slicing, translating and searching keep the loop over pages in C.
        for run in re.finditer(b"\x01+", words[WORD_BYTES - 1 :: WORD_BYTES].translate(IS_PRIVATE)):
            yield Range((page + run.start()) * PAGE_BYTES, (page + run.end()) * PAGE_BYTES)
        page += count


def merged(ranges: Iterable[Range], gap_bytes: int) -> Iterator[Range]:
    """Sorted ranges, those with at most `gap_bytes` between them made one."""
    current: Range | None = None
    for range_ in ranges:
        if current is None:
            current = range_
        elif range_.start <= current.end + gap_bytes:
            current = Range(current.start, max(current.end, range_.end))
        else:
            yield current
            current = range_
    if current is not None:
        yield current
