"""Ends what has lasted long enough: idle time, suspended time, maximum duration, the grace after an exit.

Only bytes through the endpoint reset the idle clock (spec 5.7); guest CPU does not. Every deadline follows from the
record, so a restarted service goes on where the old one was. The keeper sleeps until the next of them; whether a
microVM was really idle is asked of the machine at that moment, not before.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import logging
from datetime import datetime
from enum import Enum
from typing import Any, Final

from torpor.control.microvm.actions import Actions
from torpor.control.microvm.live import Live
from torpor.control.microvm.machine import Machine, change
from torpor.control.reasons import DURATION, EXITED, SUSPENDED_TOO_LONG
from torpor.control.settings import MicrovmSettings
from torpor.control.work import Work
from torpor.model.errors import Permanent
from torpor.model.microvm import Cause, MicrovmState

log: Final = logging.getLogger(__name__)
S: Final = MicrovmState
ACTOR: Final = "idle keeper"
SPARE_ENTRIES: Final = 1000
"""Of the heap, which are out of date, before it is made anew."""


class Limit(Enum):
    """What has been reached."""

    DURATION = "duration"
    IDLE = "idle"
    SUSPENDED = "suspended"
    EXITED = "exited"


def deadline(live: Live, settings: MicrovmSettings) -> tuple[datetime, Limit] | None:
    """The next moment at which something must happen to it; None when it is ending."""
    microvm = live.microvm
    if microvm.state in (S.TERMINATING, S.TERMINATED):
        return None
    found = [(microvm.ends_at, Limit.DURATION)]
    policy = microvm.idle_policy
    if microvm.state is S.RUNNING and microvm.exited_at is not None:
        found.append((microvm.exited_at + settings.exit_grace, Limit.EXITED))
    elif microvm.state is S.RUNNING and policy is not None and not live.holders:
        idle_at = max(live.active_at, microvm.last_active_at) + policy.max_idle
        found.append((max(idle_at, live.not_before) if live.not_before else idle_at, Limit.IDLE))
    elif microvm.state is S.SUSPENDED and policy is not None and microvm.suspended_at and not microvm.is_parked:
        found.append((microvm.suspended_at + policy.suspended, Limit.SUSPENDED))
    return min(found, key=lambda pair: pair[0])


class Keeper:
    """One sleeper for all microVMs."""

    def __init__(self, machine: Machine, actions: Actions, work: Work) -> None:
        self._machine = machine
        self._actions = actions
        self._work = work
        self._order = itertools.count()
        self._due: list[tuple[datetime, int, Live]] = []
        self._sooner = asyncio.Event()
        machine.fleet.on_change(self.note)

    def note(self, live: Live) -> None:
        """Its record has changed."""
        found = deadline(live, self._machine.settings)
        if found is None:
            return
        if not self._due or found[0] < self._due[0][0]:
            self._sooner.set()
        heapq.heappush(self._due, (found[0], next(self._order), live))
        if len(self._due) > SPARE_ENTRIES + 4 * len(self._machine.fleet):
            self._rebuild()

    def _rebuild(self) -> None:
        """Leave one entry for each microVM: every change adds one, and they only go when they are due."""
        found = [(deadline(live, self._machine.settings), live) for live in self._machine.fleet]
        self._due = [(limit[0], next(self._order), live) for limit, live in found if limit is not None]
        heapq.heapify(self._due)
        self._sooner.set()

    async def run(self) -> None:
        """For ever."""
        while True:
            self._sooner.clear()
            now = self._machine.clock.now()
            while self._due and self._due[0][0] <= now:
                _, _, live = heapq.heappop(self._due)
                self._look(live, now)
            await self._sleep()

    async def _sleep(self) -> None:
        sooner = asyncio.ensure_future(self._sooner.wait())
        waits: set[asyncio.Future[Any]] = {sooner}
        if self._due:
            seconds = (self._due[0][0] - self._machine.clock.now()).total_seconds()
            waits.add(asyncio.ensure_future(self._machine.clock.sleep(seconds)))
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in waits:
                task.cancel()

    def _look(self, live: Live, now: datetime) -> None:
        """An entry of the heap is due; the record may have moved on since it was put there."""
        found = deadline(live, self._machine.settings)
        if found is None:
            return
        at, limit = found
        if at > now:
            # Activity moves an idle deadline without a change of the record: look again when it is due now.
            heapq.heappush(self._due, (at, next(self._order), live))
            return
        self._work.spawn(self._enforce(live, limit), f"keeper:{limit.value}:{live.microvm_id}")

    async def _enforce(self, live: Live, limit: Limit) -> None:
        """Its entry has left the heap: if this fails, nothing else would come back to it."""
        try:
            await self._end(live, limit)
        except Exception as error:
            log.error("%s has reached its limit (%s), which is tried again: %s", live.microvm_id, limit.value, error)
            at = self._machine.clock.now() + self._machine.settings.retry_suspend_after
            heapq.heappush(self._due, (at, next(self._order), live))
            self._sooner.set()

    async def _end(self, live: Live, limit: Limit) -> None:
        microvm = live.microvm
        match limit:
            case Limit.DURATION:
                await self._actions.terminate(live, Cause.DURATION_REACHED, ACTOR,
                                              DURATION.format(microvm.maximum_duration.total_seconds()))
            case Limit.EXITED:
                await self._actions.terminate(live, Cause.APPLICATION_EXITED, "application",
                                              EXITED.format(microvm.exit_code))
            case Limit.SUSPENDED:
                assert microvm.idle_policy is not None
                await self._actions.terminate(
                    live, Cause.SUSPENDED_TOO_LONG, ACTOR,
                    SUSPENDED_TOO_LONG.format(microvm.idle_policy.suspended.total_seconds()),
                    still=lambda: self._is_due(live, Limit.SUSPENDED),
                )
            case Limit.IDLE:
                await self._idle(live)

    async def _idle(self, live: Live) -> None:
        traffic = await self._machine.host.last_traffic(live.microvm_id)
        if traffic is not None and traffic > live.active_at:
            live.active_at = traffic
        if not self._is_due(live, Limit.IDLE):
            await self._remember(live)
            return
        try:
            await self._actions.suspend(live, Cause.IDLE, ACTOR, still=lambda: self._is_due(live, Limit.IDLE))
        except Permanent as error:
            log.warning("%s is idle and could not be suspended: %s", live.microvm_id, error)
            live.not_before = self._machine.clock.now() + self._machine.settings.retry_suspend_after
        self.note(live)

    async def _remember(self, live: Live) -> None:
        """Record the activity that was seen, so that a restart does not take it for idle."""
        if live.state is S.RUNNING:
            await change(self._machine, live, last_active_at=max(live.active_at, live.microvm.last_active_at))
        self.note(live)

    def _is_due(self, live: Live, limit: Limit) -> bool:
        found = deadline(live, self._machine.settings)
        return found is not None and found[1] is limit and found[0] <= self._machine.clock.now()


