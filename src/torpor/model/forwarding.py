"""Log lines on their way to somewhere else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torpor.model.logs import LogLine, LogPlace


@dataclass(frozen=True, slots=True)
class Batch:
    """What one request carries: lines of one stream."""

    place: LogPlace
    lines: tuple[LogLine, ...]
    """Those that have arrived whole once it is delivered. Empty when it holds but the beginning of a very long one."""
    content: Any
    """The destination's own."""


class Destination(Protocol):
    """Where lines are forwarded to."""

    @property
    def name(self) -> str:
        """For logs; without any secret."""
        ...

    def cut(self, place: LogPlace, lines: Sequence[LogLine]) -> list[Batch]:
        """Lines of one stream as requests of allowed sizes, in order. Blocking."""
        ...

    async def deliver(self, batch: Batch) -> int:
        """Send one; returns how many of its lines were refused, though the rest was taken.

        Raises:
            NotForwarded: it may be taken later.
            LinesRefused: it never will.
        """
        ...

    async def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class ForwardingState:
    """How forwarding goes, counted since the service started.

    It tells nothing of anybody's own: neither names of log groups nor what the destination says.
    """

    lines: int
    """Delivered."""
    lost: int
    """Removed from the disk, for their age or for room, before they could be delivered."""
    refused: int
    """Never taken by the destination."""
    behind_seconds: float
    """Age of the oldest line that waits."""
    waiting_streams: int
    is_up: bool
    """False while nothing is taken, or nothing of some log group; the service's log says why."""
