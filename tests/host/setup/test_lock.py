"""Two setups of one data directory do not run at once."""

from __future__ import annotations

import asyncio
from pathlib import Path

from torpor.host.setup.lock import alone


async def test_the_second_setup_waits_for_the_first_and_says_so(tmp_path: Path) -> None:
    events: list[str] = []
    is_waiting = asyncio.Event()

    def on_wait(said: str) -> None:
        events.append(said)
        is_waiting.set()

    async def second() -> None:
        async with alone(tmp_path, on_wait):
            events.append("second")

    async with asyncio.TaskGroup() as tasks, alone(tmp_path, on_wait):
        tasks.create_task(second())
        await is_waiting.wait()
        events.append("first")
    assert [event.split(" (")[0] for event in events] == ["waiting for another setup", "first", "second"]
