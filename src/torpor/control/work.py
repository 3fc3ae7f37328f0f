"""Work that goes on after the call that began it has been answered."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final, TypeVar

from torpor.model.clock import Clock

T = TypeVar("T")
RESTART_AFTER: Final = 1.0
"""Seconds."""
log: Final = logging.getLogger(__name__)


async def lasting(clock: Clock, name: str, run: Callable[[], Awaitable[None]]) -> None:
    """Run what is to go on for ever. It begins again after an error it did not expect, which ends no service."""
    while True:
        try:
            await run()
            return
        except Exception:
            log.exception("%s failed and begins again", name)
        await clock.sleep(RESTART_AFTER)


class Work:
    """Tasks of the service, owned by `run`: named, none lost, all ended with it."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    def spawn(self, doing: Coroutine[Any, Any, T], name: str) -> asyncio.Task[T]:
        """Start it. Who waits for the task shields it: a caller that goes away does not stop the work.

        An error belongs to whoever waits; when nobody does, it is logged.
        """
        task = asyncio.get_running_loop().create_task(doing, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    async def run(self) -> None:
        """For ever; when cancelled, everything under way is cut off, as by a crash, and has ended on return."""
        try:
            await asyncio.Event().wait()
        finally:
            while self._tasks:
                for task in self._tasks:
                    task.cancel()
                await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def is_idle(self) -> bool:
        return not self._tasks

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.info("%s: %s", task.get_name(), error)
