"""Time comes in from outside, so that an eight-hour life can be tested in a millisecond."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Protocol

SETTLE_SECONDS = 5.0
"""Real time after which a VirtualClock moves on although something is still busy."""


class Clock(Protocol):
    """What everything that depends on time takes as an argument."""

    def now(self) -> datetime:
        """The wall clock, in UTC."""
        ...

    def monotonic(self) -> float:
        """Seconds that never go backwards; for durations only."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Return `seconds` later by this clock."""
        ...


class SystemClock:
    """The machine's own clock."""

    def now(self) -> datetime:
        return datetime.now(UTC)

    def monotonic(self) -> float:
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(max(0.0, seconds))


class VirtualClock:
    """A clock that moves only when told to; sleepers wake in the order of their deadlines."""

    def __init__(self, start: datetime = datetime(2026, 1, 1, tzinfo=UTC)) -> None:
        self._start = start
        self._elapsed = 0.0
        self._order = itertools.count()
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._busy: list[Callable[[], bool]] = []

    def busy_while(self, is_busy: Callable[[], bool]) -> None:
        """Hold time still while `is_busy()`: for work in threads, which turns of the loop alone do not finish."""
        self._busy.append(is_busy)

    def now(self) -> datetime:
        return self._start + timedelta(seconds=self._elapsed)

    def monotonic(self) -> float:
        return self._elapsed

    async def sleep(self, seconds: float) -> None:
        woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self.monotonic() + max(0.0, seconds), next(self._order), woken))
        await woken

    async def advance(self, by: timedelta) -> None:
        """Move time forward, waking each sleeper at its own moment and letting it run before the next."""
        end = self.monotonic() + by.total_seconds()
        await self._settle()
        while self._sleepers and self._sleepers[0][0] <= end:
            at, _, woken = heapq.heappop(self._sleepers)
            self._move_to(at)
            if not woken.done():
                woken.set_result(None)
            await self._settle()
        self._move_to(end)
        await self._settle()

    def _move_to(self, at: float) -> None:
        self._elapsed = max(self._elapsed, at)

    async def _settle(self) -> None:
        # A woken task may need many turns of the loop (locks, queues, worker threads) before it sleeps again.
        give_up = time.monotonic() + SETTLE_SECONDS
        while True:
            for _ in range(20):
                if any(is_busy() for is_busy in self._busy):
                    break
                await asyncio.sleep(0)
            else:
                return
            if time.monotonic() > give_up:
                return
            await asyncio.sleep(0.0005)


class MovableClock(VirtualClock):
    """Runs like the machine's own clock and can be moved forward besides: for the simulated engine."""

    def __init__(self) -> None:
        super().__init__(start=datetime.now(UTC))
        self._zero = time.monotonic()
        self._timer: asyncio.TimerHandle | None = None

    def now(self) -> datetime:
        return self._start + timedelta(seconds=self.monotonic())

    def monotonic(self) -> float:
        return time.monotonic() - self._zero + self._elapsed

    async def sleep(self, seconds: float) -> None:
        sleeping = asyncio.ensure_future(super().sleep(seconds))
        await asyncio.sleep(0)
        self._arm()
        try:
            await sleeping
        finally:
            sleeping.cancel()

    async def advance(self, by: timedelta) -> None:
        await super().advance(by)
        self._arm()

    def _move_to(self, at: float) -> None:
        self._elapsed += max(0.0, at - self.monotonic())

    def _arm(self) -> None:
        """Set one timer for the sleeper whose moment is next."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._sleepers:
            delay = max(0.0, self._sleepers[0][0] - self.monotonic())
            self._timer = asyncio.get_running_loop().call_later(delay, self._wake_due)

    def _wake_due(self) -> None:
        while self._sleepers and self._sleepers[0][0] <= self.monotonic():
            _, _, woken = heapq.heappop(self._sleepers)
            if not woken.done():
                woken.set_result(None)
        self._arm()
