"""What was used, to the second, over sleeps, restarts and deaths; and its price (spec 10.2)."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from support.microvm_world import CALLER, World
from torpor.model.microvm import MicrovmState
from torpor.model.usage import GIB, Amounts, Prices
from torpor.store import metering
from torpor.store.metering import FOLDED, Key

PRICES = Prices(0.0000276944, 0.0000036667, 0.0015467699, 0.0037977138, 0.0001111111)
LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)


async def used(world: World, by: str = "account") -> Amounts:
    total = Amounts()
    for _, _, amounts in await world.life.metering.report("000000000000", None, LONG_AGO, by):
        total.add(amounts)
    return total


async def test_time_awake_and_asleep_is_accounted_for_by_the_configured_size(world: World) -> None:
    microvm = await world.running()
    before = await used(world)
    await world.clock.advance(timedelta(seconds=100))
    await world.life.microvms.suspend(CALLER, microvm.microvm_id)
    await world.clock.advance(timedelta(seconds=3600))
    found = await used(world)
    size = microvm.memory_mib / 1024
    assert found.running_seconds - before.running_seconds == pytest.approx(100, abs=2)
    assert found.asleep_seconds == pytest.approx(3600, abs=2)
    assert found.gb_seconds == pytest.approx(found.running_seconds * size)
    assert found.vcpu_seconds == pytest.approx(found.running_seconds * size / 2)
    assert found.asleep_gb_seconds == pytest.approx(found.asleep_seconds * size)
    assert (found.launches, found.suspends, found.resumes) == (1, 1, 0)
    assert found.written_bytes > 0
    assert found.stored_gb_hours == pytest.approx(found.written_bytes / GIB, rel=0.01)


async def test_what_is_written_is_not_counted_again_and_what_has_ended_not_any_more(world: World) -> None:
    microvm = await world.running()
    await world.clock.advance(timedelta(seconds=50))
    once, twice = await used(world), await used(world)
    assert twice.running_seconds == pytest.approx(once.running_seconds, abs=0.5)
    await world.life.microvms.terminate(CALLER, microvm.microvm_id)
    await world.reach(microvm, MicrovmState.TERMINATED)
    ended = await used(world)
    await world.clock.advance(timedelta(hours=1))
    assert (await used(world)).running_seconds == ended.running_seconds
    assert (await used(world, "microvm")).running_seconds == pytest.approx(ended.running_seconds)


async def test_a_service_that_was_down_accounts_for_the_time_in_between(world: World) -> None:
    await world.running()
    await used(world)
    await world.restart()
    await world.clock.advance(timedelta(seconds=500))
    found = await used(world)
    assert found.running_seconds == pytest.approx(500, abs=3)
    assert found.launches == 1


async def test_the_total_is_that_of_the_reports_at_any_moment_and_after_a_restart(world: World) -> None:
    microvm = await world.running()
    for _ in range(2):
        await world.clock.advance(timedelta(seconds=70))
        total = world.life.metering.total()
        assert total == await used(world)
        await world.life.microvms.suspend(CALLER, microvm.microvm_id)
        await world.clock.advance(timedelta(seconds=70))
        await world.life.microvms.resume(CALLER, microvm.microvm_id)
        before = world.life.metering.total()
        await world.restart()
        assert world.life.metering.total().running_seconds == pytest.approx(before.running_seconds, abs=1)


async def test_old_days_are_folded_and_their_sums_stay(world: World) -> None:
    database = world.database
    old, new = "2025-01-01", "2026-01-01"
    keys = [Key(day, "a", "r", "arn:i", f"microvm-{n}") for day in (old, new) for n in range(3)]
    await database.write(lambda connection: metering.add(connection, {key: Amounts(running_seconds=1) for key in keys}))
    await database.write(lambda connection: metering.add(connection, {keys[0]: Amounts(running_seconds=4)}))
    assert await database.write(lambda connection: metering.fold(connection, "2025-06-01")) == 3
    assert await database.write(lambda connection: metering.fold(connection, "2025-06-01")) == 0
    rows = await database.read(lambda connection: metering.report(connection, "a", "r", "2024-01-01", "microvm"))
    assert {name: amounts.running_seconds for name, _, amounts in rows} == {
        FOLDED: 7, "microvm-0": 1, "microvm-1": 1, "microvm-2": 1}  # fmt: skip
    (total,) = await database.read(lambda connection: metering.report(connection, "a", None, "2024-01-01", "account"))
    assert total[2].running_seconds == 10


def test_prices_are_those_of_aws() -> None:
    """The hourly baseline of each size, as the pricing page states it."""
    for gb, dollars in ((0.5, 0.0315), (1, 0.0631), (2, 0.1261), (4, 0.2522), (8, 0.5044)):
        hour = Amounts(running_seconds=3600, vcpu_seconds=3600 * gb / 2, gb_seconds=3600 * gb)
        assert PRICES.of(hour) == pytest.approx(dollars, abs=0.00006)
    month = Amounts(stored_gb_hours=720, read_bytes=GIB, written_bytes=GIB)
    assert PRICES.of(month) == pytest.approx(0.08 + 0.00155 + 0.0038, abs=0.0001)
    asleep = Amounts(asleep_vcpu_seconds=3600, asleep_gb_seconds=7200)
    assert PRICES.saved_by_sleep(asleep) == pytest.approx(0.1261, abs=1e-4)


async def test_nothing_is_lost_when_the_database_refuses(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    await world.running()
    await world.clock.advance(timedelta(seconds=30))

    async def refuse(_: object) -> None:
        raise asyncio.CancelledError

    with monkeypatch.context() as patch:
        patch.setattr(type(world.database), "write", lambda *_: refuse(None))
        with pytest.raises(asyncio.CancelledError):
            await world.life.metering.write()
    assert (await used(world)).running_seconds >= 30
