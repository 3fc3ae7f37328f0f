"""What the machine has and no record knows, and records whose part on the machine is missing.

The machine is looked at before and after the records are read: what is made meanwhile had its record first, what is
removed meanwhile is gone at the second look. So nothing that is in use is ever taken for a leak. Records that miss
their part are read once more, since what they stand for may have ended before the machine was looked at.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from torpor.control.microvm.actions import Actions
from torpor.control.microvm.live import Fleet
from torpor.control.reasons import COLLECTED
from torpor.host.base import Found, Host
from torpor.host.holding import Holding, Kind, unused
from torpor.model.errors import NotRemoved, TorporError
from torpor.model.ids import MicrovmId
from torpor.model.microvm import Cause, MicrovmState
from torpor.store.database import Database
from torpor.store.known import Known, known

log: Final = logging.getLogger(__name__)
S: Final = MicrovmState
ACTOR: Final = "torpor gc"
RECORD: Final = "microVM record"
VERSION: Final = "image version"
DAMAGED: Final = "damaged files"


@dataclass(frozen=True, slots=True)
class Leak:
    """Something that should not be there, or a record that stands for nothing."""

    kind: str
    name: str
    detail: str
    bytes: int
    """On disk, blocks that are shared with others included."""
    is_removable: bool = True
    """`gc` removes it; else `detail` says what a person does."""


@dataclass(frozen=True, slots=True)
class Collected:
    """What `gc` did about a leak."""

    leak: Leak
    is_removed: bool
    error: str | None = None


class Leaks:
    """Finds and removes them while the service runs."""

    def __init__(self, database: Database, host: Host, fleet: Fleet, actions: Actions) -> None:
        self._database = database
        self._host = host
        self._fleet = fleet
        self._actions = actions
        self.quiet = asyncio.Lock()
        """Held while things get their places a moment before their records."""

    async def find(self) -> list[Leak]:
        holdings, records = await self._look()
        damaged = [Leak(DAMAGED, path, reason, 0, is_removable=False) for path, reason in self._host.damaged.items()]
        return [*(leak_of(each) for each in holdings), *records, *damaged]

    async def collect(self) -> list[Collected]:
        """Remove what can be removed, and say of each what came of it."""
        holdings, records = await self._look()
        done = [await self._remove(each) for each in holdings]
        return done + [await self._end(each) for each in records]

    async def _look(self) -> tuple[list[Holding], list[Leak]]:
        async with self.quiet:
            return await self._look_now()

    async def _look_now(self) -> tuple[list[Holding], list[Leak]]:
        first = await self._host.inventory()
        now = await self._database.read(known)
        second = await self._host.inventory()
        still = {holding.id for holding in second}
        leaked = [holding for holding in unused(first, now.keys) if holding.id in still]
        missing = missing_parts(now, await self._host.survey(), second)
        if not missing:
            return leaked, []
        # What ended between the reading of its record and the look at the machine misses nothing.
        later = await self._database.read(known)
        return leaked, [leak for leak in missing if _is_as_it_was(leak, now, later)]

    async def _remove(self, holding: Holding) -> Collected:
        leak = leak_of(holding)
        try:
            await self._host.remove(holding)
        except NotRemoved as error:
            log.warning("gc: %s", error)
            return Collected(leak, False, str(error))
        log.info("gc: removed %s %s", leak.kind, leak.name)
        return Collected(leak, True)

    async def _end(self, leak: Leak) -> Collected:
        live = self._fleet.find(MicrovmId(leak.name)) if leak.kind == RECORD else None
        if not leak.is_removable or live is None:
            return Collected(leak, False, leak.detail)
        try:
            # By itself a VMM that died ends its record within a moment; here are only sleepers that cannot wake.
            await self._actions.terminate(live, Cause.TERMINATE_CALLED, ACTOR, COLLECTED, is_alive=False,
                                          still=lambda: live.state is S.SUSPENDED)  # fmt: skip
        except TorporError as error:
            return Collected(leak, False, str(error))
        return Collected(leak, live.has_ended)


def _is_as_it_was(leak: Leak, before: Known, after: Known) -> bool:
    if leak.kind == RECORD:
        microvm_id = MicrovmId(leak.name)
        return before.microvms.get(microvm_id) is after.microvms.get(microvm_id)
    return leak.name in after.snapshots.values()


def leak_of(holding: Holding) -> Leak:
    return Leak(holding.kind.value, holding.name, holding.detail, holding.bytes)


def missing_parts(now: Known, found: Iterable[Found], holdings: Iterable[Holding]) -> list[Leak]:
    """Records that the machine has nothing for. One whose VM is starting or ending is not looked at."""
    there = {each.microvm_id: each for each in found}
    snapshots = {Path(each.name).name for each in holdings if each.kind is Kind.SNAPSHOT}
    leaks = []
    for microvm_id, state in now.microvms.items():
        part = there.get(microvm_id)
        if state is S.SUSPENDED and (part is None or (part.saved_at is None and not part.is_alive)):
            leaks.append(Leak(RECORD, microvm_id, "SUSPENDED, and its saved files are missing", 0))
    for name, version in now.snapshots.items():
        if name not in snapshots:
            remedy = "its snapshot is missing: torpor deploy makes a new version, torpor delete-image deletes it"
            leaks.append(Leak(VERSION, version, remedy, 0, is_removable=False))
    return leaks
