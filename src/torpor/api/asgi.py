"""What uvicorn gives and takes: headers, bodies, whole answers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, MutableMapping, Sequence
from typing import Any, Final

from torpor.api import errors
from torpor.api.errors import Answer

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

MAX_BODY_BYTES: Final = 6 * 1024 * 1024
"""As AWS Lambda's control plane."""
MAX_HEADER_BYTES: Final = 64 * 1024


class Disconnected(Exception):
    """The client went away before it had sent its request."""


def headers_of(raw: Sequence[tuple[bytes, bytes]]) -> dict[str, str]:
    """By name; repeated ones joined as a signature joins them. Raises HeadersTooLarge."""
    headers: dict[str, str] = {}
    size = 0
    for name_bytes, value_bytes in raw:
        size += len(name_bytes) + len(value_bytes)
        name, value = name_bytes.decode("latin-1"), value_bytes.decode("latin-1")
        headers[name] = f"{headers[name]},{value}" if name in headers else value
    if size > MAX_HEADER_BYTES:
        raise errors.HeadersTooLarge
    return headers


async def body_of(receive: Receive, headers: Mapping[str, str]) -> bytes:
    """The whole body.

    Raises:
        TooLarge: before or while it is read.
        Disconnected: the client went away.
    """
    declared = headers.get("content-length", "0")
    if declared.isdecimal() and int(declared[:20]) > MAX_BODY_BYTES:
        raise errors.TooLarge(MAX_BODY_BYTES)
    parts: list[bytes] = []
    size = 0
    async for part in pieces_of(receive):
        size += len(part)
        if size > MAX_BODY_BYTES:
            raise errors.TooLarge(MAX_BODY_BYTES)
        parts.append(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


async def pieces_of(receive: Receive) -> AsyncIterator[bytes]:
    """The body as it comes, of any length. Raises Disconnected."""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Disconnected
        yield message.get("body", b"")
        if not message.get("more_body"):
            return


async def send_answer(send: Send, answer: Answer, request_id: str) -> None:
    headers = [(b"x-amzn-requestid", request_id.encode()), *answer.headers]
    if answer.status != 204:
        headers += [(b"content-type", answer.content_type), (b"content-length", str(len(answer.body)).encode())]
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": answer.body})


async def refuse_socket(send: Send, answer: Answer, request_id: str) -> None:
    """The same to a WebSocket's handshake."""
    headers = [(b"x-amzn-requestid", request_id.encode()), (b"content-type", answer.content_type), *answer.headers]
    await send({"type": "websocket.http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "websocket.http.response.body", "body": answer.body})


async def lifespan(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return
