"""Private pages, found in this very process, and ranges."""

from __future__ import annotations

import errno
import itertools
import mmap
import os
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torpor.vmm.dirty import PAGE_BYTES, Range, mappings, merged, private_pages, read_out, scanned

PAGES = 4096

ranges = st.lists(
    st.tuples(st.integers(0, 1000), st.integers(1, 50)).map(lambda pair: Range(pair[0], pair[0] + pair[1])), max_size=30
).map(sorted)


def points(found: list[Range]) -> set[int]:
    return {point for range_ in found for point in range(range_.start, range_.end)}


@given(ranges, st.integers(0, 20))
def test_merging_loses_nothing_and_adds_only_small_gaps(given_: list[Range], gap: int) -> None:
    found = list(merged(given_, gap))
    wanted = points(given_)
    assert wanted <= points(found)
    for added in points(found) - wanted:
        below = max(point for point in wanted if point < added)
        above = min(point for point in wanted if point > added)
        assert above - below - 1 <= gap


@given(ranges, st.integers(0, 20))
def test_merged_ranges_are_sorted_and_further_apart_than_the_gap(given_: list[Range], gap: int) -> None:
    found = list(merged(given_, gap))
    assert all(later.start - earlier.end > gap for earlier, later in itertools.pairwise(found))


@given(ranges)
def test_merging_twice_changes_nothing(given_: list[Range]) -> None:
    once = list(merged(given_, 5))
    assert list(merged(once, 5)) == once


@dataclass
class Mapped:
    """A private mapping of a file, of which some pages were written and some only read."""

    range: Range
    written: set[int]


@pytest.fixture
def mapped(tmp_path: Path) -> Iterator[Mapped]:
    path = tmp_path / "memory"
    path.write_bytes(os.urandom(PAGE_BYTES) * PAGES)
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE) as memory:
        choose = random.Random(7)
        written = set(choose.sample(range(PAGES), 700)) | {0, PAGES - 1}
        for page in choose.sample(range(PAGES), 1500):
            _ = memory[page * PAGE_BYTES]
        for page in written:
            memory[page * PAGE_BYTES + 5] = 1
        (found,) = [mapping for mapping in mappings(os.getpid()) if mapping.path == str(path)]
        assert found.inode == path.stat().st_ino
        assert found.range.size == PAGES * PAGE_BYTES
        yield Mapped(found.range, written)


def pages_of(found: list[Range], start: int) -> set[int]:
    return {(address - start) // PAGE_BYTES for r in found for address in range(r.start, r.end, PAGE_BYTES)}


def test_private_pages_are_exactly_those_that_were_written(mapped: Mapped) -> None:
    assert pages_of(private_pages(os.getpid(), mapped.range), mapped.range.start) == mapped.written


def test_reading_the_pagemap_finds_the_written_pages(mapped: Mapped) -> None:
    fd = os.open("/proc/self/pagemap", os.O_RDONLY)
    try:
        assert pages_of(list(read_out(fd, mapped.range)), mapped.range.start) == mapped.written
    finally:
        os.close(fd)


def test_scanning_the_pagemap_finds_the_written_pages(mapped: Mapped) -> None:
    fd = os.open("/proc/self/pagemap", os.O_RDONLY)
    try:
        found = list(scanned(fd, mapped.range))
    except OSError as error:
        if error.errno == errno.ENOTTY:
            pytest.skip("this kernel has no PAGEMAP_SCAN")
        raise
    finally:
        os.close(fd)
    assert pages_of(found, mapped.range.start) == mapped.written


def test_only_the_asked_part_is_looked_at(mapped: Mapped) -> None:
    part = Range(mapped.range.start + 100 * PAGE_BYTES, mapped.range.start + 200 * PAGE_BYTES)
    found = pages_of(private_pages(os.getpid(), part), mapped.range.start)
    assert found == {page for page in mapped.written if 100 <= page < 200}
