"""Waiting for what happens beside a test."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable


async def until(
    is_so: Callable[[], bool], *, seconds: float = 10, meanwhile: Callable[[], Awaitable[None]] | None = None
) -> None:
    """Poll; `meanwhile` is done between two looks. Raises TimeoutError."""
    async with asyncio.timeout(seconds):
        while not is_so():
            if meanwhile is not None:
                await meanwhile()
            await asyncio.sleep(0.005)
