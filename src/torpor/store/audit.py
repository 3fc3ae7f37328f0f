"""Who did what, append-only: JSON lines in files of a day each, cut when they grow large.

    <root>/2026-01-31.0000.jsonl

Files are readable for their owner alone. Nothing in them is ever changed; whole files go when they are old.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final

FILE_BYTES: Final = 64 * 1024 * 1024
_BLOCK: Final = 256 * 1024


@dataclass(frozen=True, slots=True)
class Place:
    """Where a record is; records before it are older."""

    file: str
    offset: int


class AuditFiles:
    """Blocking; one thread at a time may write."""

    def __init__(self, root: Path, *, file_bytes: int = FILE_BYTES) -> None:
        self._root = root
        self._file_bytes = file_bytes

    def append(self, day: str, records: Sequence[bytes]) -> None:
        """Add encoded records. Not synced: a crash of the machine may take the last ones."""
        self._root.mkdir(parents=True, exist_ok=True, mode=0o700)
        todays = sorted(self._root.glob(f"{day}.*.jsonl"))
        number = int(todays[-1].name.split(".")[1]) if todays else 0
        if todays and todays[-1].stat().st_size >= self._file_bytes:
            number += 1
        path = self._root / f"{day}.{number:04d}.jsonl"
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            if _is_torn(path):  # the machine went down in the middle of a record
                os.write(descriptor, b"\n")
            data = memoryview(b"".join(record + b"\n" for record in records))
            while data:
                data = data[os.write(descriptor, data):]
        finally:
            os.close(descriptor)

    def newest_first(self, before: Place | None = None) -> Iterator[tuple[Place, dict[str, Any]]]:
        """Every record, or those older than a place."""
        for path in sorted(self._root.glob("*.jsonl"), reverse=True) if self._root.is_dir() else []:
            if before is not None and path.name > before.file:
                continue
            end = before.offset if before is not None and path.name == before.file else None
            yield from _backwards(path, end)

    def sweep(self, now: datetime, keep: timedelta, max_bytes: int) -> int:
        """Drop files of days that are over since `keep`, then the oldest until there is room; the newest stays."""
        files = sorted(self._root.glob("*.jsonl")) if self._root.is_dir() else []
        total = sum(path.stat().st_size for path in files)
        oldest = (now - keep).strftime("%Y-%m-%d")
        dropped = 0
        for path in files[:-1]:
            if path.name < oldest or total > max_bytes:
                total -= path.stat().st_size
                path.unlink()
                dropped += 1
        return dropped


def _is_torn(path: Path) -> bool:
    with path.open("rb") as file:
        if not file.seek(0, os.SEEK_END):
            return False
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"


def _backwards(path: Path, end: int | None) -> Iterator[tuple[Place, dict[str, Any]]]:
    try:
        with path.open("rb") as file:
            position = file.seek(0, os.SEEK_END) if end is None else end
            rest = b""
            while position > 0:
                size = min(_BLOCK, position)
                position -= size
                file.seek(position)
                first, *lines = (file.read(size) + rest).split(b"\n")
                at = position + len(first) + 1 + sum(len(line) + 1 for line in lines[:-1])
                for number in range(len(lines) - 1, -1, -1):
                    line = lines[number]
                    if (record := _record(line)) is not None:
                        yield Place(path.name, at), record
                    at -= len(lines[number - 1]) + 1 if number else 0
                rest = first
            if (record := _record(rest)) is not None:
                yield Place(path.name, 0), record
    except FileNotFoundError:
        return  # dropped for its age, just now


def _record(line: bytes) -> dict[str, Any] | None:
    """None for an empty or half-written line."""
    try:
        record = json.loads(line) if line else None
    except ValueError:
        return None
    return record if isinstance(record, dict) else None
