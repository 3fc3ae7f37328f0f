"""What the edge needs of whoever decides; `control`'s gate has this shape without either room importing the other."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol

from torpor.host.base import Upstream


class Admitted(Protocol):
    """A request that may pass, and where to."""

    @property
    def microvm_id(self) -> str: ...

    @property
    def upstream(self) -> Upstream: ...

    @property
    def is_shell(self) -> bool: ...


class Gate(Protocol):
    async def admit(self, label: str, token: str | None, port: int, is_websocket: bool,
                    arrived: Callable[[str], Awaitable[None]]) -> Admitted:
        """Authenticate, and hold the request while the microVM is launched or woken. Cancelled when the client leaves.

        `arrived` is called with the microVM's id between the two, and refuses what is too much: GateThrottled.

        Raises:
            GateDenied: the token does not open this port of this host.
            GateThrottled: the microVM's caps are reached.
            GateUnavailable: nothing can answer.
        """
        ...
