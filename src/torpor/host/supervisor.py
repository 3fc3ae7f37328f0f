"""Tasks that watch over VMs between `start` and `stop`, all inside one task group."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

log = logging.getLogger(__name__)


class Supervisor:
    """Owns watching tasks. One that fails is logged under its name and does not take the others with it."""

    def __init__(self) -> None:
        self._stopping = asyncio.Event()
        self._group: asyncio.TaskGroup | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._home: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._stopping.clear()
        ready = asyncio.Event()
        self._home = asyncio.create_task(self._run(ready), name="host supervisor")
        await ready.wait()

    async def _run(self, ready: asyncio.Event) -> None:
        async with asyncio.TaskGroup() as self._group:
            ready.set()
            await self._stopping.wait()
            for task in self._tasks:
                task.cancel()

    async def stop(self) -> None:
        """Cancel all tasks and wait for them. Repeating it does nothing."""
        self._stopping.set()
        if self._home is not None:
            await self._home
            self._home = self._group = None

    def spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        if self._group is None or self._stopping.is_set():
            work.close()
            raise RuntimeError("the host is not started")
        task = self._group.create_task(_logged(work, name), name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(lambda _: work.close())  # a task cancelled before its first turn never awaited it
        return task


async def _logged(work: Coroutine[Any, Any, None], name: str) -> None:
    try:
        await work
    except Exception:
        log.exception("%s failed", name)


async def ended(task: asyncio.Task[None] | None) -> None:
    """Cancel a task of the supervisor and wait until it is gone."""
    if task is None or task is asyncio.current_task():
        return
    task.cancel()
    await asyncio.wait([task])
