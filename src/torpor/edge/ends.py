"""Hears from Envoy, through a named pipe, of every request that has ended.

Envoy keeps its lines for up to `FLUSH` before it writes them, so what is counted from them lags by that much.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

FLUSH = 0.02
"""Seconds."""


@dataclass(frozen=True, slots=True)
class Ended:
    request_id: str
    destination: str
    """`address:port` as the authorizer answered; `-` when Envoy did not wait for its answer, or got none."""
    via: str
    status: int
    details: str
    """Envoy's word for who made the answer and why; `via_upstream` is the application."""


class Ends:
    """The reading end. `heard` is called in the event loop; it must not block."""

    def __init__(self, pipe: Path, heard: Callable[[Ended], None]) -> None:
        self._pipe = pipe
        self._heard = heard
        self._transport: asyncio.ReadTransport | None = None

    async def start(self) -> None:
        """Make the pipe. Before Envoy starts: it waits for a reader when it opens a pipe."""
        await asyncio.to_thread(self._make)
        # Read and write, so that it has no end when Envoy is restarted.
        file = os.fdopen(os.open(self._pipe, os.O_RDWR | os.O_NONBLOCK), "rb", buffering=0)
        self._transport, _ = await asyncio.get_running_loop().connect_read_pipe(lambda: _Lines(self._heard), file)

    async def stop(self) -> None:
        if self._transport is not None:
            self._transport.close()
            self._transport = None
        await asyncio.to_thread(self._pipe.unlink, missing_ok=True)

    def _make(self) -> None:
        if self._pipe.is_fifo():
            return  # of a Torpor that was killed: its Envoy may live and write into it
        self._pipe.unlink(missing_ok=True)
        os.mkfifo(self._pipe, 0o600)


class _Lines(asyncio.Protocol):
    def __init__(self, heard: Callable[[Ended], None]) -> None:
        self._heard = heard
        self._received = b""

    def data_received(self, data: bytes) -> None:
        *lines, self._received = (self._received + data).split(b"\n")
        for line in lines:
            if (ended := parse(line.decode(errors="replace"))) is not None:
                self._heard(ended)


def parse(line: str) -> Ended | None:
    """None for a line that is none of ours."""
    words = line.split(" ", 4)
    if len(words) != 5 or words[0] == "-" or not words[3].isdecimal():
        return None
    return Ended(words[0], words[1], words[2], int(words[3]), words[4])
