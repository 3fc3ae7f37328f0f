"""The microVM half of `control`, wired: from RunMicrovm to TERMINATED, the gate, and what watches over them."""

from __future__ import annotations

import asyncio
import logging
from typing import Any, Final

from torpor.control.events import Events
from torpor.control.gate import Gate
from torpor.control.keeper import Keeper
from torpor.control.leaks import Leaks
from torpor.control.logs import Logs
from torpor.control.metering import Metering
from torpor.control.microvm.actions import Actions
from torpor.control.microvm.face import Microvms
from torpor.control.microvm.live import Fleet, Live
from torpor.control.microvm.machine import Machine
from torpor.control.microvm.neighbours import Neighbours
from torpor.control.reconcile import Reconcile
from torpor.control.sessions import Sessions
from torpor.control.settings import MicrovmSettings
from torpor.control.steps import Boundary, Runner
from torpor.control.tokens import Seal, Tokens
from torpor.control.wakefulness import Wakefulnesses
from torpor.control.work import Work, lasting
from torpor.host.base import Host
from torpor.model.clock import Clock
from torpor.model.egress import NO_EGRESS
from torpor.model.errors import TorporError
from torpor.model.microvm import MicrovmState
from torpor.store.database import Database

log: Final = logging.getLogger(__name__)
PARKED_AT_ONCE: Final = 2
"""More would only queue for the disk."""


class Lifecycle:
    """Everything about microVMs."""

    def __init__(self, settings: MicrovmSettings, database: Database, host: Host, clock: Clock, logs: Logs,
                 neighbours: Neighbours, boundary: Boundary | None = None) -> None:
        self._clock = clock
        self._settings = settings
        self._host = host
        self._work = Work()
        self.fleet = Fleet()
        self.machine = Machine(host, database, clock, self.fleet, settings, neighbours.connectors.outward)
        self.runner = Runner(database, clock, boundary)
        self.actions = Actions(self.machine, self.runner, self._work)
        self.microvms = Microvms(self.machine, self.runner, self.actions, self._work, neighbours)
        neighbours.connectors.lost = self.cut
        self._seal = Seal(clock)
        self.tokens = Tokens(database, clock, self.microvms, self._seal)
        self.gate = Gate(self.machine, self._seal, self.actions)
        self.sessions = Sessions(self.machine, self.gate, self.microvms)
        self.metering = Metering(self.machine)
        self.wakefulness = Wakefulnesses(self.machine, self.microvms)
        self._keeper = Keeper(self.machine, self.actions, self._work)
        self._events = Events(self.machine, self.actions, logs, self._work)
        self.reconcile = Reconcile(self.machine, self.runner, self.actions, self._work)
        self.leaks = Leaks(database, host, self.fleet, self.actions)

    async def start(self) -> None:
        """Take up what an earlier process left; the tables exist and the host has started."""
        await self.tokens.start()
        await self.metering.start()
        await self.reconcile.start()

    async def run(self) -> None:
        """For ever. Being cancelled cuts off what is under way, as a crash would; the next start takes it up."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._work.run(), name="work")
            tasks.create_task(lasting(self._clock, "events", self._events.run), name="events")
            tasks.create_task(lasting(self._clock, "keeper", self._keeper.run), name="keeper")
            tasks.create_task(lasting(self._clock, "reconcile", self.reconcile.run), name="reconcile")
            tasks.create_task(lasting(self._clock, "metering", self.metering.run), name="metering")

    async def cut(self, connector: str) -> None:
        """Take egress from every microVM that is bound to a connector, given by its ARN without a version."""
        for live in list(self.fleet):
            if any(arn == connector or arn.startswith(f"{connector}:") for arn in live.microvm.egress_connectors):
                try:
                    await self._host.set_egress(live.microvm_id, NO_EGRESS)
                except TorporError as error:
                    log.warning("%s keeps its egress until it sleeps: %s", live.microvm_id, error)

    async def park(self) -> None:
        """Suspend every RUNNING microVM, two at a time, for as long as the settings allow."""
        lives = [live for live in self.fleet if live.state in (MicrovmState.RUNNING, MicrovmState.SUSPENDING)]
        gate = asyncio.Semaphore(PARKED_AT_ONCE)

        async def park(live: Live) -> None:
            async with gate:
                try:
                    await self.actions.park(live)
                except TorporError as error:
                    log.warning("%s runs on while the service is down: %s", live.microvm_id, error)

        tasks: set[asyncio.Future[Any]] = {asyncio.ensure_future(park(live)) for live in lives}
        enough = asyncio.ensure_future(self._clock.sleep(self._settings.stop_within.total_seconds()))
        all_parked = asyncio.gather(*tasks)
        tasks.add(enough)
        try:
            await asyncio.wait({asyncio.ensure_future(all_parked), enough}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(all_parked, *tasks, return_exceptions=True)

    @property
    def is_idle(self) -> bool:
        """No action is under way."""
        return self._work.is_idle
