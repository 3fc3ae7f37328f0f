"""What the VMMs of a host write into their run directories."""

from __future__ import annotations

import asyncio
import contextlib
from datetime import timedelta
from pathlib import Path

from torpor.host.outputs import LOOK, keep_outputs_small
from torpor.model.clock import VirtualClock
from torpor.vmm.outputs import LARGEST


async def test_directories_that_cannot_be_read_for_once_are_looked_through_the_next_time(tmp_path: Path) -> None:
    clock, console = VirtualClock(), tmp_path / "later/one/console"
    keeping = asyncio.create_task(keep_outputs_small(tmp_path / "later", clock))
    for _ in range(3):
        await clock.advance(timedelta(seconds=LOOK))
        await asyncio.sleep(0.01)
    console.parent.mkdir(parents=True)
    console.write_bytes(b"x" * (LARGEST + 4096))
    async with asyncio.timeout(30):
        while console.stat().st_size:
            await clock.advance(timedelta(seconds=LOOK))
            await asyncio.sleep(0.01)
    keeping.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await keeping


async def test_outputs_of_all_vmms_stay_small_for_as_long_as_the_host_runs(tmp_path: Path) -> None:
    clock = VirtualClock()
    consoles = [tmp_path / name / "console" for name in ("one", "two")]
    keeping = asyncio.create_task(keep_outputs_small(tmp_path, clock))
    for _ in range(2):
        for console in consoles:
            console.parent.mkdir(exist_ok=True)
            console.write_bytes(b"x" * (LARGEST + 4096))
        async with asyncio.timeout(30):
            while any(console.stat().st_size for console in consoles):
                await clock.advance(timedelta(seconds=LOOK))
                await asyncio.sleep(0.01)
    keeping.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await keeping
