"""Answers without an end: lines as they come, until they end or the client goes."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any, Final

NDJSON: Final = b"application/x-ndjson"

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Stream:
    """One JSON document per line."""

    documents: AsyncIterator[Mapping[str, Any]]


async def send_stream(stream: Stream, receive: Receive, send: Send, request_id: str) -> None:
    """Send until the documents end or the client disconnects, whichever is first."""
    headers = [(b"x-amzn-requestid", request_id.encode()), (b"content-type", NDJSON)]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    async with asyncio.TaskGroup() as tasks:
        sending = tasks.create_task(_send_documents(stream, send, request_id), name=f"stream:{request_id}")
        leaving = tasks.create_task(_disconnect(receive), name=f"stream-disconnect:{request_id}")
        await asyncio.wait({sending, leaving}, return_when=asyncio.FIRST_COMPLETED)
        sending.cancel()
        leaving.cancel()


async def _send_documents(stream: Stream, send: Send, request_id: str) -> None:
    try:
        async for document in stream.documents:
            await send({"type": "http.response.body", "body": _line(document), "more_body": True})
    except Exception:
        # The status is out already: a last line is the only place left to say it.
        _log.exception("request %s failed while it was streaming", request_id, extra={"request_id": request_id})
        last = _line({"error": "InternalServerException", "requestId": request_id})
        await send({"type": "http.response.body", "body": last, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


def _line(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode() + b"\n"


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
