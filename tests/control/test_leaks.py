"""Leaks as the service tells them: exact while everything moves, and what `gc` ends is told why."""

from __future__ import annotations

import asyncio

from support.leak_plants import STRAY
from support.microvm_world import AWAKE, CALLER, World
from torpor.control.leaks import Leak
from torpor.host.holding import Holding
from torpor.model.errors import NotRemoved
from torpor.model.microvm import MicrovmState

S = MicrovmState


async def found(world: World) -> list[Leak]:
    """But for the snapshot of the fake image, which has no record here."""
    return [each for each in await world.life.leaks.find() if not each.name.endswith(world.images.snapshot)]


async def _one_life(world: World) -> None:
    microvms = world.life.microvms
    microvm = await world.running(idle_policy=AWAKE)
    for _ in range(3):
        await microvms.suspend(CALLER, microvm.microvm_id)
        await world.reach(microvm, S.SUSPENDED)
        await microvms.resume(CALLER, microvm.microvm_id)
        await world.reach(microvm, S.RUNNING)
    await microvms.terminate(CALLER, microvm.microvm_id)
    await world.reach(microvm, S.TERMINATED)


async def test_nothing_that_is_under_way_is_taken_for_a_leak(world: World) -> None:
    async with asyncio.TaskGroup() as tasks:
        lives = [tasks.create_task(_one_life(world)) for _ in range(8)]
        looks = 0
        while not all(life.done() for life in lives):
            assert await found(world) == []
            looks += 1
    assert looks > 3
    assert await found(world) == []


async def test_what_cannot_be_removed_is_told_and_the_rest_is_removed(world: World) -> None:
    path = world.path / "simulated/microvms" / f"{STRAY}.saved.json"
    half = world.path / "simulated/microvms/.x.draft"
    for each in (path, half):
        each.write_text("{}")
    remove = world.host.remove

    async def refusing(holding: Holding) -> None:
        if str(path) in str(holding):
            raise NotRemoved("it is busy")
        await remove(holding)

    world.host.remove = refusing  # type: ignore[method-assign]
    done = {each.leak.name: (each.is_removed, each.error) for each in await world.life.leaks.collect()}
    assert done[str(path)] == (False, "it is busy")
    assert done[str(half)] == (True, None)
    assert not half.exists()


async def test_a_sleeper_whose_files_come_back_meanwhile_is_not_ended(world: World) -> None:
    microvm = await world.running()
    await world.life.microvms.suspend(CALLER, microvm.microvm_id)
    await world.reach(microvm, S.SUSPENDED)
    saved = world.path / "simulated/microvms" / f"{microvm.microvm_id}.saved.json"
    content = saved.read_bytes()
    saved.unlink()
    assert [each.name for each in await found(world)] == [microvm.microvm_id]
    saved.write_bytes(content)
    await world.life.leaks.collect()
    assert (await world.get(microvm)).state is S.SUSPENDED
