"""A WebSocket of `/torpor/v1`: signed like every request, refused like every request until it is accepted."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from torpor.api.extras.request import Extra

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class SocketClosed(Exception):
    """The client has closed it, or is gone."""


class Socket:
    """One connection; `accept` it before anything else."""

    def __init__(self, receive: Receive, send: Send, on_accept: Callable[[], Awaitable[None]]) -> None:
        self._receive = receive
        self._send = send
        self._on_accept = on_accept
        self.is_open = False

    async def accept(self) -> None:
        await self._on_accept()
        await self._send({"type": "websocket.accept"})
        self.is_open = True

    async def receive(self) -> bytes | str:
        """Raises SocketClosed."""
        message = await self._receive()
        if message["type"] == "websocket.disconnect":
            self.is_open = False
            raise SocketClosed
        text: str | None = message.get("text")
        return text if text is not None else bytes(message.get("bytes") or b"")

    async def send(self, message: bytes | str) -> None:
        """Raises SocketClosed."""
        kind = "text" if isinstance(message, str) else "bytes"
        try:
            await self._send({"type": "websocket.send", kind: message})
        except Exception as error:  # uvicorn's own kinds differ by protocol
            self.is_open = False
            raise SocketClosed from error

    async def close(self, code: int, reason: str = "") -> None:
        if self.is_open:
            self.is_open = False
            await self._send({"type": "websocket.close", "code": code, "reason": reason})


SocketRoute = tuple[str, str, Callable[[Extra, Socket], Awaitable[None]]]
