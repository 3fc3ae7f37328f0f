"""`doctor` and `gc` while no service runs: the records are read from the database, the machine is looked at directly.

VMs that a service left running, and that the next one will take over, are no leaks. Whoever calls this holds the data
directory, so that no service starts meanwhile.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

from sqlalchemy import Connection
from sqlalchemy.engine import make_url

from torpor.config import Config
from torpor.control.leaks import ACTOR, Collected, Leak, leak_of, missing_parts
from torpor.control.reasons import COLLECTED
from torpor.host.holding import Holding, unused
from torpor.host.inventory.estate import Estate, estate_of
from torpor.host.inventory.survey import remove, saved, take_stock, used_by_living
from torpor.host.setup.volume import is_volume_ready
from torpor.model.clock import SystemClock
from torpor.model.errors import NotRemoved, Permanent
from torpor.model.ids import MicrovmId
from torpor.model.microvm import MicrovmState
from torpor.store import Database, journal, microvms, timeline
from torpor.store.known import Known, known
from torpor.store.migrations import format_of


class CannotTell(Permanent):
    """What is a leak cannot be told here; `remedy` says what would help."""

    def __init__(self, message: str, remedy: str) -> None:
        super().__init__(message)
        self.remedy = remedy


async def find(config: Config) -> list[Leak]:
    """Raises CannotTell."""
    holdings, records = await _look(config)
    return [*(leak_of(each) for each in holdings), *records]


async def collect(config: Config) -> list[Collected]:
    """Remove what can be removed, and say of each what came of it. Raises CannotTell."""
    holdings, records = await _look(config)
    estate = estate_of(config)
    done = [await asyncio.to_thread(_remove, estate, each) for each in holdings]
    endable = [each for each in records if each.is_removable]
    async with _database(config) as database:
        for leak in endable:
            await database.write(partial(_end, microvm_id=MicrovmId(leak.name)))
    done += [Collected(each, True) for each in endable]
    return done + [Collected(each, False, each.detail) for each in records if not each.is_removable]


async def _look(config: Config) -> tuple[list[Holding], list[Leak]]:
    estate = estate_of(config)
    holdings = await asyncio.to_thread(take_stock, estate)
    if not _has_database(config):
        if holdings:
            raise CannotTell(f"there is no database {make_url(config.database_url).database}, so nothing here is known",
                             "Restore it from a backup, or name the right data directory with --data-dir.")  # fmt: skip
        return [], []
    if estate.volume_image.exists() and not await asyncio.to_thread(is_volume_ready, config):
        raise CannotTell(f"the data volume {estate.volume_image} is not mounted", "Run `torpor setup`.")
    async with _database(config) as database:
        now = await database.read(_known)
    used = await asyncio.to_thread(used_by_living, estate, now.keys)
    found = await asyncio.to_thread(saved, estate)
    return unused(holdings, now.keys | used | {"command"}), missing_parts(now, found, holdings)


def _known(connection: Connection) -> Known:
    return known(connection) if format_of(connection) else Known({}, {}, frozenset())


def _has_database(config: Config) -> bool:
    url = make_url(config.database_url)
    return config.database is not None or (config.data_dir / (url.database or "")).exists()


def _remove(estate: Estate, holding: Holding) -> Collected:
    try:
        remove(estate, holding)
    except NotRemoved as error:
        return Collected(leak_of(holding), False, str(error))
    return Collected(leak_of(holding), True)


def _end(connection: Connection, microvm_id: MicrovmId) -> None:
    now = SystemClock().now()
    microvms.change(connection, microvm_id, {"state": MicrovmState.TERMINATED, "state_reason": COLLECTED,
                                             "terminated_at": now})  # fmt: skip
    for entry in journal.unfinished(connection):
        if entry.subject == microvm_id:
            journal.delete(connection, entry.entry_id)
    timeline.add(connection, microvm_id, now, "terminate", ACTOR)


@asynccontextmanager
async def _database(config: Config) -> AsyncIterator[Database]:
    database = Database(config.database_url)
    try:
        yield database
    finally:
        await database.close()
