"""A small HTTP/1.1 client for the guest agent: one request a connection, every byte that comes back untrusted.

A launch makes one call, and a general client costs more than the call itself; the parser is httptools'.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from pathlib import Path
from typing import Any, Final, Protocol

import httptools

from torpor.model.errors import GuestSilent

AGENT_PORT: Final = 1024
CONNECT_ATTEMPT: Final = 0.25
"""Seconds before a lost SYN is given up and sent anew; the kernel's own retransmission waits a second."""
CONNECT_PAUSE: Final = 0.02
MAX_HEADER_BYTES: Final = 16 * 1024
_CHUNK: Final = 256 * 1024

SEND_SILENCE: Final = 60.0
"""Seconds for which the agent may take nothing of a body of unknown length."""

Body = bytes | Path | AsyncIterator[bytes]
"""What a request carries: bytes, a file that is streamed, or what comes from elsewhere piece by piece."""


class _Parser(Protocol):
    """The part of httptools' parser that is used; the package has no types of its own for it."""

    def feed_data(self, data: bytes) -> None: ...

    def get_status_code(self) -> int: ...


class Incoming:
    """An answer whose head has arrived and whose body is still coming."""

    def __init__(self, reader: asyncio.StreamReader) -> None:
        self._reader = reader
        self._chunks: deque[bytes] = deque()
        self._head_bytes = 0
        self._has_head = False
        self._is_complete = False
        make: Callable[[Any], _Parser] = httptools.HttpResponseParser
        self._parser = make(self)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._head_bytes += len(name) + len(value)

    def on_headers_complete(self) -> None:
        self._has_head = True

    def on_body(self, body: bytes) -> None:
        self._chunks.append(body)

    def on_message_complete(self) -> None:
        self._is_complete = True

    @property
    def status(self) -> int:
        return self._parser.get_status_code()

    async def _feed(self) -> None:
        data = await self._reader.read(_CHUNK)
        if not data:
            raise GuestSilent("the agent closed the connection before its answer was complete")
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            raise GuestSilent("the agent's answer is not HTTP") from error

    async def head(self) -> None:
        """Wait for status line and headers."""
        received = 0
        while not self._has_head:
            await self._feed()
            received += 1
            if self._head_bytes > MAX_HEADER_BYTES or received > 64:
                raise GuestSilent("the head of the agent's answer is too long")

    async def chunks(self, silence: float | None = None) -> AsyncGenerator[bytes, None]:
        """The body as it comes; `silence` is how many seconds may pass between two pieces."""
        while True:
            while self._chunks:
                yield self._chunks.popleft()
            if self._is_complete:
                return
            async with asyncio.timeout(silence):
                await self._feed()

    async def read(self, limit: int) -> bytes:
        """The whole body, at most `limit` bytes."""
        body = bytearray()
        async for chunk in self.chunks():
            body += chunk
            if len(body) > limit:
                raise GuestSilent(f"the agent's answer is longer than {limit} bytes")
        return bytes(body)

    async def lines(self, limit: int, silence: float | None) -> AsyncIterator[bytes]:
        """The body cut at newlines, none of them longer than `limit` bytes; a last line without newline is dropped."""
        rest = b""
        async for chunk in self.chunks(silence):
            *whole, rest = (rest + chunk).split(b"\n")
            for line in whole:
                yield line
            if len(rest) > limit:
                raise GuestSilent(f"a line of the agent's answer is longer than {limit} bytes")


async def connect(address: str, port: int, within: float) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection to the agent, tried again until it listens; nothing has been sent yet, so this is always safe.

    Raises:
        GuestSilent: nobody listened within that many seconds.
    """
    loop = asyncio.get_running_loop()
    ends = loop.time() + within
    while True:
        try:
            async with asyncio.timeout(max(0.0, min(CONNECT_ATTEMPT, ends - loop.time()))):
                return await asyncio.open_connection(address, port)
        except (OSError, TimeoutError) as error:
            if loop.time() + CONNECT_PAUSE >= ends:
                raise GuestSilent(f"nothing listens at {address}:{port} after {within:g} s") from error
            await asyncio.sleep(CONNECT_PAUSE)


@contextlib.asynccontextmanager
async def request(address: str, port: int, method: str, target: str, *, body: Body = b"",
                  content_type: str = "application/json", connect_within: float) -> AsyncIterator[Incoming]:
    """Send one request and give its answer; leaving the block closes the connection, which ends a running command.

    Raises:
        GuestSilent: no connection, or it broke.
    """
    reader, writer = await connect(address, port, connect_within)
    try:
        incoming = Incoming(reader)
        head = f"{method} {target} HTTP/1.1\r\nHost: agent\r\nConnection: close\r\n"
        if isinstance(body, AsyncIterator):
            writer.write(f"{head}Content-Type: {content_type}\r\nTransfer-Encoding: chunked\r\n\r\n".encode("ascii"))
            await _send_chunks(writer, body, incoming)
        else:
            await _send_whole(writer, head, content_type, body)
            await incoming.head()
        yield incoming
    except OSError as error:
        if isinstance(error, TimeoutError):
            raise
        raise GuestSilent(f"the connection to the agent at {address} broke") from error
    finally:
        writer.transport.abort()


async def _send_whole(writer: asyncio.StreamWriter, head: str, content_type: str, body: bytes | Path) -> None:
    length = await asyncio.to_thread(_size, body) if isinstance(body, Path) else len(body)
    kind = f"Content-Type: {content_type}\r\n" if length else ""
    writer.write(f"{head}{kind}Content-Length: {length}\r\n\r\n".encode("ascii"))
    if isinstance(body, Path):
        await _send_file(writer, body, length)
    else:
        writer.write(body)
    await writer.drain()


def _size(path: Path) -> int:
    return path.stat().st_size


async def _send_chunks(writer: asyncio.StreamWriter, body: AsyncIterator[bytes], incoming: Incoming) -> None:
    """Return when the answer's head is there, which may be before all has been sent: then it is a refusal."""

    async def send() -> None:
        async for chunk in body:
            if chunk:
                writer.write(b"%x\r\n%b\r\n" % (len(chunk), chunk))
                async with asyncio.timeout(SEND_SILENCE):
                    await writer.drain()
        writer.write(b"0\r\n\r\n")

    sending, answering = asyncio.ensure_future(send()), asyncio.ensure_future(incoming.head())
    try:
        await asyncio.wait((sending, answering), return_when=asyncio.FIRST_COMPLETED)
        if not answering.done() and sending.exception() is not None:
            failure = sending.exception()
            assert failure is not None
            if not isinstance(failure, ConnectionError):  # then the answer may still be on its way
                raise failure
        async with asyncio.timeout(SEND_SILENCE):
            await answering
    except TimeoutError as error:
        raise GuestSilent(f"the agent took nothing for {SEND_SILENCE:g} s") from error
    finally:
        for task in (sending, answering):
            task.cancel()
        await asyncio.gather(sending, answering, return_exceptions=True)


async def _send_file(writer: asyncio.StreamWriter, path: Path, length: int) -> None:
    with path.open("rb") as source:
        left = length
        while left > 0:
            chunk = await asyncio.to_thread(source.read, min(_CHUNK, left))
            if not chunk:
                raise OSError(f"{path} became shorter while it was sent")
            writer.write(chunk)
            await writer.drain()
            left -= len(chunk)
