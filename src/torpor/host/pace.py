"""How fast one microVM's lines are taken.

Whoever takes them slower than they come makes the guest's agent keep them, drop the oldest when it has too many, and
say how many those were (guest/PROTOCOL.md, `stream`). So a flood costs the host no more than its pace.
"""

from __future__ import annotations

import asyncio
import time
from typing import Final

BURST: Final = 8
"""Seconds' worth that may come at once after a quiet time."""
LINE_COST: Final = 64
"""Bytes that a line costs besides its text."""


class Pace:
    """`per_second` in bytes; 0 is no limit."""

    def __init__(self, per_second: int) -> None:
        self._per_second = per_second
        self._left = float(per_second * BURST)
        self._at = time.monotonic()

    async def take(self, size_bytes: int) -> None:
        """Account for a line, and wait when it came too early."""
        if not self._per_second:
            return
        now = time.monotonic()
        self._left = min(self._per_second * BURST, self._left + (now - self._at) * self._per_second)
        self._at = now
        self._left -= size_bytes + LINE_COST
        if self._left < 0:
            await asyncio.sleep(-self._left / self._per_second)
