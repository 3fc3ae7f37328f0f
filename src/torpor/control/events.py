"""What the machine reports: applications that end, VMMs that die, agents that fall silent, lines that are written."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict, defaultdict
from datetime import datetime
from typing import Final

from torpor.control.logs import Logs
from torpor.control.microvm.actions import Actions
from torpor.control.microvm.machine import Machine, change, persist
from torpor.control.reasons import DAMAGED, DIED, SILENT, STALLED
from torpor.control.work import Work
from torpor.host.base import (
    ApplicationExited,
    ApplicationLine,
    FilesDamaged,
    GuestFellSilent,
    GuestHeardAgain,
    VmmDied,
)
from torpor.model.ids import MicrovmId
from torpor.model.logs import microvm_stream
from torpor.model.microvm import Cause, MicrovmState
from torpor.store import timeline

log: Final = logging.getLogger(__name__)
S: Final = MicrovmState
BACKLOG: Final = 10_000
"""Lines that wait to be written; a guest that writes faster than the disk is held up, not remembered."""

REMEMBERED: Final = 1000
"""MicroVMs whose log stream is known although they may have ended."""

Lines = list[tuple[datetime, str, str]]


class Events:
    """Reads the host's events and acts on each."""

    def __init__(self, machine: Machine, actions: Actions, logs: Logs, work: Work) -> None:
        self._machine = machine
        self._actions = actions
        self._logs = logs
        self._work = work
        self._targets: OrderedDict[MicrovmId, tuple[str, str] | None] = OrderedDict()
        self._lines: asyncio.Queue[ApplicationLine] = asyncio.Queue(BACKLOG)

    async def run(self) -> None:
        """For ever."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._write_lines(), name="log-lines")
            async for event in self._machine.host.events():
                match event:
                    case ApplicationLine():
                        await self._lines.put(event)
                    case ApplicationExited():
                        self._work.spawn(self._exited(event), f"exited:{event.microvm_id}")
                    case VmmDied():
                        self._died(event)
                    case GuestFellSilent():
                        self._work.spawn(self._silent(event), f"silent:{event.microvm_id}")
                    case GuestHeardAgain():
                        self._work.spawn(self._heard(event), f"heard:{event.microvm_id}")
                    case FilesDamaged():
                        self._work.spawn(self._damaged(event), f"damaged:{event.microvm_id}")

    async def _exited(self, event: ApplicationExited) -> None:
        """Note it; the endpoint answers 502 from now on and the keeper ends the VM after its grace (spec 1.6)."""
        live = self._machine.fleet.find(event.microvm_id)
        if live is None or live.state in (S.SUSPENDED, S.TERMINATING) or live.microvm.exited_at is not None:
            return
        now = self._machine.clock.now()
        await change(self._machine, live, exit_code=event.exit_code, exited_at=now)
        await self._note(event.microvm_id, "application exited", f"exit code {event.exit_code}")

    async def _silent(self, event: GuestFellSilent) -> None:
        live = self._machine.fleet.find(event.microvm_id)
        if live is None or live.state is not S.RUNNING:
            return
        if event.is_stalled:
            log.error("%s stands still: there is no disk space for what it writes", event.microvm_id)
            await change(self._machine, live, state_reason=STALLED)
            await self._note(event.microvm_id, "standing still", "no disk space for what it writes")
            return
        log.error("the guest of %s has said nothing for %.0f s", event.microvm_id, event.seconds)
        await change(self._machine, live, state_reason=SILENT)
        await self._note(event.microvm_id, "guest silent", f"no sign of life for {event.seconds:.0f} s")

    async def _heard(self, event: GuestHeardAgain) -> None:
        live = self._machine.fleet.find(event.microvm_id)
        if live is None:
            return
        log.info("the guest of %s answers again", event.microvm_id)
        if live.microvm.state_reason in (SILENT, STALLED):
            await change(self._machine, live, state_reason=None)
        await self._note(event.microvm_id, "guest heard again", "host")

    async def _damaged(self, event: FilesDamaged) -> None:
        """Say so while there may still be a backup; nothing is deleted."""
        live = self._machine.fleet.find(event.microvm_id)
        if live is None or live.state is not S.SUSPENDED:
            return
        await change(self._machine, live, state_reason=DAMAGED.format(event.reason))
        await self._note(event.microvm_id, "files damaged", event.reason)

    async def _note(self, microvm_id: MicrovmId, what: str, cause: str) -> None:
        now = self._machine.clock.now()
        await persist(self._machine, lambda connection: timeline.add(connection, microvm_id, now, what, cause))

    def _died(self, event: VmmDied) -> None:
        live = self._machine.fleet.find(event.microvm_id)
        if live is None:
            return
        log.error("the virtual machine of %s ended: %s", event.microvm_id, event.how)
        if live.state is S.SUSPENDED and live.run is None:
            return  # its files are whole: nothing is lost
        life = live.life
        self._work.spawn(
            self._actions.terminate(
                live, Cause.VMM_DIED, "host", DIED.format(event.how), is_alive=False,
                # By the time its turn comes it may be SUSPENDED all the same, or live again.
                still=lambda: live.state is S.RUNNING and live.life == life,
            ),
            f"died:{event.microvm_id}",
        )

    def _target(self, microvm_id: MicrovmId) -> tuple[str, str] | None:
        live = self._machine.fleet.find(microvm_id)
        if live is None:  # its last lines may come after its end
            return self._targets.get(microvm_id)
        target = self._targets[microvm_id] = microvm_stream(live.microvm)
        self._targets.move_to_end(microvm_id)
        if len(self._targets) > REMEMBERED:
            self._targets.popitem(last=False)
        return target

    async def _write_lines(self) -> None:
        while True:
            waiting = [await self._lines.get()]
            while not self._lines.empty():
                waiting.append(self._lines.get_nowait())
            streams: dict[tuple[str, str], Lines] = defaultdict(list)
            for event in waiting:
                target = self._target(event.microvm_id)
                if target is not None:
                    streams[target].append((event.at, event.stream, event.line))
            for (group, stream), lines in streams.items():
                try:
                    await self._logs.append(group, stream, lines)
                except OSError as error:  # a full disk costs log lines, not the service
                    log.error("%d lines of %s are lost: %s", len(lines), stream, error)
