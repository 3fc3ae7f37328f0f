"""A suspended microVM whose memory is lost goes on from its disk, and says so."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from datetime import timedelta
from typing import Any

import pytest

from support.microvm_world import ALL_HOOKS, CALLER, World
from torpor.control.reasons import RECOVERED
from torpor.model.errors import Conflict, Invalid, SnapshotDamaged, VmmFailed
from torpor.model.hooks import Hook, Hooks
from torpor.model.microvm import Microvm, MicrovmState

S = MicrovmState
READY = Hooks(9000, {**ALL_HOOKS.enabled, Hook.READY: timedelta(seconds=5)})


async def asleep(world: World) -> Microvm:
    microvm = await world.running()
    world.remember(microvm, "x", "41")
    await world.life.microvms.suspend(CALLER, microvm.microvm_id)
    return await world.reach(microvm, S.SUSPENDED)


async def test_it_runs_without_its_memory_and_both_record_and_timeline_say_so(world: World) -> None:
    microvm = await asleep(world)
    found = await world.life.microvms.recover(CALLER, microvm.microvm_id)
    assert (found.state, found.state_reason, found.suspended_at) == (S.RUNNING, RECOVERED, None)
    assert world.host.memory_of(microvm.microvm_id).values == {}
    entries = await world.life.microvms.timeline(CALLER, microvm.microvm_id)
    steps = [each.step for each in entries if each.action == "recover"]
    assert steps == ["", "take_slot", "clone_disk", "boot_vm", "start_application", "boot"]


async def test_a_damaged_memory_refuses_the_resume_with_its_reason_and_the_recovery_goes_on(world: World) -> None:
    microvm = await asleep(world)
    world.host.faults.fail_step("restore_memory", SnapshotDamaged("memory is not what was saved"), times=9)
    await world.life.microvms.resume(CALLER, microvm.microvm_id)
    found = await world.get(microvm)
    assert (found.state, found.state_reason) == (
        S.SUSPENDED, "The MicroVM could not be resumed: memory is not what was saved")
    assert (await world.life.microvms.recover(CALLER, microvm.microvm_id)).state is S.RUNNING


async def test_the_application_is_called_as_at_a_launch(world: World) -> None:
    world.images.hooks = READY
    microvm = await asleep(world)
    before = len(world.host.faults.calls_of(microvm.microvm_id))
    world.host.faults.fail_hook(Hook.READY, failure="refused", times=2)  # it still starts
    recovering = world.life.microvms.recover(CALLER, microvm.microvm_id)
    found = await _advancing(world, recovering)
    assert found.state is S.RUNNING
    calls = world.host.faults.calls_of(microvm.microvm_id)[before:]
    assert calls == [Hook.READY, Hook.READY, Hook.READY, Hook.RUN]


async def _advancing(world: World, work: Coroutine[Any, Any, Microvm]) -> Microvm:
    task = asyncio.ensure_future(work)
    while not task.done():
        await world.advance(0.2)
    return await task


@pytest.mark.parametrize("step", ["clone_disk", "boot_vm", "start_application"])
async def test_a_recovery_that_fails_leaves_it_suspended_with_a_reason_and_it_can_be_tried_again(
        world: World, step: str) -> None:  # fmt: skip
    microvm = await asleep(world)
    world.host.faults.fail_step(step, VmmFailed("no space"))
    with pytest.raises(Conflict, match="The MicroVM could not be recovered: no space"):
        await world.life.microvms.recover(CALLER, microvm.microvm_id)
    found = await world.get(microvm)
    assert (found.state, found.state_reason) == (S.SUSPENDED, "The MicroVM could not be recovered: no space")
    await world.life.microvms.resume(CALLER, microvm.microvm_id)
    await world.reach(microvm, S.RUNNING)
    assert world.host.memory_of(microvm.microvm_id).values == {"x": "41"}, "nothing of it was touched"


async def test_only_a_suspended_one_is_recovered(world: World) -> None:
    microvm = await world.running()
    with pytest.raises(Conflict, match="is RUNNING; only a SUSPENDED one is recovered"):
        await world.life.microvms.recover(CALLER, microvm.microvm_id)
    await world.life.microvms.terminate(CALLER, microvm.microvm_id)
    await world.reach(microvm, S.TERMINATED)
    with pytest.raises(Invalid, match="has been terminated"):
        await world.life.microvms.recover(CALLER, microvm.microvm_id)


async def test_a_recovered_one_sleeps_and_wakes_as_any_other(world: World) -> None:
    microvm = await asleep(world)
    await world.life.microvms.recover(CALLER, microvm.microvm_id)
    world.remember(microvm, "y", "2")
    await world.life.microvms.suspend(CALLER, microvm.microvm_id)
    await world.reach(microvm, S.SUSPENDED)
    await world.life.microvms.resume(CALLER, microvm.microvm_id)
    found = await world.reach(microvm, S.RUNNING)
    assert (world.host.memory_of(microvm.microvm_id).values, found.state_reason) == ({"y": "2"}, None)
