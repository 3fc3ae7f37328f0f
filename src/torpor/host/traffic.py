"""When the endpoint of each microVM last carried a byte (spec 5.7)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Final

from torpor.host.places import Slots
from torpor.model.clock import Clock
from torpor.model.errors import TorporError
from torpor.model.ids import MicrovmId

POLL: Final = 0.5
FRESH: Final = 0.1
"""Seconds for which an answer is not looked up again."""
log = logging.getLogger(__name__)


class TrafficWatch:
    """Reads the counters of all slots about twice a second and remembers when each moved."""

    def __init__(self, slots: Slots, clock: Clock, placed: Callable[[], Mapping[int, MicrovmId]]) -> None:
        self._slots = slots
        self._clock = clock
        self._placed = placed
        self._counts: dict[int, int] = {}
        self._last: dict[MicrovmId, datetime] = {}
        self._looked_at = float("-inf")

    async def run(self) -> None:
        while True:
            if self._placed():
                await self._look()
            await self._clock.sleep(POLL)

    async def last(self, microvm_id: MicrovmId) -> datetime | None:
        """At most half a second too early; None when it has not carried anything yet."""
        if self._clock.monotonic() - self._looked_at > FRESH:
            await self._look()
        return self._last.get(microvm_id)

    def forget(self, microvm_id: MicrovmId) -> None:
        self._last.pop(microvm_id, None)

    async def _look(self) -> None:
        self._looked_at = self._clock.monotonic()
        now = self._clock.now()
        try:
            counts = await self._slots.payload_bytes()
        except (OSError, TorporError) as error:
            log.warning("the traffic counters cannot be read: %s", error)
            return
        owners = self._placed()
        for number, count in counts.items():
            if count > self._counts.get(number, 0) and number in owners:
                self._last[owners[number]] = now
        self._counts = counts
