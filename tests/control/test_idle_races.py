"""A request that comes while its microVM is being suspended for being idle is answered, whoever is first."""

from __future__ import annotations

import asyncio

import pytest

from support.microvm_world import ALL_HOOKS, AWAKE, CALLER, World
from torpor.control.gate import Admission
from torpor.model.endpoint import ALL_PORTS
from torpor.model.hooks import Hooks
from torpor.model.microvm import Microvm, MicrovmState

S = MicrovmState


async def _answered(world: World, asking: asyncio.Task[Admission]) -> Admission:
    """Its answer; hooks that take their time need the clock."""
    async with asyncio.timeout(10):
        while not asking.done():
            await asyncio.wait({asking}, timeout=0.01)
            await world.advance(0)
    return asking.result()


async def _ask(world: World, microvm: Microvm, token: str, turns: int) -> Admission:
    for _ in range(turns):
        await asyncio.sleep(0)
    return await world.life.gate.admit(microvm.endpoint_label, token, 8080)


@pytest.mark.parametrize("hooks", [Hooks(), ALL_HOOKS], ids=["plain", "hooks"])
async def test_a_request_at_any_turn_of_an_idle_suspend_is_answered(world: World, hooks: Hooks) -> None:
    world.images.hooks = hooks
    for turns in range(120):
        microvm = await world.running(idle_policy=AWAKE)
        token = await world.life.tokens.mint(CALLER, microvm.microvm_id, (ALL_PORTS,), 60)
        world.remember(microvm, "turns", str(turns))
        await world.advance(59.999)
        asking = asyncio.create_task(_ask(world, microvm, token, turns))
        moving = asyncio.create_task(world.advance(0.001))
        admission = await _answered(world, asking)
        await moving
        assert admission.upstream == world.host.upstream(microvm.microvm_id, 8080), turns
        await world.settle()
        # It has just been used: it is not idle.
        assert (await world.get(microvm)).state is S.RUNNING, turns
        assert world.host.memory_of(microvm.microvm_id).values == {"turns": str(turns)}
        await world.life.microvms.terminate(CALLER, microvm.microvm_id)
        await world.settle()


async def test_many_requests_around_one_idle_suspend_are_all_answered(world: World) -> None:
    world.images.hooks = ALL_HOOKS
    for seed in range(20):
        microvm = await world.running(idle_policy=AWAKE)
        token = await world.life.tokens.mint(CALLER, microvm.microvm_id, (ALL_PORTS,), 60)
        await world.advance(59.999)
        asking = [asyncio.create_task(_ask(world, microvm, token, (7 * number * (seed + 1)) % 90))
                  for number in range(12)]  # fmt: skip
        moving = asyncio.create_task(world.advance(0.001))
        for each in asking:
            assert (await _answered(world, each)).microvm_id == microvm.microvm_id
        await moving
        await world.settle()
        assert (await world.get(microvm)).state is S.RUNNING
        await world.life.microvms.terminate(CALLER, microvm.microvm_id)
        await world.settle()
