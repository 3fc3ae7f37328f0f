"""Log streams on disk: append-only segments, the oldest dropped when a stream is full, or all of them are.

    <root>/<group>/<stream>/<first sequence>.jsonl

One line of a segment is `[sequence, microseconds since 1970, source, text]`. A sequence is a time in microseconds,
pushed up where needed so that it always grows; so it orders the lines of all streams and survives a restart. Lines
are not fsynced: a crash of the machine may lose the last of them, and a half-written one is skipped.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from heapq import merge
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO, Final

from torpor.model.logs import GroupFacts, LogLine, StreamFacts
from torpor.model.moments import from_microseconds, microseconds
from torpor.store.backlog import Backlog
from torpor.store.log_names import directory_of, names_in, remember_name

SEGMENT_BYTES: Final = 1 << 20
SEGMENTS: Final = 16
"""Of one stream: it holds 16 MiB."""
LONGEST_LINE: Final = 256 * 1024
"""Characters, as one event of CloudWatch Logs may have bytes."""
SPARED: Final = 0.9
"""Of the bytes that all streams may have together: how much of them stays when they have more."""
_ABOUT: Final = "about.json"
_TAIL: Final = 64 * 1024
_NEAR: Final = 4096
"""Bytes that are rather read through than searched."""


@dataclass(slots=True)
class _Stream:
    directory: Path
    segment: Path | None
    size: int


@dataclass(frozen=True, slots=True)
class Span:
    """Which lines are wanted: `start` and `end` are their times in µs, `after` is a sequence."""

    after: int = 0
    start: int = 0
    end: int | None = None


class LogFiles:
    """Blocking; one thread at a time may write."""

    def __init__(self, root: Path, *, segment_bytes: int = SEGMENT_BYTES, segments: int = SEGMENTS,
                 backlog: Backlog | None = None) -> None:
        self._root = root
        self._segment_bytes = segment_bytes
        self._segments = segments
        self._backlog = backlog
        self._last = 0
        self._is_loaded = False
        self._streams: dict[tuple[str, str], _Stream] = {}
        self.written = 0
        """Bytes since the last sweep."""

    def load(self) -> int:
        """Look once at what an earlier process wrote, and tell the backlog; returns the last sequence."""
        if not self._is_loaded:
            for group in self.groups():
                for stream in self.streams(group):
                    segments = reversed(_segments(self._directory(group, stream)))
                    last = next((entry[0] for each in segments if (entry := _last(each))), 0)
                    # The clock may have gone back since, and no cursor may miss a line.
                    self._last = max(self._last, last)
                    if self._backlog is not None and last:
                        self._backlog.found((group, stream), last)
            if self._backlog is not None:
                self._backlog.all_found()
            self._is_loaded = True
        return self._last

    def append(self, group: str, stream: str, lines: Sequence[tuple[datetime, str, str]]) -> int:
        """Add (time, source, text) in order; returns the last sequence."""
        self.load()
        key, found = (group, stream), self._stream(group, stream)
        encoded: list[bytes] = []
        first, size = 0, 0
        for at, source, text in lines:
            at_us = microseconds(at)
            self._last = max(self._last + 1, at_us)
            first = first or self._last
            entry = [self._last, at_us, source, text[:LONGEST_LINE]]
            encoded.append(json.dumps(entry, separators=(",", ":")).encode() + b"\n")
            size += len(encoded[-1])
            if found.size + size >= self._segment_bytes:
                self._write(key, found, first, b"".join(encoded))
                encoded, first, size = [], 0, 0
        if encoded:
            self._write(key, found, first, b"".join(encoded))
        return self._last

    def read(self, group: str, stream: str | None, after: int, limit: int) -> list[LogLine]:
        """Up to `limit` lines behind a sequence, of one stream or of the whole group, in order."""
        return self.read_span(group, [stream] if stream is not None else self.streams(group), Span(after), limit)

    def read_span(self, group: str, streams: Sequence[str], span: Span, limit: int,
                  max_bytes: int | None = None) -> list[LogLine]:
        """The first lines of a span, of several streams in the order they were written."""
        found: list[LogLine] = []
        size = 0
        for line in merge(*(self._lines(group, name, span) for name in streams), key=lambda line: line.sequence):
            size += len(line.text)
            if len(found) == limit or (max_bytes is not None and found and size > max_bytes):
                break
            found.append(line)
        return found

    def read_back(self, group: str, stream: str, before: int | None, span: Span, limit: int,
                  max_bytes: int) -> list[LogLine]:
        """The last lines of a span of one stream whose sequence is below `before`, in order."""
        found: list[LogLine] = []
        size = 0
        for segment in reversed(_segments(self._directory(group, stream))):
            if before is not None and _first(segment) >= before:
                continue
            for line in reversed([line for line in _wanted(segment, stream, span)
                                  if before is None or line.sequence < before]):  # fmt: skip
                size += len(line.text)
                if len(found) == limit or (found and size > max_bytes):
                    return found[::-1]
                found.append(line)
        return found[::-1]

    def groups(self) -> list[str]:
        return names_in(self._root)

    def streams(self, group: str) -> list[str]:
        return names_in(directory_of(self._root, group))

    def has_group(self, group: str) -> bool:
        return directory_of(self._root, group).is_dir()

    def group_facts(self, group: str) -> GroupFacts | None:
        """None when there is no such group."""
        directory = directory_of(self._root, group)
        if not directory.is_dir():
            return None
        about = _about(directory)
        size = sum(path.stat().st_size for path in directory.rglob("*.jsonl"))
        created = about.get("created_us") or int(directory.stat().st_mtime * 1e6)
        return GroupFacts(group, from_microseconds(created), about.get("retention_days"), size)

    def retention_days(self, group: str) -> int | None:
        """Of a group that has one of its own; None is that of all groups."""
        days: int | None = _about(directory_of(self._root, group)).get("retention_days")
        return days

    def stream_facts(self, group: str, stream: str) -> StreamFacts | None:
        """None when there is no such stream."""
        directory = self._directory(group, stream)
        if not directory.is_dir():
            return None
        segments = _segments(directory)
        first = next(_entries(segments[0]), None) if segments else None
        last = _last(segments[-1]) if segments else None
        created = first[0] if first else int(directory.stat().st_mtime * 1e6)
        return StreamFacts(stream, from_microseconds(created),
                           first and from_microseconds(first[1]),
                           last and from_microseconds(last[1]),
                           last and from_microseconds(last[0]))  # fmt: skip

    def create_group(self, group: str, now: datetime) -> bool:
        """False when there is one."""
        directory = directory_of(self._root, group)
        if directory.is_dir():
            return False
        directory.mkdir(parents=True)
        remember_name(directory, group)
        _tell_about(directory, created_us=microseconds(now))
        return True

    def create_stream(self, group: str, stream: str) -> bool:
        """False when there is one; the group exists."""
        directory = self._directory(group, stream)
        if directory.is_dir():
            return False
        directory.mkdir()
        remember_name(directory, stream)
        return True

    def set_retention(self, group: str, days: int | None) -> None:
        """The group exists; None is that of all groups."""
        _tell_about(directory_of(self._root, group), retention_days=days)

    def delete(self, group: str, stream: str | None = None) -> None:
        """Delete a stream, or a group. Repeating it does nothing."""
        if self._backlog is not None:
            self._backlog.forget(group, self.streams(group) if stream is None else [stream])
        shutil.rmtree(directory_of(self._root, group) if stream is None else self._directory(group, stream),
                      ignore_errors=True)  # fmt: skip
        for key in [key for key in self._streams if key[0] == group and stream in (None, key[1])]:
            del self._streams[key]

    def sweep(self, now: datetime, keep: timedelta, max_bytes: int) -> int:
        """Drop segments that are older than their group keeps them, then the oldest of all until there is room.

        Returns:
            How many were dropped.
        """
        self.written = 0
        if self._backlog is not None:
            self.load()
        dropped, kept = 0, []
        for group in names_in(self._root):
            days = self.retention_days(group)
            oldest = microseconds(now - (timedelta(days=days) if days else keep))
            for stream in self.streams(group):
                segments = _segments(self._directory(group, stream))
                for segment, following in pairwise([*segments, None]):
                    assert segment is not None
                    if _is_older(segment, following, oldest):
                        dropped += self._drop(group, stream, segment)
                    else:
                        kept.append((_first(segment), segment.stat().st_size, group, stream, segment))
        total = sum(size for _, size, *_ in kept)
        if total > max_bytes:
            for _, size, group, stream, segment in sorted(kept):
                dropped += self._drop(group, stream, segment)
                total -= size
                if total <= max_bytes * SPARED:
                    break
        return dropped

    def _drop(self, group: str, stream: str, segment: Path) -> int:
        self._remove((group, stream), segment)
        directory = segment.parent
        if not _segments(directory):
            self.delete(group, stream)
        return 1

    def _remove(self, key: tuple[str, str], segment: Path) -> None:
        if self._backlog is not None:
            self._backlog.dropping(key, lambda: [entry[0] for entry in _entries(segment)])
        segment.unlink(missing_ok=True)

    def _directory(self, group: str, stream: str) -> Path:
        return directory_of(directory_of(self._root, group), stream)

    def _stream(self, group: str, stream: str) -> _Stream:
        found = self._streams.get((group, stream))
        if found is None:
            directory = self._directory(group, stream)
            directory.mkdir(parents=True, exist_ok=True)
            remember_name(directory.parent, group)
            remember_name(directory, stream)
            segments = _segments(directory)
            found = _Stream(directory, segments[-1] if segments else None, 0)
            if found.segment is not None:
                _cut_torn_line(found.segment)
                found.size = found.segment.stat().st_size
            self._streams[group, stream] = found
        return found

    def _write(self, key: tuple[str, str], stream: _Stream, first: int, data: bytes) -> None:
        if stream.segment is None or stream.size >= self._segment_bytes:
            stream.segment, stream.size = stream.directory / f"{first:020d}.jsonl", 0
            for old in _segments(stream.directory)[: -(self._segments - 1) or None]:
                self._remove(key, old)
        try:
            with stream.segment.open("ab") as file:
                file.write(data)
        except OSError:
            del self._streams[key]  # the next append cuts what was half written
            raise
        stream.size += len(data)
        self.written += len(data)
        if self._backlog is not None:
            self._backlog.written(key, first, self._last)

    def _lines(self, group: str, stream: str, span: Span) -> Iterator[LogLine]:
        # A sequence is never below its line's time, so what ends before the start holds nothing that is wanted.
        behind = max(span.after + 1, span.start)
        for segment, following in pairwise([*_segments(self._directory(group, stream)), None]):
            assert segment is not None
            if following is not None and _first(following) <= behind:
                continue
            # Of a group with thousands of streams most have ended long ago: their files are not kept open.
            if following is None and behind > 1 and ((last := _last(segment)) is None or last[0] < behind):
                continue
            yield from _wanted(segment, stream, span)


def _is_older(segment: Path, following: Path | None, than: int) -> bool:
    """Whether all its lines have sequences below `than`."""
    if _first(segment) >= than:
        return False
    return (following is not None and _first(following) <= than) or (_last(segment) or (0,))[0] < than


def _wanted(segment: Path, stream: str, span: Span) -> Iterator[LogLine]:
    for sequence, at_us, source, text in _entries(segment, max(span.after, span.start - 1)):
        if sequence > span.after and at_us >= span.start and (span.end is None or at_us < span.end):
            yield LogLine(sequence, from_microseconds(at_us), stream, text, source)


def _entries(segment: Path, after: int = 0) -> Iterator[tuple[int, int, str, str]]:
    """In order; many of those with a sequence not above `after` are passed over unread."""
    try:
        with segment.open("rb") as file:
            if after >= _first(segment):
                file.seek(_near(file, after))
            for line in file:
                if (entry := _entry(line)) is not None:
                    yield entry
    except FileNotFoundError:
        return  # dropped for being the oldest, just now


def _entry(line: bytes) -> tuple[int, int, str, str] | None:
    """None for the half of a line that a full disk or a crash leaves."""
    if not line.endswith(b"\n"):
        return None
    try:
        sequence, at_us, source, text = json.loads(line)
    except (ValueError, TypeError):
        return None
    return sequence, at_us, source, text


def _near(file: BinaryIO, after: int) -> int:
    """Where a line begins that is at most a little before the first one behind a sequence, by halving."""
    low, high = 0, file.seek(0, 2)
    while high - low > _NEAR:
        middle = (low + high) // 2
        file.seek(middle)
        begin = middle + len(file.readline())
        entry = _entry(file.readline()) if begin < high else None
        if entry is not None and entry[0] <= after:
            low = begin
        else:
            high = middle
    return low


def _last(segment: Path) -> tuple[int, int, str, str] | None:
    """The last whole entry; None when it has none, or has been dropped just now."""
    try:
        file = segment.open("rb")
    except FileNotFoundError:
        return None
    with file:
        size = file.seek(0, 2)
        for tail in (_TAIL, size):
            file.seek(max(0, size - tail))
            # The first may be the end of a longer line.
            whole = file.read().splitlines(keepends=True)[0 if tail >= size else 1:]
            if (entry := next(filter(None, map(_entry, reversed(whole))), None)) is not None:
                return entry
    return None


def _cut_torn_line(segment: Path) -> None:
    data = segment.read_bytes()
    if data and not data.endswith(b"\n"):
        with segment.open("r+b") as file:
            file.truncate(data.rfind(b"\n") + 1)


def _segments(directory: Path) -> list[Path]:
    return sorted(directory.glob("*.jsonl")) if directory.is_dir() else []


def _first(segment: Path) -> int:
    return int(segment.stem)


def _about(directory: Path) -> dict[str, Any]:
    try:
        document: dict[str, Any] = json.loads((directory / _ABOUT).read_text())
    except (OSError, ValueError):
        return {}
    return document


def _tell_about(directory: Path, **changes: Any) -> None:
    new = directory / f".{_ABOUT}.new"
    new.write_text(json.dumps(_about(directory) | changes))
    new.replace(directory / _ABOUT)
