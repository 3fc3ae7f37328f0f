"""The gRPC service of the stub application. Messages are plain bytes, so a client needs no generated code.

    /torpor.Stub/Say      unary: the message back
    /torpor.Stub/Repeat   server stream: `COUNT SECONDS` gives COUNT numbered messages, SECONDS apart
    /torpor.Stub/Join     client stream: all messages, joined
    /torpor.Stub/Chat     both ways: each message back when it has come
    /torpor.Stub/Refuse   status 9 with the message as its text

The trailers of each answer carry `count`, the requests the application has seen. The standard library alone is needed.
"""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from typing import Any, Final
from urllib.parse import quote

PREFIX: Final = "/torpor.Stub/"
OK: Final = 0
FAILED_PRECONDITION: Final = 9
UNIMPLEMENTED: Final = 12

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class GrpcStub:
    """An ASGI application for paths under `PREFIX`; `count` is told of each request and says how many there were."""

    def __init__(self, count: Callable[[Scope], int]) -> None:
        self._count = count

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        count = self._count(scope)
        await send({"type": "http.response.start", "status": 200, "trailers": True,
                    "headers": [(b"content-type", b"application/grpc")]})
        status, text = OK, ""
        messages = _messages(receive)
        method = scope["path"].removeprefix(PREFIX)
        if method == "Refuse":
            status, text = FAILED_PRECONDITION, (await anext(messages)).decode()
        elif (answers := _answers(method, messages)) is None:
            status, text = UNIMPLEMENTED, f"no method {method}"
        else:
            async for answer in answers:
                frame = b"\x00" + len(answer).to_bytes(4) + answer
                await send({"type": "http.response.body", "body": frame, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
        await send({"type": "http.response.trailers", "headers": [
            (b"grpc-status", str(status).encode()), (b"grpc-message", quote(text, safe=" ").encode()),
            (b"count", str(count).encode()),
        ]})


def _answers(method: str, messages: AsyncIterator[bytes]) -> AsyncIterator[bytes] | None:
    if method in ("Say", "Chat"):
        return messages
    if method == "Repeat":
        return _repeat(messages)
    return _join(messages) if method == "Join" else None


async def _repeat(messages: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    count, seconds = (await anext(messages)).decode().split()
    for number in range(int(count)):
        if number:
            await asyncio.sleep(float(seconds))
        yield str(number).encode()


async def _join(messages: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield b"".join([message async for message in messages])


async def _messages(receive: Receive) -> AsyncIterator[bytes]:
    """The length-prefixed messages of a request, as they become whole."""
    received, has_more = b"", True
    while has_more or len(received) >= 5:
        size = int.from_bytes(received[1:5]) if len(received) >= 5 else 0
        if len(received) >= 5 + size and len(received) >= 5:
            message = received[5 : 5 + size]
            yield gzip.decompress(message) if received[0] else message
            received = received[5 + size :]
        elif has_more:
            part = await receive()
            if part["type"] == "http.disconnect":
                return
            received += part.get("body", b"")
            has_more = part.get("more_body", False)
        else:
            return
