"""A command in a guest over one connection to its agent: frames both ways (guest/PROTOCOL.md, `session`)."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct
from collections.abc import Callable
from typing import Final

from torpor.host.agent_http import AGENT_PORT, connect
from torpor.host.session import Output, SessionOrder
from torpor.model.errors import GuestRefused, GuestSilent

UPGRADE: Final = "torpor-session"
LONGEST_FRAME: Final = 1 << 20
OPEN_TIMEOUT: Final = 30.0
"""Seconds; crun needs about one on an emulated CPU."""
MAX_REFUSAL_BYTES: Final = 64 * 1024
TOO_OLD: Final = ("its image was built by a Torpor that had no sessions; build a new version of it")
_INPUT, _RESIZE, _END = 0, 1, 2
_STREAMS: Final = ("stdout", "stderr")
_EXIT: Final = 2
_NO_LINGER: Final = struct.pack("ii", 1, 0)


class GuestSession:
    """See `Session`. The guest may be hostile: frames are checked for kind and length."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter,
                 on_close: Callable[[GuestSession], None]) -> None:
        self._reader = reader
        self._writer = writer
        self._on_close = on_close
        self._is_closed = False

    async def read(self) -> Output | int:
        try:
            kind, length = struct.unpack(">BI", await self._reader.readexactly(5))
            if length > LONGEST_FRAME:
                raise GuestSilent("the guest agent sent a frame that is too long")
            content = await self._reader.readexactly(length)
        except (OSError, asyncio.IncompleteReadError) as error:
            raise GuestSilent("the connection to the guest ended before the command") from error
        if kind == _EXIT and length == 1:
            return content[0]
        if kind < len(_STREAMS):
            return Output(_STREAMS[kind], content)
        raise GuestSilent("the guest agent sent a frame that is none")

    async def write(self, data: bytes) -> None:
        for begin in range(0, len(data), LONGEST_FRAME):
            await self._send(_INPUT, data[begin : begin + LONGEST_FRAME])

    async def end_input(self) -> None:
        await self._send(_END, b"")

    async def resize(self, columns: int, rows: int) -> None:
        await self._send(_RESIZE, struct.pack(">HH", min(max(columns, 0), 65535), min(max(rows, 0), 65535)))

    async def close(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        with contextlib.suppress(OSError):
            # A FIN would queue behind input that the command does not read, and the command would live on.
            self._writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
        self._writer.transport.abort()
        self._on_close(self)

    async def _send(self, kind: int, content: bytes) -> None:
        # The reader is who says that the session has ended.
        with contextlib.suppress(OSError):
            self._writer.write(struct.pack(">BI", kind, len(content)) + content)
            await self._writer.drain()


async def open_session(address: str, order: SessionOrder, on_close: Callable[[GuestSession], None],
                       port: int = AGENT_PORT) -> GuestSession:
    """Start the command.

    Raises:
        GuestSilent: no connection, no answer in time, or nonsense.
        GuestRefused: 409 the application does not run, 422 the command cannot be started, 404 the agent is too old.
    """
    try:
        async with asyncio.timeout(OPEN_TIMEOUT):
            reader, writer = await connect(address, port, OPEN_TIMEOUT)
            try:
                await _ask(reader, writer, order)
            except BaseException:
                writer.transport.abort()
                raise
    except TimeoutError as error:
        raise GuestSilent(f"the guest agent did not start the command within {OPEN_TIMEOUT:g} s") from error
    except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
        raise GuestSilent("the guest agent broke off while the command was started") from error
    return GuestSession(reader, writer, on_close)


async def _ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, order: SessionOrder) -> None:
    body = json.dumps({
        "args": list(order.args), "env": [f"{name}={value}" for name, value in order.environment.items()],
        "cwd": order.cwd, "user": order.user, "terminal": order.has_terminal,
    }).encode()
    head = (f"POST /v1/session HTTP/1.1\r\nHost: agent\r\nConnection: Upgrade\r\nUpgrade: {UPGRADE}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n")
    writer.write(head.encode("ascii") + body)
    await writer.drain()
    status_line, *headers = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    words = status_line.split(" ", 2)
    if len(words) < 2 or words[0] != "HTTP/1.1" or not (words[1].isdecimal() and len(words[1]) == 3):
        raise GuestSilent("the agent's answer is not HTTP")
    if (status := int(words[1])) == 101:
        return
    if status == 404:
        raise GuestRefused("open a session", status, TOO_OLD)
    raise GuestRefused("open a session", status, await _refusal(reader, headers))


async def _refusal(reader: asyncio.StreamReader, headers: list[str]) -> str:
    lengths = [line.partition(":")[2].strip() for line in headers if line.lower().startswith("content-length:")]
    length = int(lengths[0]) if lengths and lengths[0].isdecimal() and len(lengths[0]) < 8 else 0
    content = await reader.readexactly(min(length, MAX_REFUSAL_BYTES))
    try:
        said = json.loads(content)["error"]
    except (ValueError, KeyError, TypeError, RecursionError):
        said = "(no reason)"
    return "".join(c if c.isprintable() else " " for c in str(said)[:500])
