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

from torpor.control.microvm import recover, suspend, terminate, wake
from torpor.control.microvm.actions import Actions
from torpor.control.microvm.launch import LAUNCH
from torpor.control.microvm.live import Live
from torpor.control.microvm.machine import Machine, change
from torpor.control.reasons import GONE, LOST, MISSING, REBOOTED, SILENT, STALLED, STRANDED, SUCCESS
from torpor.control.steps import Runner, Steps
from torpor.control.work import Work
from torpor.host.base import Found
from torpor.model.errors import TorporError
from torpor.model.microvm import Cause, MicrovmState
from torpor.store import idempotency, microvms, notes, timeline
from torpor.store.journal import Entry

log: Final = logging.getLogger(__name__)
S: Final = MicrovmState
ACTOR: Final = "reconcile"
ANY_PORT: Final = 80
BOOT_NOTE: Final = "boot_id"
ACTIONS: Final[dict[str, Steps[Machine]]] = {
    steps.action: steps for steps in (LAUNCH, suspend.SUSPEND, wake.RESUME, recover.RECOVER, terminate.TERMINATE)
}
"""By the name in the journal; the journal's other actions belong to others."""


class Reconcile:
    """Store against machine."""

    def __init__(self, machine: Machine, runner: Runner, actions: Actions, work: Work) -> None:
        self._machine = machine
        self._runner = runner
        self._actions = actions
        self._work = work
        self._gone = GONE
        """Why a microVM is gone that ran when the last service ended."""

    async def start(self) -> None:
        """Fill the fleet, and begin to settle every difference; the tasks go on in the background."""
        boot_id = self._machine.host.boot_id
        before = await self._machine.database.write(
            lambda connection: notes.replace(connection, BOOT_NOTE, boot_id)
        )
        if before not in (None, boot_id):
            log.info("the machine was restarted since the service ran last")
            self._gone = REBOOTED
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
        strays = [each for each in found.values() if each.microvm_id not in known]
        self._work.spawn(self._part_with(strays), "strays")

    async def run(self) -> None:
        """For ever: look again, since news can get lost, and forget what ended long ago."""
        clock, settings = self._machine.clock, self._machine.settings
        compare_at = clock.monotonic() + settings.reconcile_every.total_seconds()
        while True:
            await clock.sleep(settings.look_every.total_seconds())
            try:
                await self.look()
                if clock.monotonic() >= compare_at:
                    compare_at = clock.monotonic() + settings.reconcile_every.total_seconds()
                    await self.compare()
                    await self._forget()
            except TorporError as error:
                log.warning("reconcile: %s", error)
            except Exception:  # what one look meets must not end the service
                log.exception("reconcile")

    async def look(self) -> None:
        """End RUNNING microVMs whose VMM is gone."""
        host = self._machine.host
        for live in self._machine.fleet:
            if live.state is S.RUNNING and live.run is None and host.upstream(live.microvm_id, ANY_PORT) is None:
                life = live.life
                self._work.spawn(self._actions.terminate(
                    live, Cause.VMM_DIED, ACTOR, LOST, is_alive=False,
                    still=lambda live=live, life=life: _is_same(live, life),  # type: ignore[misc]
                ), f"lost:{live.microvm_id}")

    async def compare(self) -> None:
        """Hold what the machine has against the records: repair what can be, and report the rest."""
        fleet = self._machine.fleet
        before = {live: live.microvm for live in fleet if live.run is None}
        found = {each.microvm_id: each for each in await self._machine.host.survey()}
        for live, record in before.items():
            # The same record and no action since: what was found is of the state that is recorded.
            if live.microvm is record and live.run is None and not live.lock.locked():
                await self._repair(live, found.get(live.microvm_id))
        for microvm_id in found.keys() - {live.microvm_id for live in fleet}:
            log.warning("%s is on the machine and in no record; torpor gc removes it", microvm_id)

    async def _repair(self, live: Live, found: Found | None) -> None:
        host, reason = self._machine.host, live.microvm.state_reason
        is_saved = found is not None and found.saved_at is not None
        async with live.lock:
            if live.state is S.SUSPENDED and is_saved is (reason == MISSING):
                log.error("%s: its saved files are %s", live.microvm_id, "back" if is_saved else "missing")
                await change(self._machine, live, state_reason=None if is_saved else MISSING)
            if live.state is S.TERMINATING:
                log.error("%s is TERMINATING and nothing goes on with it: it is ended again", live.microvm_id)
                await self._end(live)
            if found is None or not found.is_alive:
                return
            if live.state is S.RUNNING and found.is_paused:
                log.warning("%s was paused and nobody suspends it: it goes on", live.microvm_id)
                await host.unpause(live.microvm_id)
            elif live.state is S.SUSPENDED:
                log.warning("%s is SUSPENDED and has a virtual machine, which is ended", live.microvm_id)
                await host.release(live.microvm_id)

    async def _active(self, live: Live) -> None:
        """When it was last active. A machine that does not know starts to count now: nothing busy is suspended."""
        if live.state is S.RUNNING and live.found is not None and live.found.is_alive:
            traffic = await self._machine.host.last_traffic(live.microvm_id)
            live.active_at = max(live.microvm.last_active_at, traffic or self._machine.clock.now())
            if live.microvm.state_reason in (SILENT, STALLED):  # it is told again if that is still so
                await change(self._machine, live, state_reason=None)

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
                return Cause.VMM_DIED, self._gone
            case S.RUNNING if found.is_paused:
                await host.unpause(live.microvm_id)
            case S.SUSPENDED if found.is_alive:
                await host.release(live.microvm_id)  # a resume that nobody waits for any more
            case S.SUSPENDED if found.saved_at is None:
                await change(self._machine, live, state_reason=MISSING)
            case S.PENDING | S.SUSPENDING:
                return Cause.TERMINATE_CALLED, STRANDED.format(live.state)
            case S.TERMINATING:
                await self._end(live)
        return None

    async def _end(self, live: Live) -> None:
        """Bring TERMINATING to its end; the lock is held."""
        run = self._runner.prepare(
            terminate.TERMINATE, self._machine, live.microvm_id, ACTOR,
            {"terminate_hook": False, "reason": live.microvm.state_reason or SUCCESS},
        )
        await self._runner.open(run)
        await self._runner.finish(run)

    async def _part_with(self, strays: Iterable[Found]) -> None:
        """What no record knows: its VMM ends. What it saved stays: the database may be the one that is wrong."""
        host = self._machine.host
        for stray in strays:
            has_saved = stray.saved_at is not None
            log.warning("%s is on the machine and in no record: %s", stray.microvm_id,
                        "what it saved is kept until torpor gc removes it" if has_saved else "discarded")
            try:
                await (host.release if has_saved else host.discard)(stray.microvm_id)
            except TorporError as error:
                log.error("%s could not be removed: %s", stray.microvm_id, error)

    async def _forget(self) -> None:
        now = self._machine.clock.now()
        before: datetime = now - self._machine.settings.keep_terminated

        def forget(connection: Connection) -> None:
            idempotency.remove_expired(connection, now)
            timeline.delete(connection, microvms.delete_ended(connection, before))

        await self._machine.database.write(forget)


def _is_same(live: Live, life: int) -> bool:
    return live.state is S.RUNNING and live.life == life


