"""Connections to the sockets of VMMs."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from typing import Final

RETRY: Final = 0.01


async def connect(path: Path) -> socket.socket:
    """A connected socket; waits, within the caller's deadline, while the VMM's queue of connections is full.

    asyncio takes a full queue (EAGAIN) for a connection under way, which on a Unix socket it is not.

    Raises:
        OSError: nobody listens.
    """
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        while True:
            try:
                made.connect(str(path))
                return made
            except BlockingIOError:
                await asyncio.sleep(RETRY)
    except BaseException:
        made.close()
        raise
