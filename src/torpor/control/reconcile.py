"""Brings what the store says and what the machine has together: at start, and now and then.

At start each action that a crash cut short goes on or is undone, as its `Steps` say. What then has no action and does
not agree is settled here, in the record's favour where nothing is lost by it, and otherwise with an honest reason.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from datetime import datetime
from typing import Final

from sqlalchemy import Connection

from torpor.control.microvm import suspend, terminate, wake
from torpor.control.microvm.actions import Actions
from torpor.control.microvm.launch import LAUNCH
from torpor.control.microvm.live import Live
from torpor.control.microvm.machine import SUCCESS, Machine, change
from torpor.control.steps import Runner, Steps
from torpor.control.work import Work
from torpor.host.base import Found
from torpor.model.errors import TorporError
from torpor.model.ids import MicrovmId
from torpor.model.microvm import Cause, MicrovmState
from torpor.store import microvms, timeline
from torpor.store.journal import Entry

log: Final = logging.getLogger(__name__)
S: Final = MicrovmState
ACTOR: Final = "reconcile"
GONE: Final = "The virtual machine was gone when the service started: it, or the machine it ran on, ended meanwhile."
LOST: Final = "The virtual machine was found to be gone."
ACTIONS: Final[dict[str, Steps[Machine]]] = {
    steps.action: steps for steps in (LAUNCH, suspend.SUSPEND, wake.RESUME, terminate.TERMINATE)
}
"""By the name in the journal; the journal's other actions belong to others."""


class Reconcile:
    """Store against machine."""

    def __init__(self, machine: Machine, runner: Runner, actions: Actions, work: Work) -> None:
        self._machine = machine
        self._runner = runner
        self._actions = actions
        self._work = work

    async def start(self) -> None:
        """Fill the fleet, and begin to settle every difference; the tasks go on in the background."""
        records = await self._machine.database.read(microvms.live)
        found = {each.microvm_id: each for each in await self._machine.host.survey()}
        entries = {entry.subject: entry for entry in await self._runner.unfinished() if entry.action in ACTIONS}
        for microvm in records:
            live = Live(microvm)
            live.found = found.get(microvm.microvm_id) or Found(microvm.microvm_id, False, False, None)
            await self._active(live)
            await live.lock.acquire()
            self._machine.fleet.add(live)
            self._work.spawn(self._settle(live, entries.get(microvm.microvm_id)), f"recover:{microvm.microvm_id}")
        known = {microvm.microvm_id for microvm in records}
        self._work.spawn(self._discard(found.keys() - known), "discard-strays")

    async def run(self) -> None:
        """For ever: look again, since news can get lost, and forget what ended long ago."""
        while True:
            await self._machine.clock.sleep(self._machine.settings.reconcile_every.total_seconds())
            try:
                await self.look()
                await self._forget()
            except TorporError as error:
                log.warning("reconcile: %s", error)

    async def look(self) -> None:
        """End RUNNING microVMs whose VMM is gone."""
        lives = {live: live.life for live in self._machine.fleet if live.state is S.RUNNING and live.run is None}
        alive = {found.microvm_id for found in await self._machine.host.survey() if found.is_alive}
        for live, life in lives.items():
            if live.microvm_id not in alive and _is_same(live, life):
                await self._actions.terminate(
                    live, Cause.VMM_DIED, ACTOR, LOST, is_alive=False,
                    still=lambda live=live, life=life: _is_same(live, life),  # type: ignore[misc]
                )

    async def _active(self, live: Live) -> None:
        """When it was last active. A machine that does not know starts to count now: nothing busy is suspended."""
        if live.state is S.RUNNING and live.found is not None and live.found.is_alive:
            traffic = await self._machine.host.last_traffic(live.microvm_id)
            live.active_at = max(live.microvm.last_active_at, traffic or self._machine.clock.now())

    async def _settle(self, live: Live, entry: Entry | None) -> None:
        if entry is not None:
            log.info("%s of %s goes on after a restart", entry.action, entry.subject)
            run = self._runner.recovered(ACTIONS[entry.action], self._machine, entry)
            await self._actions.finish_locked(live, run)
            live.found = None
            return
        ending: tuple[Cause, str] | None = None
        try:
            ending = await self._agree(live)
        finally:
            live.found = None
            live.lock.release()
        if ending is not None:
            await self._actions.terminate(live, ending[0], ACTOR, ending[1], is_alive=False)

    async def _agree(self, live: Live) -> tuple[Cause, str] | None:
        """Settle a microVM without an action under way; returns why it must end, if it must."""
        found, host = live.found, self._machine.host
        assert found is not None
        match live.state:
            case S.RUNNING | S.PENDING | S.SUSPENDING if not found.is_alive:
                return Cause.VMM_DIED, GONE
            case S.RUNNING if found.is_paused:
                await host.unpause(live.microvm_id)
            case S.SUSPENDED if found.is_alive:
                await host.release(live.microvm_id)  # a resume that nobody waits for any more
            case S.SUSPENDED if found.saved_at is None:
                await change(self._machine, live, state_reason="The saved files of the MicroVM are missing.")
            case S.PENDING | S.SUSPENDING:
                return Cause.TERMINATE_CALLED, f"The MicroVM was {live.state} without an action under way."
            case S.TERMINATING:
                run = self._runner.prepare(
                    terminate.TERMINATE, self._machine, live.microvm_id, ACTOR,
                    {"terminate_hook": False, "reason": live.microvm.state_reason or SUCCESS},
                )
                await self._runner.open(run)
                await self._runner.finish(run)
        return None

    async def _discard(self, strays: Iterable[MicrovmId]) -> None:
        for microvm_id in strays:
            log.warning("%s is on the machine and in no record: discarded", microvm_id)
            try:
                await self._machine.host.discard(microvm_id)
            except TorporError as error:
                log.error("%s could not be discarded: %s", microvm_id, error)

    async def _forget(self) -> None:
        before: datetime = self._machine.clock.now() - self._machine.settings.keep_terminated

        def forget(connection: Connection) -> None:
            timeline.delete(connection, microvms.delete_ended(connection, before))

        await self._machine.database.write(forget)


def _is_same(live: Live, life: int) -> bool:
    return live.state is S.RUNNING and live.life == life


