"""What applications and builds write, kept on this machine, read by a cursor, followed as it grows."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from torpor.config import LogSettings
from torpor.model.clock import Clock
from torpor.model.logs import GroupFacts, LogLine, StreamFacts
from torpor.store.backlog import Backlog
from torpor.store.logs import LogFiles, Span

PAGE: Final = 1000
SWEEP_EVERY: Final = timedelta(minutes=10)
SWEPT_AFTER: Final = 0.05
"""Of the bytes that all lines may have: how much may be written before what is too much is looked for."""

log = logging.getLogger(__name__)


class Logs:
    """Groups of streams of lines, named as CloudWatch names them (spec 9.1)."""

    def __init__(self, root: Path, clock: Clock, settings: LogSettings | None = None,
                 backlog: Backlog | None = None) -> None:
        self._files = LogFiles(root, backlog=backlog)
        self._clock = clock
        self._settings = settings or LogSettings()
        self._writing = asyncio.Lock()
        self._grown = asyncio.Event()
        self._is_much = asyncio.Event()
        self.on_growth: Callable[[], None] | None = None
        """Called when there are new lines."""

    def now(self) -> datetime:
        """By the clock that lines and their retention go by."""
        return self._clock.now()

    async def run(self) -> None:
        """Drop what is old or too much, for ever."""
        while True:
            await self.sweep()
            pause = asyncio.ensure_future(self._clock.sleep(SWEEP_EVERY.total_seconds()))
            much = asyncio.ensure_future(self._is_much.wait())
            try:
                await asyncio.wait({pause, much}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                pause.cancel()
                much.cancel()
            self._is_much.clear()

    async def sweep(self) -> None:
        """Once."""
        keep = timedelta(days=self._settings.retention_days)
        try:
            async with self._writing:
                dropped = await asyncio.to_thread(self._files.sweep, self._clock.now(), keep, self._settings.max_bytes)
        except OSError as error:
            log.warning("old log lines could not be dropped: %s", error)
            return
        if dropped:
            log.info("dropped %d pieces of old log lines", dropped)

    async def load(self) -> int:
        """Look at what an earlier process wrote; returns the last sequence. Later calls cost nothing."""
        async with self._writing:
            return await asyncio.to_thread(self._files.load)

    async def append(self, group: str, stream: str, lines: Sequence[tuple[datetime, str, str]]) -> None:
        """Add lines of (time, source, text), in order."""
        async with self._writing:
            await asyncio.to_thread(self._files.append, group, stream, lines)
        grown, self._grown = self._grown, asyncio.Event()
        grown.set()
        if self.on_growth is not None:
            self.on_growth()
        if self._files.written > self._settings.max_bytes * SWEPT_AFTER:
            self._is_much.set()

    async def read(self, group: str, stream: str | None = None, after_sequence: int = 0,
                   limit: int = PAGE) -> list[LogLine]:
        """Lines behind a sequence, of one stream or of all streams of the group; empty when there are none."""
        return await asyncio.to_thread(self._files.read, group, stream, after_sequence, limit)

    async def read_span(self, group: str, streams: Sequence[str], span: Span, limit: int,
                        max_bytes: int) -> list[LogLine]:
        """The first lines of a span, of several streams in the order they were written."""
        return await asyncio.to_thread(self._files.read_span, group, streams, span, limit, max_bytes)

    async def read_back(self, group: str, stream: str, before: int | None, span: Span, limit: int,
                        max_bytes: int) -> list[LogLine]:
        """The last lines of a span of one stream whose sequence is below `before`, in order."""
        return await asyncio.to_thread(self._files.read_back, group, stream, before, span, limit, max_bytes)

    async def wait(self, group: str, stream: str | None = None, after_sequence: int = 0, limit: int = PAGE,
                   seconds: float = 20.0) -> list[LogLine]:
        """`read`, but wait up to `seconds` for the first line."""
        enough = asyncio.ensure_future(self._clock.sleep(seconds))
        try:
            while True:
                grown = asyncio.ensure_future(self._grown.wait())
                try:
                    found = await self.read(group, stream, after_sequence, limit)
                    if found or enough.done():
                        return found
                    await asyncio.wait({grown, enough}, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    grown.cancel()
        finally:
            enough.cancel()

    async def follow(self, group: str, stream: str | None = None, after_sequence: int = 0) -> AsyncIterator[LogLine]:
        """Every line behind a sequence, for ever."""
        while True:
            for line in await self.wait(group, stream, after_sequence):
                after_sequence = line.sequence
                yield line

    async def groups(self) -> list[str]:
        return await asyncio.to_thread(self._files.groups)

    async def streams(self, group: str) -> list[str]:
        return await asyncio.to_thread(self._files.streams, group)

    async def has_group(self, group: str) -> bool:
        return await asyncio.to_thread(self._files.has_group, group)

    async def group_facts(self, group: str) -> GroupFacts | None:
        """None when there is no such group."""
        return await asyncio.to_thread(self._files.group_facts, group)

    async def retention_days(self, group: str) -> int | None:
        """Of a group that has one of its own; None is that of all groups."""
        return await asyncio.to_thread(self._files.retention_days, group)

    async def stream_facts(self, group: str, stream: str) -> StreamFacts | None:
        """None when there is no such stream."""
        with contextlib.suppress(FileNotFoundError):  # dropped just now
            return await asyncio.to_thread(self._files.stream_facts, group, stream)
        return None

    async def create_group(self, group: str) -> bool:
        """False when there is one."""
        async with self._writing:
            return await asyncio.to_thread(self._files.create_group, group, self._clock.now())

    async def create_stream(self, group: str, stream: str) -> bool:
        """False when there is one; the group exists."""
        async with self._writing:
            return await asyncio.to_thread(self._files.create_stream, group, stream)

    async def set_retention(self, group: str, days: int | None) -> None:
        """The group exists; None is that of all groups."""
        async with self._writing:
            await asyncio.to_thread(self._files.set_retention, group, days)

    async def delete(self, group: str, stream: str | None = None) -> None:
        async with self._writing:
            await asyncio.to_thread(self._files.delete, group, stream)
