"""Answers without an end: lines as they come, until they end or the client goes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any, Final

NDJSON: Final = b"application/x-ndjson"


@dataclass(frozen=True, slots=True)
class Stream:
    """One JSON document per line."""

    documents: AsyncIterator[Mapping[str, Any]]


async def send_stream(stream: Stream, receive: Callable[[], Awaitable[MutableMapping[str, Any]]],
                      send: Callable[[MutableMapping[str, Any]], Awaitable[None]], request_id: str) -> None:
    """Send until the documents end or the client disconnects, whichever is first."""
    headers = [(b"x-amzn-requestid", request_id.encode()), (b"content-type", NDJSON)]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    async with asyncio.TaskGroup() as tasks:
        sending = tasks.create_task(_send_documents(stream, send), name=f"stream:{request_id}")
        leaving = tasks.create_task(_disconnect(receive), name=f"stream-disconnect:{request_id}")
        await asyncio.wait({sending, leaving}, return_when=asyncio.FIRST_COMPLETED)
        sending.cancel()
        leaving.cancel()


async def _send_documents(stream: Stream, send: Callable[[MutableMapping[str, Any]], Awaitable[None]]) -> None:
    async for document in stream.documents:
        line = json.dumps(document, separators=(",", ":")).encode() + b"\n"
        await send({"type": "http.response.body", "body": line, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


async def _disconnect(receive: Callable[[], Awaitable[MutableMapping[str, Any]]]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
