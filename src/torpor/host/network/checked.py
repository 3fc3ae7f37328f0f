"""Looks at the first bytes of a guest's connection to the web, and carries it on when it may go where it is going."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import struct
from collections.abc import Awaitable, Callable
from ipaddress import IPv4Address
from typing import Final

from torpor.host.network.hello import More, host_header, server_name

GREETING_TIMEOUT: Final = 10.0
CONNECT_TIMEOUT: Final = 10.0
CONNECTIONS: Final = 256
"""Of one microVM at a time."""
_CHUNK: Final = 128 * 1024
_SO_ORIGINAL_DST: Final = 80
"""linux/netfilter_ipv4.h: where a redirected connection was going."""
log: Final = logging.getLogger(__name__)

Connect = Callable[[str, int], Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]]
MayConnect = Callable[[str, str | None, IPv4Address, int], bool]


class CheckedConnections:
    def __init__(self, may_connect: MayConnect, connect: Connect) -> None:
        self._may_connect = may_connect
        self._connect = connect
        self._open = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, to its end."""
        self._open += 1
        try:
            if self._open <= CONNECTIONS:
                await self._serve(reader, writer)
        except (OSError, TimeoutError, asyncio.IncompleteReadError):
            pass
        finally:
            self._open -= 1
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        address, port = _destination(writer.get_extra_info("socket"))
        how, read = ("http", host_header) if port == 80 else ("tls", server_name)
        async with asyncio.timeout(GREETING_TIMEOUT):
            greeting, host = await _greeting(reader, read)
        if not self._may_connect(how, host, address, port):
            return
        async with asyncio.timeout(CONNECT_TIMEOUT):
            far_reader, far_writer = await self._connect(str(address), port)
        try:
            far_writer.write(greeting)
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(_copy(reader, far_writer))
                tasks.create_task(_copy(far_reader, writer))
        except* OSError:
            pass
        finally:
            far_writer.transport.abort()


async def _greeting(reader: asyncio.StreamReader, read: Callable[[bytes], str | None]) -> tuple[bytes, str | None]:
    received = b""
    while True:
        part = await reader.read(_CHUNK)
        received += part
        try:
            return received, read(received)
        except More:
            if not part:
                return received, None


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(_CHUNK):
        writer.write(data)
        await writer.drain()
    with contextlib.suppress(OSError):
        writer.write_eof()


def _destination(connection: socket.socket) -> tuple[IPv4Address, int]:
    """Raises OSError when it was not redirected."""
    _, port, address = struct.unpack("!HH4s8x", connection.getsockopt(socket.SOL_IP, _SO_ORIGINAL_DST, 16))
    return IPv4Address(address), port
