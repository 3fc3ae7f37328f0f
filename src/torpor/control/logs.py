"""What applications and builds write, kept on this machine, read by a cursor, followed as it grows."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Final

from torpor.model.clock import Clock
from torpor.model.logs import LogLine
from torpor.store.logs import LogFiles

PAGE: Final = 1000


class Logs:
    """Groups of streams of lines, named as CloudWatch names them (spec 9.1)."""

    def __init__(self, root: Path, clock: Clock) -> None:
        self._files = LogFiles(root)
        self._clock = clock
        self._writing = asyncio.Lock()
        self._grown = asyncio.Event()

    async def append(self, group: str, stream: str, lines: Sequence[tuple[datetime, str, str]]) -> None:
        """Add lines of (time, source, text), in order."""
        async with self._writing:
            await asyncio.to_thread(self._files.append, group, stream, lines)
        grown, self._grown = self._grown, asyncio.Event()
        grown.set()

    async def read(self, group: str, stream: str | None = None, after_sequence: int = 0,
                   limit: int = PAGE) -> list[LogLine]:
        """Lines behind a sequence, of one stream or of all streams of the group; empty when there are none."""
        return await asyncio.to_thread(self._files.read, group, stream, after_sequence, limit)

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

    async def delete(self, group: str, stream: str | None = None) -> None:
        async with self._writing:
            await asyncio.to_thread(self._files.delete, group, stream)
