"""Firecracker's API, played by a server that answers what a test says."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

NO_CONTENT = b"HTTP/1.1 204 \r\nServer: Firecracker API\r\nConnection: keep-alive\r\n\r\n"


def answer(status: int, body: str) -> bytes:
    return f"HTTP/1.1 {status} \r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()


def in_state(state: object) -> bytes:
    return answer(200, json.dumps({"id": "x", "state": state, "vmm_version": "1.12.1"}))


@dataclass
class Played:
    answers: list[bytes | None] = field(default_factory=list)
    """None: silence; empty: the connection is closed."""
    asked: list[tuple[str, object]] = field(default_factory=list)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        lines = head.splitlines()
        length = next((int(line.split(":")[1]) for line in lines if line.startswith("Content-Length")), 0)
        body = json.loads(await reader.readexactly(length)) if length else None
        self.asked.append((" ".join(lines[0].split()[:2]), body))
        content = self.answers.pop(0)
        if content is None:
            await reader.read()
        else:
            for number in range(0, len(content), 7):  # answers may come in pieces
                writer.write(content[number : number + 7])
                await writer.drain()
        writer.close()


@contextlib.asynccontextmanager
async def played_firecracker(socket: Path) -> AsyncIterator[Played]:
    world = Played()
    socket.parent.mkdir(parents=True, exist_ok=True)
    server = await asyncio.start_unix_server(world.serve, socket)
    try:
        yield world
    finally:
        server.close()
        await server.wait_closed()
