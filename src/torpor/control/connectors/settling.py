"""Moves connectors on: PENDING to ACTIVE or FAILED, an update to its end, DELETING to gone.

What is under way is in the connector's own record, so a new process goes on where the old one was.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Final

from sqlalchemy import Connection

from torpor.config import NetworkSettings
from torpor.control import idempotency
from torpor.control.connectors.rules import verdict
from torpor.model.clock import Clock
from torpor.model.connector import Connector, ConnectorState, UpdateStatus
from torpor.model.errors import StoreUnavailable
from torpor.model.seams import Seams
from torpor.store import Database, connectors

log: Final = logging.getLogger(__name__)

REMEMBER_DELETED: Final = timedelta(days=7)
"""How long a repeated Delete of a connector still finds what it deleted."""
OPERATIONS: Final = ("CreateNetworkConnector", "UpdateNetworkConnector")


class Settling:
    def __init__(self, database: Database, settings: NetworkSettings, clock: Clock, seams: Seams) -> None:
        self._database = database
        self._settings = settings
        self._clock = clock
        self._seams = seams
        self._changed = asyncio.Event()

    def wake(self) -> None:
        """Something is under way that was not before."""
        self._changed.set()

    async def run(self) -> None:
        """For ever. A store that fails is tried again."""
        while True:
            self._changed.clear()
            try:
                wait = await self.settle()
            except StoreUnavailable as error:
                log.warning("connectors are not settled: %s", error)
                wait = error.delay
            await self._pause(wait)

    async def settle(self) -> timedelta | None:
        """Move on what is due.

        Returns:
            How long until the next is due; None when nothing is under way.
        """
        waits: list[timedelta] = []
        for connector in await self._database.read(connectors.unsettled):
            left = connector.modified_at + self._settings.connector_delay - self._clock.now()
            if left > timedelta(0):
                waits.append(left)
                continue
            with self._seams.around("connector", "settle"):
                await self._database.write(partial(self._move, connector_id=connector.id))
        return min(waits, default=None)

    async def _pause(self, wait: timedelta | None) -> None:
        waiting: set[asyncio.Task[Any]] = {asyncio.create_task(self._changed.wait())}
        if wait is not None:
            waiting.add(asyncio.create_task(_sleep(self._clock, wait)))
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)

    def _move(self, connection: Connection, connector_id: str) -> None:
        now = self._clock.now()
        # Read again: the caller's transaction and this one are not the same.
        for connector in connectors.unsettled(connection):
            if connector.id != connector_id:
                continue
            if connector.state is ConnectorState.DELETING:
                connectors.remove(connection, connector, now, now - REMEMBER_DELETED)
                idempotency.forget(
                    connection, connector.account, connector.region, OPERATIONS, f"{connector.arn}#"
                )
            elif connector.state is ConnectorState.PENDING:
                self._created(connection, connector, now)
            else:
                self._updated(connection, connector, now)

    def _created(self, connection: Connection, connector: Connector, now: datetime) -> None:
        wrong = verdict(connector.current.configuration, self._settings)
        state = ConnectorState.FAILED if wrong else ConnectorState.ACTIVE
        code, reason = wrong or (None, "Initial creation")
        connectors.save(
            connection,
            replace(connector, state=state, state_reason=reason, state_reason_code=code, modified_at=now),
        )
        current = replace(
            connector.current, state=state, state_reason=reason, state_reason_code=code, modified_at=now
        )
        connectors.put_version(connection, connector.id, current)

    def _updated(self, connection: Connection, connector: Connector, now: datetime) -> None:
        number = connectors.highest_version(connection, connector.id)
        version = connectors.find_version(connection, connector.id, number)
        if version is None or version.state is not ConnectorState.PENDING:
            raise LookupError(f"the update of connector {connector.id} has lost its version")
        wrong = verdict(version.configuration, self._settings)
        code, reason = wrong or (None, None)
        state = ConnectorState.FAILED if wrong else ConnectorState.ACTIVE
        settled = replace(version, state=state, state_reason=reason, state_reason_code=code, modified_at=now)
        connectors.put_version(connection, connector.id, settled)
        connectors.save(
            connection,
            replace(
                connector,
                last_update_status=UpdateStatus.FAILED if wrong else UpdateStatus.SUCCESSFUL,
                last_update_reason=reason,
                last_update_reason_code=code,
                latest_version=connector.latest_version if wrong else number,
                modified_at=now,
            ),
        )


async def _sleep(clock: Clock, wait: timedelta) -> None:
    await clock.sleep(wait.total_seconds())
