"""Clocks that tests and the simulated engine move."""

from __future__ import annotations

import asyncio
import time
from datetime import timedelta

from hypothesis import given
from hypothesis import strategies as st

from torpor.model.clock import MovableClock, VirtualClock

SECONDS = st.floats(min_value=0, max_value=1000)


@given(st.lists(SECONDS, min_size=1, max_size=20), SECONDS)
def test_sleepers_wake_at_their_own_moments_and_in_order(naps: list[float], advance: float) -> None:
    async def scene() -> None:
        clock = VirtualClock()
        woken: list[tuple[float, float]] = []

        async def sleeper(nap: float) -> None:
            await clock.sleep(nap)
            woken.append((nap, clock.monotonic()))

        tasks = [asyncio.create_task(sleeper(nap)) for nap in naps]
        await clock.advance(timedelta(seconds=advance))
        end = clock.monotonic()
        assert all(at == nap for nap, at in woken)
        assert [nap for nap, _ in woken] == sorted(nap for nap in naps if nap <= end)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(scene())


async def test_a_movable_clock_runs_by_itself() -> None:
    clock = MovableClock()
    before, wall = clock.monotonic(), clock.now()
    await clock.sleep(0.02)
    assert clock.monotonic() - before >= 0.02
    assert clock.now() - wall >= timedelta(seconds=0.02)


async def test_a_movable_clock_passes_eight_hours_at_once_when_told_to() -> None:
    clock = MovableClock()
    order: list[str] = []

    async def nap(name: str, seconds: float) -> None:
        await clock.sleep(seconds)
        order.append(name)

    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        for name, seconds in (("late", 28800), ("early", 60), ("soon", 0.01)):
            tasks.create_task(nap(name, seconds))
        started = time.monotonic()
        await clock.advance(timedelta(hours=8, seconds=1))
    assert order == ["soon", "early", "late"]
    assert time.monotonic() - started < 2


async def test_a_sleeper_of_a_movable_clock_that_was_moved_part_of_the_way_wakes_by_itself() -> None:
    clock = MovableClock()
    async with asyncio.timeout(5):
        sleeping = asyncio.create_task(clock.sleep(3600.05))
        await clock.advance(timedelta(hours=1))
        assert not sleeping.done()
        await sleeping


async def test_a_cancelled_sleep_of_a_movable_clock_leaves_the_others_alone() -> None:
    clock = MovableClock()
    async with asyncio.timeout(5):
        cancelled, other = asyncio.create_task(clock.sleep(0.01)), asyncio.create_task(clock.sleep(0.02))
        await asyncio.sleep(0)
        cancelled.cancel()
        await other
    assert cancelled.cancelled() or cancelled.cancelling()
