"""Log streams on disk: append-only segments, the oldest dropped when a stream is full.

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
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final
from urllib.parse import quote, unquote

from torpor.model.logs import LogLine
from torpor.store.columns import microseconds

SEGMENT_BYTES: Final = 1 << 20
SEGMENTS: Final = 16
"""Of one stream: it holds 16 MiB."""
LONGEST_LINE: Final = 256 * 1024
"""Characters, as one event of CloudWatch Logs may have bytes."""
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_LONGEST_NAME: Final = 240


@dataclass(slots=True)
class _Stream:
    directory: Path
    segment: Path | None
    size: int


class LogFiles:
    """Blocking; one thread at a time may write."""

    def __init__(self, root: Path, *, segment_bytes: int = SEGMENT_BYTES, segments: int = SEGMENTS) -> None:
        self._root = root
        self._segment_bytes = segment_bytes
        self._segments = segments
        self._last = 0
        self._streams: dict[tuple[str, str], _Stream] = {}

    def append(self, group: str, stream: str, lines: Sequence[tuple[datetime, str, str]]) -> int:
        """Add (time, source, text) in order; returns the last sequence."""
        found = self._stream(group, stream)
        encoded: list[bytes] = []
        first = 0
        for at, source, text in lines:
            at_us = microseconds(at)
            self._last = max(self._last + 1, at_us)
            first = first or self._last
            entry = [self._last, at_us, source, text[:LONGEST_LINE]]
            encoded.append(json.dumps(entry, separators=(",", ":")).encode() + b"\n")
        if encoded:
            self._write(found, first, b"".join(encoded))
        return self._last

    def read(self, group: str, stream: str | None, after: int, limit: int) -> list[LogLine]:
        """Up to `limit` lines behind a sequence, of one stream or of the whole group, in order."""
        streams = [stream] if stream is not None else self.streams(group)
        found: list[LogLine] = []
        for name in streams:
            found += self._read(self._root / _name(group) / _name(name), name, after, limit)
        return sorted(found, key=lambda line: line.sequence)[:limit]

    def groups(self) -> list[str]:
        return sorted(unquote(path.name) for path in _directories(self._root))

    def streams(self, group: str) -> list[str]:
        return sorted(unquote(path.name) for path in _directories(self._root / _name(group)))

    def delete(self, group: str, stream: str | None = None) -> None:
        """Delete a stream, or a group. Repeating it does nothing."""
        directory = self._root / _name(group)
        shutil.rmtree(directory if stream is None else directory / _name(stream), ignore_errors=True)
        for key in [key for key in self._streams if key[0] == group and stream in (None, key[1])]:
            del self._streams[key]

    def _stream(self, group: str, stream: str) -> _Stream:
        found = self._streams.get((group, stream))
        if found is None:
            directory = self._root / _name(group) / _name(stream)
            directory.mkdir(parents=True, exist_ok=True)
            segments = _segments(directory)
            found = _Stream(directory, segments[-1] if segments else None, 0)
            if found.segment is not None:
                _cut_torn_line(found.segment)
                found.size = found.segment.stat().st_size
                # The clock may have gone back since these lines were written.
                self._last = max(self._last, _first(found.segment), *(s for s, *_ in _entries(found.segment)))
            self._streams[group, stream] = found
        return found

    def _write(self, stream: _Stream, first: int, data: bytes) -> None:
        if stream.segment is None or stream.size >= self._segment_bytes:
            stream.segment, stream.size = stream.directory / f"{first:020d}.jsonl", 0
            for old in _segments(stream.directory)[: -(self._segments - 1) or None]:
                old.unlink(missing_ok=True)
        with stream.segment.open("ab") as file:
            file.write(data)
        stream.size += len(data)

    def _read(self, directory: Path, stream: str, after: int, limit: int) -> list[LogLine]:
        segments = _segments(directory)
        found: list[LogLine] = []
        for segment, following in zip(segments, [*segments, None][1:], strict=True):
            if following is not None and _first(following) <= after + 1:
                continue  # all of it is behind the cursor
            for sequence, at_us, source, text in _entries(segment):
                if sequence > after:
                    at = _EPOCH + timedelta(microseconds=at_us)
                    found.append(LogLine(sequence, at, stream, text, source))
                    if len(found) == limit:
                        return found
        return found


def _entries(segment: Path) -> Iterator[tuple[int, int, str, str]]:
    try:
        with segment.open("rb") as file:
            for line in file:
                if line.endswith(b"\n"):  # the last may be half-written
                    sequence, at_us, source, text = json.loads(line)
                    yield sequence, at_us, source, text
    except FileNotFoundError:
        return  # dropped for being the oldest, just now


def _cut_torn_line(segment: Path) -> None:
    data = segment.read_bytes()
    if data and not data.endswith(b"\n"):
        with segment.open("r+b") as file:
            file.truncate(data.rfind(b"\n") + 1)


def _segments(directory: Path) -> list[Path]:
    return sorted(directory.glob("*.jsonl")) if directory.is_dir() else []


def _directories(directory: Path) -> list[Path]:
    return [path for path in directory.iterdir() if path.is_dir()] if directory.is_dir() else []


def _first(segment: Path) -> int:
    return int(segment.stem)


def _name(name: str) -> str:
    """A directory's name for any text: `/`, `.` and everything unusual percent-encoded."""
    return quote(name, safe="").replace(".", "%2E")[:_LONGEST_NAME]
