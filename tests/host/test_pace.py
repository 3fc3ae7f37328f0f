from __future__ import annotations

import asyncio
from typing import Any

import pytest

from torpor.host import pace
from torpor.host.pace import BURST, LINE_COST, Pace


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Time that passes by sleeping alone."""
    sleeps: list[float] = []

    async def sleep(seconds: float) -> None:
        sleeps.append(seconds)

    class Time:
        @staticmethod
        def monotonic() -> float:
            return sum(sleeps)

    monkeypatch.setattr(pace, "time", Time)
    monkeypatch.setattr("torpor.host.pace.asyncio.sleep", sleep)
    return sleeps


async def test_a_burst_is_taken_at_once_and_what_follows_at_its_pace(slept: list[float]) -> None:
    limited = Pace(1000)
    while not slept:
        await limited.take(100 - LINE_COST)
    assert sum(slept) < 0.2
    for _ in range(100):
        await limited.take(1000 - LINE_COST)
    assert sum(slept) == pytest.approx(100, abs=1)


async def test_a_quiet_time_earns_no_more_than_a_burst(slept: list[float]) -> None:
    limited = Pace(1000)
    slept.append(1_000_000.0)
    await limited.take(BURST * 1000 + 2000 - LINE_COST)
    assert slept[-1] == pytest.approx(2)


async def test_without_a_limit_nothing_waits(slept: list[float]) -> None:
    limited = Pace(0)
    for _ in range(1000):
        await limited.take(1_000_000)
    assert slept == []


def test_the_loop_goes_on_while_a_flood_waits() -> None:
    async def flood() -> int:
        limited, turns = Pace(1), 0

        async def take() -> None:
            for _ in range(1000):
                await limited.take(1)

        taking: asyncio.Task[Any] = asyncio.create_task(take())
        while turns < 100:
            await asyncio.sleep(0)
            turns += 1
        taking.cancel()
        return turns

    assert asyncio.run(flood()) == 100
