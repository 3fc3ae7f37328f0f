"""A suspend lets answers that have begun come to their end; the gate holds new requests meanwhile."""

from __future__ import annotations

import asyncio

from support.microvm_world import CALLER, World
from torpor.model.microvm import MicrovmState

S = MicrovmState


async def test_a_suspend_waits_for_requests_under_way(world: World) -> None:
    microvm = await world.running()
    open_requests = 1
    world.life.fleet.open_requests = lambda _: open_requests
    suspending = asyncio.create_task(world.life.microvms.suspend(CALLER, microvm.microvm_id))
    await world.advance(0.5)
    assert (await world.get(microvm)).state is S.SUSPENDING
    open_requests = 0
    await world.advance(0.1)
    await world.reach(microvm, S.SUSPENDED)
    await suspending


async def test_a_stream_that_does_not_end_does_not_hold_a_suspend_for_ever(world: World) -> None:
    microvm = await world.running()
    world.life.fleet.open_requests = lambda _: 1
    suspending = asyncio.create_task(world.life.microvms.suspend(CALLER, microvm.microvm_id))
    await world.advance(1.1)
    await world.reach(microvm, S.SUSPENDED)
    await suspending
