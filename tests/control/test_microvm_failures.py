"""What goes wrong on the way from one state to another: its text, and what is left (spec 1.6, 1.9, C5 of spec 14)."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from support.microvm_world import ALL_HOOKS, CALLER, World
from torpor.host.base import HookAnswer
from torpor.model.errors import HostBusy, SaveFailed, SnapshotDamaged, VmmFailed
from torpor.model.hooks import Hook
from torpor.model.ids import MicrovmId
from torpor.model.microvm import MicrovmState
from torpor.store import journal

S = MicrovmState


@pytest.mark.parametrize(("answer", "text"), [
    (HookAnswer(400, None, 0.1), "Run lifecycle hook returned HTTP status 400."),
    (HookAnswer(204, None, 0.1), "Run lifecycle hook returned HTTP status 204."),
    (HookAnswer(0, "timeout", 1.0), "Run lifecycle hook timed out after PT1S."),
    (HookAnswer(0, "refused", 0.0), "Run lifecycle hook could not be reached."),
])
async def test_a_failing_run_hook_ends_the_microvm_before_it_runs(
    world: World, answer: HookAnswer, text: str
) -> None:
    world.images.hooks = ALL_HOOKS
    _answer(world, {Hook.RUN: answer})
    microvm = await world.run()
    await world.advance(1)
    ended = await world.reach(microvm, S.TERMINATED, S.RUNNING)
    assert ended.state is S.TERMINATED
    assert ended.state_reason == f"{text} Please check your hook endpoint and application logs for more details."
    assert microvm.microvm_id not in world.microvms_on_disk()


async def test_a_failing_suspend_hook_terminates_as_measured(world: World) -> None:
    world.images.hooks = ALL_HOOKS
    _answer(world, {Hook.SUSPEND: HookAnswer(500, None, 0.1)})
    microvm = await world.running()
    await world.life.microvms.suspend(CALLER, microvm.microvm_id)
    ended = await world.reach(microvm, S.TERMINATED)
    assert ended.state_reason is not None
    assert ended.state_reason.startswith("Suspend lifecycle hook returned HTTP status 500.")
    assert microvm.microvm_id not in world.microvms_on_disk()


async def test_a_failing_suspend_hook_can_be_made_to_keep_the_microvm(world: World) -> None:
    world.images.hooks = ALL_HOOKS
    _answer(world, {Hook.SUSPEND: HookAnswer(500, None, 0.1)})
    object.__setattr__(world.life.machine, "settings", replace(world.settings, suspend_hook_failure="keep"))
    microvm = await world.running()
    await world.life.microvms.suspend(CALLER, microvm.microvm_id)
    kept = await world.reach(microvm, S.RUNNING)
    assert kept.state_reason == (
        "The MicroVM could not be suspended: Suspend lifecycle hook returned HTTP status 500. "
        "Please check your hook endpoint and application logs for more details."
    )


async def test_a_failing_resume_hook_leaves_it_suspended_and_it_can_be_tried_again(world: World) -> None:
    world.images.hooks = ALL_HOOKS
    microvm = await world.running()
    await world.life.microvms.suspend(CALLER, microvm.microvm_id)
    _answer(world, {Hook.RESUME: HookAnswer(503, None, 0.1)})
    await world.life.microvms.resume(CALLER, microvm.microvm_id)
    found = await world.get(microvm)
    assert found.state is S.SUSPENDED
    assert found.state_reason is not None
    assert found.state_reason.startswith("Resume lifecycle hook returned HTTP status 503.")
    assert world.host.upstream(microvm.microvm_id, 8080) is None
    world.host.faults.mend()
    await world.life.microvms.resume(CALLER, microvm.microvm_id)
    found = await world.get(microvm)
    assert (found.state, found.state_reason) == (S.RUNNING, None)


async def test_a_failing_terminate_hook_does_not_hold_up_the_end(world: World) -> None:
    world.images.hooks = ALL_HOOKS
    _answer(world, {Hook.TERMINATE: HookAnswer(0, "timeout", 1.0)})
    microvm = await world.running()
    await world.life.microvms.terminate(CALLER, microvm.microvm_id)
    await world.advance(1)
    assert (await world.reach(microvm, S.TERMINATED)).state_reason == "Success."


async def test_a_terminate_whose_virtual_machine_is_dead_comes_to_its_end(world: World) -> None:
    world.images.hooks = ALL_HOOKS
    microvm = await world.running()

    async def dead(*_: object) -> HookAnswer:
        raise VmmFailed("there is no such VM")

    world.host.call_hook = dead  # type: ignore[assignment,method-assign]
    await world.life.microvms.terminate(CALLER, microvm.microvm_id)
    assert (await world.reach(microvm, S.TERMINATED)).state_reason == "Success."


async def test_a_launch_that_fails_says_why_and_leaves_nothing(world: World) -> None:
    world.fail_at = ("launch", "restore", SnapshotDamaged("memory file is short"))
    microvm = await world.run()
    ended = await world.reach(microvm, S.TERMINATED)
    assert ended.state_reason == "The MicroVM could not be launched: memory file is short"
    assert microvm.microvm_id not in world.microvms_on_disk()
    assert await world.database.read(journal.unfinished) == []


async def test_a_step_that_asks_to_be_tried_again_is_and_works(world: World) -> None:
    world.host.faults.fail_step("take_slot", HostBusy("no slot is free", delay=timedelta(seconds=2)), times=3)
    microvm = await world.run()
    await world.advance(5.9)
    assert (await world.get(microvm)).state is S.PENDING
    await world.advance(0.1)
    await world.reach(microvm, S.RUNNING)


async def test_a_step_that_asks_too_often_has_failed(world: World) -> None:
    world.host.faults.fail_step("take_slot", HostBusy("no slot is free", delay=timedelta(seconds=2)), times=50)
    microvm = await world.run()
    await world.advance(60)
    ended = await world.reach(microvm, S.TERMINATED)
    assert ended.state_reason == "The MicroVM could not be launched: no slot is free"


async def test_a_save_that_fails_costs_nothing(world: World) -> None:
    microvm = await world.running()
    original = world.host.save

    async def full(microvm_id: MicrovmId) -> object:
        await original(microvm_id)
        raise SaveFailed("No space left on device")

    world.host.save = full  # type: ignore[assignment,method-assign]
    await world.life.microvms.suspend(CALLER, microvm.microvm_id)
    found = await world.reach(microvm, S.RUNNING)
    assert found.state_reason == "The MicroVM could not be suspended: No space left on device"
    [survey] = await world.host.survey()
    assert survey.is_alive
    assert not survey.is_paused
    world.host.save = original  # type: ignore[method-assign]
    await world.life.microvms.suspend(CALLER, microvm.microvm_id)
    found = await world.get(microvm)
    assert (found.state, found.state_reason) == (S.SUSPENDED, None)


async def test_a_vmm_that_dies_while_it_is_saved_ends_with_an_honest_reason(world: World) -> None:
    microvm = await world.running()

    async def dies(microvm_id: object) -> object:
        raise SaveFailed("the connection to the VMM broke")

    async def dead(microvm_id: object) -> None:
        raise VmmFailed("no such process")

    world.host.save = dies  # type: ignore[assignment,method-assign]
    world.host.unpause = dead  # type: ignore[method-assign]
    await world.life.microvms.suspend(CALLER, microvm.microvm_id)
    ended = await world.reach(microvm, S.TERMINATED)
    assert ended.state_reason == "The virtual machine was lost while it was saved: no such process"


async def test_a_restore_that_fails_deletes_nothing_and_can_be_tried_again(world: World) -> None:
    microvm = await world.running()
    await world.life.microvms.suspend(CALLER, microvm.microvm_id)
    original = world.host.resume

    async def damaged(order: object) -> object:
        raise SnapshotDamaged("checksum of the memory file")

    world.host.resume = damaged  # type: ignore[assignment,method-assign]
    await world.life.microvms.resume(CALLER, microvm.microvm_id)
    found = await world.get(microvm)
    assert found.state is S.SUSPENDED
    assert found.state_reason == "The MicroVM could not be resumed: checksum of the memory file"
    assert microvm.microvm_id in world.microvms_on_disk()
    world.host.resume = original  # type: ignore[method-assign]
    await world.life.microvms.resume(CALLER, microvm.microvm_id)
    assert (await world.get(microvm)).state is S.RUNNING


async def test_a_dead_vmm_ends_its_microvm_at_once(world: World) -> None:
    microvm = await world.running()
    world.host.kill_vmm(microvm.microvm_id, "signal 9")
    ended = await world.reach(microvm, S.TERMINATED)
    assert ended.state_reason == "The virtual machine ended unexpectedly: signal 9"


def _answer(world: World, answers: dict[Hook, HookAnswer]) -> None:
    for hook, answer in answers.items():
        world.host.faults.fail_hook(hook, status=answer.status, failure=answer.failure)
