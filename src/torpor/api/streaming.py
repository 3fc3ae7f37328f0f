"""Answers without an end: lines as they come, until they end or the client goes."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, MutableMapping
from contextlib import aclosing
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


@dataclass(frozen=True, slots=True)
class Download:
    """Bytes of any length. What is raised before the first of them is an answer of its own."""

    chunks: AsyncGenerator[bytes, None]
    content_type: bytes


class BrokenOff(Exception):
    """A download failed after it had begun: the server cuts the connection, so that nobody takes it for whole."""


async def send_download(download: Download, receive: Receive, send: Send, request_id: str) -> None:
    """Send until its end or until the client leaves. Raises BrokenOff."""
    async with aclosing(download.chunks):
        first = await anext(download.chunks, b"")
        headers = [(b"x-amzn-requestid", request_id.encode()), (b"content-type", download.content_type)]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        sending = asyncio.create_task(_send_chunks(first, download, send), name=f"download:{request_id}")
        leaving = asyncio.create_task(_disconnect(receive), name=f"download-disconnect:{request_id}")
        try:
            await asyncio.wait({sending, leaving}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (sending, leaving):
                task.cancel()
            await asyncio.gather(sending, leaving, return_exceptions=True)
    if not sending.cancelled() and (failure := sending.exception()) is not None:
        raise BrokenOff(request_id) from failure


async def _send_chunks(first: bytes, download: Download, send: Send) -> None:
    await send({"type": "http.response.body", "body": first, "more_body": True})
    async for chunk in download.chunks:
        await send({"type": "http.response.body", "body": chunk, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


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
