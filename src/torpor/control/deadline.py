"""A deadline on the injected clock."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from datetime import timedelta
from typing import Any, TypeVar

from torpor.model.clock import Clock

T = TypeVar("T")


async def within(clock: Clock, limit: timedelta, work: Coroutine[Any, Any, T]) -> T:
    """What `work` returns or raises; work that takes longer is cancelled, and awaited until it is gone.

    Raises:
        TimeoutError: it took longer.
    """
    doing = asyncio.create_task(work)
    timer = asyncio.create_task(clock.sleep(limit.total_seconds()))
    try:
        await asyncio.wait({doing, timer}, return_when=asyncio.FIRST_COMPLETED)
        if doing.done():
            return doing.result()
        raise TimeoutError
    finally:
        for task in (doing, timer):
            task.cancel()
        await asyncio.gather(doing, timer, return_exceptions=True)
