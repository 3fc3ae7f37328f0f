"""QEMU's monitor protocol: JSON lines over a Unix socket, one answer for each command, events in between.

QEMU serves one client at a time and listens again when it leaves, so a monitor connects when it is first needed and
again after anything that makes the order of answers doubtful (a deadline, a broken line).
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, cast

from torpor.model.errors import VmmFailed
from torpor.vmm.unix import connect

COMMAND_TIMEOUT: Final = 5.0
"""Seconds a command may take, unless its caller knows better."""
MAX_LINE_BYTES: Final = 4 * 1024 * 1024
"""QEMU's longest answers are some hundred KiB; more means that it is not QEMU that talks."""

log = logging.getLogger(__name__)

Message = dict[str, Any]


class QmpParser:
    """Turns bytes as they come into messages."""

    def __init__(self) -> None:
        self._pending = bytearray()

    def feed(self, data: bytes) -> list[Message]:
        """The messages that are complete now. Raises ValueError for what is not QMP."""
        searched_from = len(self._pending)
        self._pending += data
        if self._pending.find(b"\n", searched_from) < 0:
            if len(self._pending) > MAX_LINE_BYTES:
                raise ValueError(f"a line of more than {MAX_LINE_BYTES} bytes")
            return []
        *lines, rest = bytes(self._pending).split(b"\n")
        self._pending = bytearray(rest)
        return [_message(line) for line in lines if line.strip()]


def _message(line: bytes) -> Message:
    try:
        message = json.loads(line)
    except RecursionError as error:
        raise ValueError("a message nested too deeply") from error
    if not isinstance(message, dict):
        raise ValueError("a message that is not an object")
    return message


class _Connection(asyncio.Protocol):
    """One connection: the greeting, then answers in the order of the commands."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.greeting: asyncio.Future[Message] = loop.create_future()
        self._answers: dict[int, asyncio.Future[Message]] = {}
        self._parser = QmpParser()
        self._transport: asyncio.Transport | None = None
        self._next_id = 0
        self.is_open = True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are no subclasses of asyncio's.
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        try:
            messages = self._parser.feed(data)
        except ValueError as error:
            self.close(f"the VMM sent {error}")
            return
        for message in messages:
            self._take(message)

    def connection_lost(self, exc: Exception | None) -> None:
        self.close(str(exc) if exc else "the VMM closed its monitor")

    def close(self, why: str) -> None:
        self.is_open = False
        if self._transport is not None:
            self._transport.close()
        for waiting in [self.greeting, *self._answers.values()]:
            if not waiting.done():
                waiting.set_exception(ConnectionError(why))
                waiting.exception()  # somebody may have stopped waiting; that is no error
        self._answers.clear()

    async def ask(self, command: str, arguments: Mapping[str, Any]) -> Message:
        if not self.is_open or self._transport is None:
            raise ConnectionError("the monitor is closed")
        self._next_id += 1
        answer: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self._answers[self._next_id] = answer
        words = {"execute": command, "arguments": dict(arguments), "id": self._next_id}
        self._transport.write(json.dumps(words).encode() + b"\n")
        return await answer

    def _take(self, message: Message) -> None:
        if "QMP" in message:
            if not self.greeting.done():
                self.greeting.set_result(message)
        elif "event" in message:
            level = logging.WARNING if message["event"] in ("BLOCK_IO_ERROR", "GUEST_PANICKED") else logging.DEBUG
            log.log(level, "QEMU event %s %s", message["event"], message.get("data", {}))
        else:
            answer = self._answers.pop(message["id"], None) if isinstance(message.get("id"), int) else None
            if answer is not None and not answer.done():
                answer.set_result(message)


class Qmp:
    """The monitor of one VMM. Commands of several tasks are asked one after another."""

    def __init__(self, socket: Path) -> None:
        self._socket = socket
        self._connection: _Connection | None = None
        self._lock = asyncio.Lock()

    async def command(self, name: str, /, *, timeout: float = COMMAND_TIMEOUT, **arguments: Any) -> Any:
        """Run a command and return what it returns; `timeout` is in seconds and covers connecting.

        Raises:
            VmmFailed: naming the command: refused by QEMU, not answered in time, or nobody there.
        """
        try:
            async with asyncio.timeout(timeout), self._lock:
                connection = await self._connected()
                try:
                    answer = await connection.ask(name, arguments)
                except asyncio.CancelledError:
                    connection.close(f"{name} was given up")
                    raise
        except TimeoutError as error:
            raise VmmFailed(f"the VMM did not answer {name} within {timeout:g} s") from error
        except OSError as error:
            raise VmmFailed(f"the VMM could not be asked to {name}: {error}") from error
        if "error" in answer:
            raise VmmFailed(f"the VMM refused {name}: {_description(answer['error'])}")
        return answer.get("return")

    def close(self) -> None:
        """Leave the monitor; QEMU listens for the next client."""
        if self._connection is not None:
            self._connection.close("closed by Torpor")
            self._connection = None

    async def _connected(self) -> _Connection:
        if self._connection is not None and self._connection.is_open:
            return self._connection
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_unix_connection(_Connection, sock=await connect(self._socket))
        try:
            await connection.greeting
            await connection.ask("qmp_capabilities", {})
        except BaseException:
            connection.close("the greeting did not come")
            raise
        self._connection = connection
        return connection


def _description(error: object) -> str:
    text = error.get("desc") if isinstance(error, dict) else None
    return text if isinstance(text, str) else "without saying why"
