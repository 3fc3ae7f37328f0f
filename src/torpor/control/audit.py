"""Keeps a record of every call of the API, refused ones too, shaped as CloudTrail's (spec 9.2)."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final

import orjson

from torpor.config import AuditSettings
from torpor.model.clock import Clock
from torpor.store.audit import AuditFiles, Place

BACKLOG: Final = 20_000
"""Records that wait for the disk; then calls wait too, since none may go unrecorded."""
GATHER: Final = 0.02
"""Seconds that a record waits for others: a thread and an open file for each would cost a tenth of a call."""
SWEEP_EVERY: Final = 3600.0
log = logging.getLogger(__name__)

Record = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which records; None is any."""

    account: str
    since: datetime | None = None
    name: str | None = None
    microvm_id: str | None = None
    failed: bool = False

    def matches(self, record: Mapping[str, Any]) -> bool:
        named = (record.get("requestParameters") or {}).get("microvmIdentifier"), \
            (record.get("responseElements") or {}).get("microvmId")
        return (
            record.get("recipientAccountId") == self.account
            and (self.name is None or record.get("eventName") == self.name)
            and (self.microvm_id is None or self.microvm_id in named)
            and (not self.failed or "errorCode" in record)
        )


class Audit:
    """Records are written by `run` in the order they were made; a call does not wait for the disk."""

    def __init__(self, root: Path, clock: Clock, settings: AuditSettings) -> None:
        self._files = AuditFiles(root)
        self._clock = clock
        self._settings = settings
        self._waiting: asyncio.Queue[Callable[[], Record]] = asyncio.Queue(BACKLOG)

    def now(self) -> datetime:
        return self._clock.now()

    async def keep(self, make: Callable[[], Record]) -> None:
        """Add what `make` gives, in a thread; returns at once unless the disk is far behind."""
        await self._waiting.put(make)

    async def run(self) -> None:
        """Write for ever; what waits when this is cancelled is written before it ends."""
        swept = float("-inf")
        try:
            while True:
                batch = [await self._waiting.get()]
                try:
                    await asyncio.sleep(GATHER)
                finally:
                    await asyncio.shield(asyncio.ensure_future(self._write(batch)))
                if self._clock.monotonic() - swept > SWEEP_EVERY:
                    swept = self._clock.monotonic()
                    await self._sweep()
        finally:
            if not self._waiting.empty():
                await asyncio.shield(asyncio.ensure_future(self._write([])))

    async def lookup(self, wanted: Wanted, before: Place | None, limit: int) -> tuple[list[Record], Place | None]:
        """The newest records that are wanted, newest first, and where to go on; None when there are no more."""
        return await asyncio.to_thread(self._lookup, wanted, before, limit)

    def _lookup(self, wanted: Wanted, before: Place | None, limit: int) -> tuple[list[Record], Place | None]:
        found: list[Record] = []
        since = wanted.since.strftime("%Y-%m-%dT%H:%M:%SZ") if wanted.since is not None else ""
        for place, record in self._files.newest_first(before):
            if str(record.get("eventTime")) < since:
                break
            if wanted.matches(record):
                found.append(record)
                if len(found) == limit:
                    return found, place
        return found, None

    async def _write(self, batch: list[Callable[[], Record]]) -> None:
        while not self._waiting.empty():
            batch.append(self._waiting.get_nowait())
        try:
            await asyncio.to_thread(self._append, batch)
        except OSError as error:
            log.error("%d audit records are lost: %s", len(batch), error)

    def _append(self, batch: list[Callable[[], Record]]) -> None:
        by_day: dict[str, list[bytes]] = {}
        for make in batch:
            record = make()
            by_day.setdefault(str(record["eventTime"])[:10], []).append(orjson.dumps(record, default=str))
        for day, records in by_day.items():
            self._files.append(day, records)

    async def _sweep(self) -> None:
        keep = timedelta(days=self._settings.retention_days)
        try:
            await asyncio.to_thread(self._files.sweep, self._clock.now(), keep, self._settings.max_bytes)
        except OSError as error:
            log.warning("old audit records could not be dropped: %s", error)
