"""Sums of saved files: what is changed is found, holes cost nothing, and what is shared is taken over."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from torpor.host.checksums import BLOCK_BYTES, Sums, compute, origin_of, read_sums, verify, write_sums
from torpor.host.files import clone_file
from torpor.host.snapshots import CHECKSUMS
from torpor.model.errors import SnapshotDamaged

SIZE = 40 * BLOCK_BYTES + 1234


class Reads:
    """How much was read."""

    def __init__(self) -> None:
        self.bytes = 0

    def __call__(self, count: int) -> None:
        self.bytes += count


def snapshot(path: Path, **pieces: dict[int, bytes]) -> Path:
    """A directory with a memory file and a disk; `pieces` are what is written at which place."""
    path.mkdir()
    for name in ("memory", "disk"):
        with (path / name).open("wb") as file:
            file.truncate(SIZE)
            for at, content in pieces.get(name, {}).items():
                file.seek(at)
                file.write(content)
    return path


def summed(path: Path) -> Path:
    write_sums(path, compute(path, None, Reads()))
    return path


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return summed(snapshot(tmp_path / "gen-1", memory={0: b"a" * 9000, 20 * BLOCK_BYTES: b"b" * 5000},
                           disk={5 * BLOCK_BYTES - 10: b"c" * 20}))  # fmt: skip


def check(path: Path) -> None:
    sums = read_sums(path)
    assert sums is not None
    verify(path, sums, Reads())


def flip(path: Path, at: int, bit: int = 0) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        old = file.read(1)[0]
        file.seek(at)
        file.write(bytes([old ^ (1 << bit)]))


def test_whole_files_are_whole(saved: Path) -> None:
    check(saved)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(["memory", "disk"]), st.integers(0, SIZE - 1), st.integers(0, 7))
def test_any_bit_that_flips_is_found_and_its_place_named(saved: Path, name: str, at: int, bit: int) -> None:
    flip(saved / name, at, bit)
    place = at // BLOCK_BYTES * BLOCK_BYTES
    try:
        with pytest.raises(SnapshotDamaged, match=f"{name} is not what was saved.* at byte {place}$"):
            check(saved)
    finally:
        flip(saved / name, at, bit)
    check(saved)


def test_a_truncated_or_missing_file_is_named(saved: Path) -> None:
    os.truncate(saved / "memory", SIZE - 1)
    with pytest.raises(SnapshotDamaged, match=f"memory has {SIZE - 1} bytes instead of {SIZE}"):
        check(saved)
    (saved / "memory").unlink()
    with pytest.raises(SnapshotDamaged, match="memory cannot be read"):
        check(saved)


def test_data_that_became_a_hole_is_found_and_zeros_are_as_good_as_a_hole(saved: Path) -> None:
    with (saved / "disk").open("r+b") as file:
        file.seek(30 * BLOCK_BYTES)
        file.write(bytes(BLOCK_BYTES))
    check(saved)
    snapshot(saved.with_name("other"))
    (saved.with_name("other") / "memory").replace(saved / "memory")
    with pytest.raises(SnapshotDamaged, match="memory is not what was saved: its checksum differs at byte 0"):
        check(saved)


def test_only_blocks_with_data_are_read(saved: Path) -> None:
    reads = Reads()
    compute(saved, None, reads)
    assert reads.bytes <= 5 * BLOCK_BYTES


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=300), st.integers(0, 400))
def test_damaged_sums_say_nothing_rather_than_something_wrong(saved: Path, rubbish: bytes, at: int) -> None:
    content = (saved / CHECKSUMS).read_bytes()
    try:
        (saved / CHECKSUMS).write_bytes(content[:at] + rubbish + content[at + len(rubbish) :])
        sums = read_sums(saved)
        assert sums is None or sums == compute(saved, None, Reads())
    finally:
        (saved / CHECKSUMS).write_bytes(content)


def test_without_reflinks_a_generation_is_read_whole(saved: Path, tmp_path: Path) -> None:
    newer = tmp_path / "gen-2"
    newer.mkdir()
    for name in ("memory", "disk"):
        clone_file(saved / name, newer / name)
    assert compute_from(newer, saved) == compute(saved, None, Reads())


def compute_from(newer: Path, older: Path, reads: Reads | None = None) -> Sums:
    origin, sums = origin_of(older), read_sums(older)
    assert origin is not None
    assert sums is not None
    try:
        return compute(newer, (origin, sums), reads or Reads())
    finally:
        origin.close()


@pytest.fixture
def reflinks(tmp_path: Path) -> Iterator[Path]:
    """A small XFS with reflinks."""
    image, place = tmp_path / "xfs", tmp_path / "mounted"
    with image.open("wb") as file:
        file.truncate(400 << 20)
    place.mkdir()
    subprocess.run(["mkfs.xfs", "-q", "-m", "reflink=1", image], check=True)
    subprocess.run(["mount", "-o", "loop", image, place], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", place], check=True)


@pytest.mark.real
def test_with_reflinks_only_what_was_written_is_read_and_the_sums_are_the_same(reflinks: Path) -> None:
    older = summed(snapshot(reflinks / "gen-1", memory={0: os.urandom(SIZE)}, disk={0: os.urandom(30 * BLOCK_BYTES)}))
    newer = reflinks / "gen-2"
    newer.mkdir()
    for name in ("memory", "disk"):
        assert clone_file(older / name, newer / name)
    flip(newer / "memory", 7 * BLOCK_BYTES + 5)
    flip(newer / "memory", 12 * BLOCK_BYTES)
    with (newer / "disk").open("r+b") as file:
        file.seek(38 * BLOCK_BYTES)
        file.write(b"new")
        os.fsync(file.fileno())
    reads = Reads()
    found = compute_from(newer, older, reads)
    assert found == compute(newer, None, Reads())
    # Two changed blocks, the one with new data, and the last one, which is never whole.
    assert reads.bytes <= 5 * BLOCK_BYTES


@pytest.mark.real
def test_what_was_damaged_before_it_was_cloned_is_found_after_it(reflinks: Path) -> None:
    older = summed(snapshot(reflinks / "gen-1", memory={0: os.urandom(SIZE)}))
    with (older / "memory").open("r+b") as file:  # as a disk that rots: nobody wrote through the file system
        at = 3 * BLOCK_BYTES
        file.seek(at)
        file.write(b"rotten")
        os.fsync(file.fileno())
    newer = reflinks / "gen-2"
    newer.mkdir()
    for name in ("memory", "disk"):
        clone_file(older / name, newer / name)
    write_sums(newer, compute_from(newer, older))
    with pytest.raises(SnapshotDamaged, match=f"at byte {at}"):
        check(newer)
