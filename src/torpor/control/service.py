"""The whole of `control`: the image half and the microVM half, started, run and stopped together."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import asdict
from datetime import timedelta

from torpor.config import Config
from torpor.control.audit import Audit
from torpor.control.catalogue import Catalogue
from torpor.control.forwarding import Forwarding
from torpor.control.images.build_log import Artifacts
from torpor.control.lifecycle import Lifecycle
from torpor.control.logs import Logs
from torpor.control.microvm.neighbours import Neighbours
from torpor.control.moving import Moving
from torpor.control.roles import Roles
from torpor.control.same_engine import check_engine
from torpor.control.settings import MicrovmSettings
from torpor.control.work import lasting
from torpor.folders import AUDIT, LOGS
from torpor.host.base import Host
from torpor.model.clock import Clock, VirtualClock
from torpor.model.forwarding import Destination
from torpor.model.ids import BuildId, MicrovmId
from torpor.model.seams import Seams
from torpor.model.usage import Prices
from torpor.store.backlog import Backlog
from torpor.store.database import Database


class Control:
    """One service on one machine and one database; it is the only process that changes either."""

    def __init__(self, config: Config, database: Database, host: Host, clock: Clock, artifacts: Artifacts,
                 seams: Seams | None = None, forward_to: Destination | None = None) -> None:
        seams = seams or Seams()
        self._database = database
        self._clock = clock
        self._is_running = False
        self._stopping = asyncio.Event()
        self._stopped = asyncio.Event()
        self.host = host
        backlog = Backlog() if forward_to is not None else None
        self.logs = Logs(config.data_dir / LOGS, clock, config.logs, backlog)
        self.forwarding = Forwarding(self.logs, backlog, database, clock, forward_to) if (
            forward_to is not None and backlog is not None) else None
        self.audit = Audit(config.data_dir / AUDIT, clock, config.audit)
        self._catalogue = catalogue = Catalogue(config, database, host, clock, artifacts, self.logs, seams)
        self.accounts = catalogue.accounts
        self.buckets = catalogue.buckets
        self.images = catalogue.images
        self.managed = catalogue.managed
        self.tags = catalogue.tags
        self.connectors = catalogue.connectors
        self.limits = catalogue.limits
        self._lifecycle = Lifecycle(
            MicrovmSettings(
                domain=config.domain, endpoint_port=config.endpoint_port,
                suspend_hook_failure=config.suspend_hook_failure,
                # A clock that is moved by hours would stop at every look.
                look_every=timedelta(seconds=60 if isinstance(clock, VirtualClock) else 5),
            ),
            database, host, clock, self.logs,
            Neighbours(
                catalogue.images, catalogue.connectors, catalogue.limits.admit_memory, catalogue.accounts.authorize,
                lambda: catalogue.cursors,
            ),
            seams.boundary,
        )
        self.microvms = self._lifecycle.microvms
        self.tokens = self._lifecycle.tokens
        self.gate = self._lifecycle.gate
        self.sessions = self._lifecycle.sessions
        self.wakefulness = self._lifecycle.wakefulness
        self.metering = self._lifecycle.metering
        self.prices = Prices(**asdict(config.prices))
        self.leaks = self._lifecycle.leaks
        self.moving = Moving(database, host, self._lifecycle.fleet, clock, self.leaks, self.limits)
        self.limits.memory_of_microvms = self.microvms.memory_in_use
        self.roles = Roles(self.accounts, config.credentials, clock, lambda owner: (
            self.microvms.place_of(MicrovmId(owner)) or catalogue.builds.place_of(BuildId(owner))))
        if isinstance(clock, VirtualClock):
            clock.busy_while(lambda: not database.is_idle)

    def count_requests_by(self, open_requests: Callable[[MicrovmId], int]) -> None:
        """Let suspends wait for the requests that the edge has let through and that have not ended."""
        self._lifecycle.fleet.open_requests = open_requests

    async def start(self) -> None:
        """Make the tables, take the machine into use, and take up what an earlier process left.

        Raises:
            FormatTooNew: a later release wrote the database.
            SetupMissing: its microVMs live with another engine.
        """
        await self._database.create_tables()
        await check_engine(self._database, self.host.engine)
        if self.forwarding is not None:
            await self.forwarding.start()
        await self.host.start()
        await self._catalogue.start()
        await self._lifecycle.start()

    async def run(self) -> None:
        """Work until `stop`. Being cancelled instead is like a crash: the next start takes up what was under way."""
        self._is_running = True
        try:
            async with asyncio.TaskGroup() as tasks:
                halves = [
                    tasks.create_task(self._catalogue.run(), name="catalogue"),
                    tasks.create_task(self._lifecycle.run(), name="lifecycle"),
                    tasks.create_task(lasting(self._clock, "logs", self.logs.run), name="logs"),
                    tasks.create_task(lasting(self._clock, "audit", self.audit.run), name="audit"),
                ]
                if self.forwarding is not None:
                    halves.append(tasks.create_task(lasting(self._clock, "forwarding", self.forwarding.run),
                                                    name="forwarding"))
                await self._stopping.wait()
                for half in halves:
                    half.cancel()
        finally:
            self._stopped.set()

    async def stop(self, suspend: bool) -> None:
        """End `run`, with `suspend` once every microVM that can be is suspended; the others live on.

        The database stays open: it belongs to whoever made it.
        """
        if suspend:
            await self._lifecycle.park()
        if self.forwarding is not None:
            await self.forwarding.finish()
        self._stopping.set()
        if self._is_running:
            await self._stopped.wait()
        await self.host.stop()
