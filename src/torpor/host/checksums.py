"""Checksums of a snapshot's memory and disk, by blocks, so that a new generation only pays for what it changed.

    <snapshot>/checksums    one line of JSON, then for each block that is not all zeros its number and its digest

Holes are not read. A block whose extents are the very ones of the file it was cloned from takes that file's digest
over without being read: reflinks say which those are (FIEMAP). Everything here blocks.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from torpor.host.extents import Extent, data_ranges, mapped
from torpor.host.files import publish
from torpor.host.snapshots import CHECKSUMS, ROOT_DISK
from torpor.model.errors import SnapshotDamaged
from torpor.vmm.base import MEMORY_FILE

SUMMED: Final = (MEMORY_FILE, ROOT_DISK)
"""The device state has its checksum in the engine's record."""
BLOCK_BYTES: Final = 64 * 1024
"""Small enough that scattered dirty pages do not make all of a file be read again."""
DIGEST_BYTES: Final = 16
"""Of SHA-256, the quickest one where processors help with it (1.5 GB/s a core)."""
ALGORITHM: Final = "sha256/16"
FORMAT: Final = 1
MAX_HEADER_BYTES: Final = 4096
_ENTRY: Final = struct.Struct(f"=L{DIGEST_BYTES}s")
_ZEROS: Final = bytes(BLOCK_BYTES)

Digests = dict[int, bytes]
"""By number of the block; all others are zeros."""
OnRead = Callable[[int], None]
"""Told how many bytes were read; may wait, to go easy on the disk, or raise, to end."""


@dataclass(frozen=True, slots=True)
class Sums:
    """What the files of a snapshot were when they were summed."""

    sizes: Mapping[str, int]
    digests: Mapping[str, Digests]


@dataclass(slots=True)
class Origin:
    """The files that a generation was made from, kept open: they may lose their names before they are looked at."""

    files: dict[str, int]
    written: bytes
    """Their sums as they were written then; empty when they were not."""

    def close(self) -> None:
        for descriptor in self.files.values():
            os.close(descriptor)
        self.files.clear()


def origin_of(snapshot: Path) -> Origin | None:
    """None when it is not there."""
    origin = Origin({}, b"")
    try:
        for name in SUMMED:
            origin.files[name] = os.open(snapshot / name, os.O_RDONLY | os.O_CLOEXEC)
        if (snapshot / CHECKSUMS).exists():
            origin.written = (snapshot / CHECKSUMS).read_bytes()
    except OSError:
        origin.close()
        return None
    return origin


def compute(snapshot: Path, origin: tuple[Origin, Sums] | None, on_read: OnRead) -> Sums:
    """Sum the files as they are now, taking over what is known of those they were made from. Raises OSError."""
    sizes: dict[str, int] = {}
    digests: dict[str, Digests] = {}
    for name in SUMMED:
        with (snapshot / name).open("rb") as file:
            sizes[name] = os.fstat(file.fileno()).st_size
            kept = _unchanged(file.fileno(), origin[0].files[name]) if origin else set()
            earlier = origin[1].digests[name] if origin else {}
            digests[name] = {number: earlier[number] for number in kept if number in earlier}
            for number, digest in _read(file.fileno(), kept, on_read):
                digests[name][number] = digest
    return Sums(sizes, digests)


def verify(snapshot: Path, sums: Sums, on_read: OnRead, names: Sequence[str] = SUMMED) -> None:
    """Read the files and compare.

    Raises:
        SnapshotDamaged: naming the file and the place of the first block that differs.
    """
    for name in names:
        known = sums.digests[name]
        try:
            with (snapshot / name).open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                if size != sums.sizes[name]:
                    raise SnapshotDamaged(f"snapshot {snapshot.name}: {name} has {size} bytes instead of "
                                          f"{sums.sizes[name]}")  # fmt: skip
                found = dict.fromkeys(known)
                for number, digest in _read(file.fileno(), set(), on_read):
                    if known.get(number) != digest:
                        raise _damaged(snapshot, name, number)
                    del found[number]
                if found:
                    raise _damaged(snapshot, name, min(found))
        except OSError as error:
            raise SnapshotDamaged(f"snapshot {snapshot.name}: {name} cannot be read: {error}") from error


def write_sums(snapshot: Path, sums: Sums) -> bytes:
    """Put them beside the files, durably; returns what was written. Raises OSError."""
    counts = {name: len(sums.digests[name]) for name in SUMMED}
    body = b"".join(_ENTRY.pack(number, digest) for name in SUMMED for number, digest in sums.digests[name].items())
    header = {"format": FORMAT, "algorithm": ALGORITHM, "block": BLOCK_BYTES, "sizes": dict(sums.sizes),
              "blocks": counts, "sha256": hashlib.sha256(body).hexdigest()}  # fmt: skip
    content = json.dumps(header).encode() + b"\n" + body
    publish(content, snapshot / CHECKSUMS)
    return content


def read_sums(snapshot: Path) -> Sums | None:
    """None when there are none, or they are of another format or damaged themselves: nothing can be said then."""
    try:
        return parse_sums((snapshot / CHECKSUMS).read_bytes())
    except OSError:
        return None


def parse_sums(content: bytes) -> Sums | None:
    """The content of their file; None when nothing can be said by it."""
    try:
        line, _, body = content.partition(b"\n")
        header = json.loads(line[:MAX_HEADER_BYTES])
        if (header["format"], header["algorithm"], header["block"]) != (FORMAT, ALGORITHM, BLOCK_BYTES):
            return None
        if hashlib.sha256(body).hexdigest() != header["sha256"]:
            return None
        entries = _ENTRY.iter_unpack(body)
        digests = {name: dict(next(entries) for _ in range(header["blocks"][name])) for name in SUMMED}
        return Sums({name: int(header["sizes"][name]) for name in SUMMED}, digests)
    except (ValueError, KeyError, TypeError, StopIteration, RuntimeError, struct.error):
        return None


def _damaged(snapshot: Path, name: str, number: int) -> SnapshotDamaged:
    return SnapshotDamaged(f"snapshot {snapshot.name}: {name} is not what was saved: its checksum differs at byte "
                           f"{number * BLOCK_BYTES}")  # fmt: skip


def _read(descriptor: int, skipped: set[int], on_read: OnRead) -> Iterator[tuple[int, bytes]]:
    """Number and digest of each block with data that is not all zeros."""
    last = -1
    for start, end in data_ranges(descriptor):
        for number in range(max(start // BLOCK_BYTES, last + 1), -(-end // BLOCK_BYTES)):
            last = number
            if number in skipped:
                continue
            block = os.pread(descriptor, BLOCK_BYTES, number * BLOCK_BYTES)
            on_read(len(block))
            if block != _ZEROS[: len(block)]:
                yield number, hashlib.sha256(block).digest()[:DIGEST_BYTES]


def _unchanged(new: int, old: int) -> set[int]:
    """Blocks that lie wholly on extents which both files share."""
    try:
        theirs = {(each.logical, each.physical, each.length) for each in _pieces(mapped(old))}
        ours = _pieces(mapped(new))
    except OSError:  # a file system without FIEMAP
        return set()
    covered: dict[int, int] = {}
    for piece in ours:
        if (piece.logical, piece.physical, piece.length) in theirs:
            number = piece.logical // BLOCK_BYTES
            covered[number] = covered.get(number, 0) + piece.length
    # A block with a hole in it, or the last one, is covered by less and is read: there are few.
    return {number for number, count in covered.items() if count == BLOCK_BYTES}


def _pieces(extents: list[Extent]) -> Iterator[Extent]:
    """Extents cut at the borders of blocks: the same cuts whatever lies around them."""
    for extent in extents:
        if not extent.is_certain:
            continue
        at, end = extent.logical, extent.logical + extent.length
        while at < end:
            until = min(end, (at // BLOCK_BYTES + 1) * BLOCK_BYTES)
            yield Extent(at, extent.physical + at - extent.logical, until - at, extent.flags)
            at = until
