"""Blocking work in a thread that is told to stop, and waited for, when its caller gives up."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class GivenUp(Exception):
    """The caller does not want the result any more."""


async def in_thread(work: Callable[[Callable[[], None]], T]) -> T:
    """Run `work(checkpoint)`; `checkpoint()` raises GivenUp once this call is cancelled.

    A cancelled call returns only when the thread is done, so nothing writes behind the back of who cleans up.
    """
    given_up = threading.Event()

    def checkpoint() -> None:
        if given_up.is_set():
            raise GivenUp

    running = asyncio.ensure_future(asyncio.to_thread(work, checkpoint))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        given_up.set()
        await asyncio.wait([running])
        if not running.cancelled():
            running.exception()
        raise
