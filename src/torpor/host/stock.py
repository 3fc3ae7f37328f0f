"""What a running local host has on its machine and does not need itself; see `holding`."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

from torpor.host.holding import Holding, Kind
from torpor.host.inventory.estate import Estate
from torpor.host.inventory.survey import remove, take_stock
from torpor.host.places import Places, Slots
from torpor.host.threads import in_thread
from torpor.host.watching import Placed
from torpor.model.errors import NotRemoved, Permanent
from torpor.model.ids import MicrovmId


class Stock:
    """Looks at the machine with the host's own knowledge of what is in use."""

    def __init__(self, estate: Estate, slots: Slots, places: Places, placed: Mapping[MicrovmId, Placed],
                 locks: Mapping[MicrovmId, asyncio.Lock], discard: Callable[[MicrovmId], Awaitable[None]]) -> None:
        self._estate = estate
        self._slots = slots
        self._places = places
        self._placed = placed
        self._locks = locks
        self._discard = discard

    async def inventory(self) -> list[Holding]:
        found = await in_thread(take_stock, self._estate)
        used = self._used()  # Known after the look: what was there then has been in it before, or is gone by now.
        return [each for each in found if not any(key in used for key in each.keys)]

    async def remove(self, holding: Holding) -> None:
        """Raises NotRemoved."""
        try:
            if holding.kind is Kind.MICROVM:
                await self._discard(MicrovmId(Path(holding.name).name))
            elif holding.kind is Kind.SLOT:
                await self._slots.remove(int(holding.name.rpartition("-")[2]))
            elif holding.within and holding.kind is Kind.FILE:
                await self._remove_part(holding, MicrovmId(Path(holding.within).name))
            else:
                await in_thread(remove, self._estate, holding)
        except (OSError, Permanent) as error:
            raise NotRemoved(f"{holding.kind} {holding.name} cannot be removed: {error}") from error

    async def _remove_part(self, holding: Holding, owner: MicrovmId) -> None:
        """A part of a microVM's directory, unless an action has come to need it since the look."""
        async with self._locks[owner]:
            if not any(key in self._used() for key in holding.keys if key != f"flux:{owner}"):
                await in_thread(remove, self._estate, holding)

    def _used(self) -> set[str]:
        """Keys of what this process needs; see `holding`."""
        used = {"service", f"service:{os.getpid()}"}
        used |= {f"slot:{number}" for number in self._slots.known()}
        used |= {f"run:{path}" for path in self._places.run_dirs}
        for microvm_id, placed in self._placed.items():
            used |= {f"placed:{microvm_id}", f"base:{microvm_id}:{placed.place.note.base}"}
        return used | {f"flux:{microvm_id}" for microvm_id, lock in self._locks.items() if lock.locked()}
