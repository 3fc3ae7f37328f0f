"""How much of the endpoint one microVM may use at once (spec 5.6): open requests, and requests per second.

What counts as a connection is an open request or WebSocket; a connection kept for a next request costs nothing here.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from torpor.config import IngressSettings
from torpor.edge.ends import FLUSH
from torpor.model.errors import GateThrottled
from torpor.model.sizes import SIZES

PATIENCE: Final = 5 * FLUSH
"""Seconds a request over the cap waits for another's end: one that has ended is heard of `FLUSH` late."""


class TooManyOpen(GateThrottled):
    """The microVM has as many requests open as it may."""


@dataclass(frozen=True, slots=True)
class Caps:
    """None is no cap."""

    connections: int | None
    requests_per_second: float | None
    """As many may come at once after a quiet second."""


CapsOf = Callable[[str], Caps | None]
"""The caps of a microVM by its id; None is no caps. Asked once for every request, so it must be quick."""


def uncapped(microvm_id: str) -> Caps | None:
    return None


def caps_by_size(settings: IngressSettings, memory_of: Callable[[str], int | None]) -> CapsOf:
    """What the settings say, and where they say nothing what AWS gives the size of the microVM."""
    known = {memory_mib: Caps(
        _first(settings.connections, size.connections), _first(settings.requests_per_second, size.requests_per_second))
        for memory_mib, size in SIZES.items()}

    def caps_of(microvm_id: str) -> Caps | None:
        memory_mib = memory_of(microvm_id)
        return None if memory_mib is None else known.get(memory_mib)

    return caps_of


def _first(configured: int | None, of_size: int) -> int | None:
    return (of_size if configured is None else configured) or None


class Meter:
    """Counts what is open and how fast it comes; `now` is in seconds and never goes backwards.

    A request arrives, may be held while its microVM wakes, begins and ends. Those that are held count against the cap,
    or one token could fill this machine's memory with waiting requests.
    """

    def __init__(self, caps_of: CapsOf, now: Callable[[], float]) -> None:
        self._caps_of = caps_of
        self._now = now
        self._open: Counter[str] = Counter()
        self._arrived: Counter[str] = Counter()
        """Open or held."""
        self._requests: dict[str, tuple[str, bool]] = {}
        """Of every request that has arrived, by its id: the microVM, and whether it has begun."""
        self._buckets: dict[str, tuple[float, float]] = {}
        """Requests left, and when that was true."""
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}

    async def let_in(self, request_id: str, microvm_id: str) -> None:
        """`arrive`, after a moment if that makes room. At most as many wait as may be open. Raises GateThrottled."""
        try:
            self.arrive(request_id, microvm_id)
        except TooManyOpen:
            waiting = self._waiting.setdefault(microvm_id, deque())
            if len(waiting) >= self._arrived[microvm_id]:
                raise
            try:
                async with asyncio.timeout(PATIENCE):
                    await self._arrive_later(request_id, microvm_id, waiting)
            except TimeoutError as error:
                raise TooManyOpen(f"{microvm_id} has no room for another request") from error
            finally:
                if not waiting:
                    self._waiting.pop(microvm_id, None)

    async def _arrive_later(self, request_id: str, microvm_id: str, waiting: deque[asyncio.Future[None]]) -> None:
        while True:
            turn = asyncio.get_running_loop().create_future()
            waiting.append(turn)
            try:
                await turn
                self.arrive(request_id, microvm_id)
                return
            except TooManyOpen:
                continue
            finally:
                if turn in waiting:
                    waiting.remove(turn)

    def arrive(self, request_id: str, microvm_id: str) -> None:
        """Count a request that has been authenticated and is about to be held or let through.

        Raises:
            GateThrottled: it is one too many; then it does not count.
        """
        caps = self._caps_of(microvm_id)
        if caps is not None:
            if caps.connections is not None and self._arrived.get(microvm_id, 0) >= caps.connections:
                raise TooManyOpen(f"{microvm_id} has {caps.connections} requests open")
            if caps.requests_per_second is not None:
                self._take_one(microvm_id, caps.requests_per_second)
        self._requests[request_id] = (microvm_id, False)
        self._arrived[microvm_id] += 1

    def begin(self, request_id: str, microvm_id: str) -> None:
        """Count a request as let through. Raises GateThrottled as `arrive` does, if that was not called before."""
        if request_id not in self._requests:
            self.arrive(request_id, microvm_id)
        self._requests[request_id] = (microvm_id, True)
        self._open[microvm_id] += 1

    def end(self, request_id: str) -> None:
        """A request that never arrived, or has ended already, is nothing."""
        microvm_id, has_begun = self._requests.pop(request_id, (None, False))
        if microvm_id is None:
            return
        _take_off(self._arrived, microvm_id)
        self._call_next(microvm_id)
        if has_begun and _take_off(self._open, microvm_id):
            self._forget_the_quiet()

    def open_requests(self, microvm_id: str) -> int:
        return self._open.get(microvm_id, 0)

    def clear(self) -> None:
        """Everything that was open or held has ended: the proxy died."""
        self._open.clear()
        self._arrived.clear()
        for microvm_id in list(self._waiting):
            self._call_next(microvm_id)
        self._requests.clear()

    def _call_next(self, microvm_id: str) -> None:
        waiting = self._waiting.get(microvm_id)
        while waiting:
            turn = waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return

    def _take_one(self, microvm_id: str, rate: float) -> None:
        now = self._now()
        left, at = self._buckets.get(microvm_id, (rate, now))
        left = min(rate, left + (now - at) * rate)
        if left < 1:
            raise GateThrottled(f"{microvm_id} has had {rate:.0f} requests in this second")
        self._buckets[microvm_id] = (left - 1, now)

    def _forget_the_quiet(self) -> None:
        if len(self._buckets) > 1000 and len(self._buckets) > 2 * len(self._open):
            # A bucket is full again after a second; a forgotten one is full as well.
            now = self._now()
            self._buckets = {vm: (left, at) for vm, (left, at) in self._buckets.items() if now - at < 1}


def _take_off(counter: Counter[str], key: str) -> bool:
    """Count one less; True when none is left."""
    counter[key] -= 1
    if counter[key]:
        return False
    del counter[key]
    return True
