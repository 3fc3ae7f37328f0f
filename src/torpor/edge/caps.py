"""How much of the endpoint one microVM may use at once (spec 5.6): open requests, and requests per second.

What counts as a connection is an open request or WebSocket; a connection kept for a next request costs nothing here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from torpor.model.errors import GateThrottled


@dataclass(frozen=True, slots=True)
class Caps:
    connections: int
    requests_per_second: float
    """As many may come at once after a quiet second."""


CapsOf = Callable[[str], Caps | None]
"""The caps of a microVM by its id; None is no caps. Asked once for every request, so it must be quick."""


def uncapped(microvm_id: str) -> Caps | None:
    return None


class Meter:
    """Counts what is open and how fast it comes; `now` is in seconds and never goes backwards."""

    def __init__(self, caps_of: CapsOf, now: Callable[[], float]) -> None:
        self._caps_of = caps_of
        self._now = now
        self._open: Counter[str] = Counter()
        self._requests: dict[str, str] = {}
        """Of every open request, by its id, the microVM."""
        self._buckets: dict[str, tuple[float, float]] = {}
        """Requests left, and when that was true."""

    def begin(self, request_id: str, microvm_id: str) -> None:
        """Count a request that is about to be let through.

        Raises:
            GateThrottled: it is one too many; then it does not count.
        """
        caps = self._caps_of(microvm_id)
        if caps is not None:
            if self.open_requests(microvm_id) >= caps.connections:
                raise GateThrottled(f"{microvm_id} has {caps.connections} requests open")
            self._take_one(microvm_id, caps.requests_per_second)
        self._requests[request_id] = microvm_id
        self._open[microvm_id] += 1

    def end(self, request_id: str) -> None:
        """A request that never began, or has ended already, is nothing."""
        microvm_id = self._requests.pop(request_id, None)
        if microvm_id is None:
            return
        self._open[microvm_id] -= 1
        if not self._open[microvm_id]:
            del self._open[microvm_id]
            self._forget_the_quiet()

    def open_requests(self, microvm_id: str) -> int:
        return self._open.get(microvm_id, 0)

    def clear(self) -> None:
        """Everything that was open has ended: the proxy died."""
        self._open.clear()
        self._requests.clear()

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
