"""Every transition of spec 1.6, and the texts and effects of what goes wrong on the way (spec 1.9, 1.11, 6.1,
C5 of spec 14)."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta

import pytest

from support.microvm_world import ALL_HOOKS, AWAKE, CALLER, IMAGE, STRANGER, World
from torpor.control.microvm.machine import change
from torpor.host.base import HookAnswer
from torpor.model.errors import Conflict, HostBusy, Invalid, NotFound, SaveFailed, SnapshotDamaged, VmmFailed
from torpor.model.hooks import Hook, Hooks
from torpor.model.ids import MicrovmId
from torpor.model.microvm import IdlePolicy, MicrovmState
from torpor.store import journal

S = MicrovmState


async def test_run_answers_pending_with_the_effective_defaults(world: World) -> None:
    microvm = await world.run()
    assert microvm.state is S.PENDING
    assert microvm.image_version == "1.0"
    assert microvm.maximum_duration == timedelta(hours=8)
    assert [arn.rpartition(":")[2] for arn in microvm.ingress_connectors] == ["HTTP_INGRESS"]
    assert [arn.rpartition(":")[2] for arn in microvm.egress_connectors] == ["INTERNET_EGRESS"]
    assert world.life.microvms.endpoint(microvm) == f"{microvm.endpoint_label}.lambda-microvm.us-east-1.localhost"
    assert (await world.reach(microvm, S.RUNNING)).state_reason is None


async def test_suspend_returns_when_suspended_and_resume_when_running(world: World) -> None:
    microvm = await world.running()
    await world.life.microvms.suspend(CALLER, microvm.microvm_id)
    suspended = await world.get(microvm)
    assert (suspended.state, suspended.state_reason) == (S.SUSPENDED, None)
    assert suspended.suspended_at == world.clock.now()
    await world.life.microvms.resume(CALLER, microvm.microvm_id)
    resumed = await world.get(microvm)
    assert (resumed.state, resumed.suspended_at) == (S.RUNNING, None)


async def test_suspending_a_suspended_and_resuming_a_running_microvm_do_nothing(world: World) -> None:
    microvm = await world.running()
    await world.life.microvms.resume(CALLER, microvm.microvm_id)
    await world.life.microvms.suspend(CALLER, microvm.microvm_id)
    before = len(world.reached)
    await world.life.microvms.suspend(CALLER, microvm.microvm_id)
    assert (await world.get(microvm)).state is S.SUSPENDED
    assert len(world.reached) == before or world.reached[before:] == [("suspend", "", "closed")]


async def test_a_terminated_microvm_says_success_and_refuses_to_change(world: World) -> None:
    microvm = await world.running()
    await world.life.microvms.terminate(CALLER, microvm.microvm_id)
    ended = await world.reach(microvm, S.TERMINATED)
    assert (ended.state_reason, ended.terminated_at) == ("Success.", world.clock.now())
    assert microvm.microvm_id not in world.microvms_on_disk()
    await world.life.microvms.terminate(CALLER, microvm.microvm_id)
    text = f"The MicroVM {microvm.microvm_id} has been terminated and its state cannot be changed."
    for call in (world.life.microvms.suspend, world.life.microvms.resume):
        with pytest.raises(Invalid, match=text):
            await call(CALLER, microvm.microvm_id)


async def test_terminate_is_recorded_when_it_returns(world: World) -> None:
    microvm = await world.running()
    world.host.faults.set_delay("discard", 3.0)
    await world.life.microvms.terminate(CALLER, microvm.microvm_id)
    assert (await world.get(microvm)).state is S.TERMINATING
    await world.advance(3)
    await world.reach(microvm, S.TERMINATED)


async def test_a_suspended_microvm_is_terminated_without_being_resumed(world: World) -> None:
    microvm = await world.running()
    await world.life.microvms.suspend(CALLER, microvm.microvm_id)
    await world.life.microvms.terminate(CALLER, microvm.microvm_id)
    await world.reach(microvm, S.TERMINATED)
    assert not [step for step in world.reached if step[0] == "resume"]
    assert microvm.microvm_id not in world.microvms_on_disk()


async def test_a_pending_microvm_cannot_be_suspended(world: World) -> None:
    world.crash_at = ("launch", "restore", "before")
    microvm = await world.run()
    with pytest.raises(Conflict, match="PENDING"):
        await world.life.microvms.suspend(CALLER, microvm.microvm_id)


async def test_hooks_get_their_bodies_in_order(world: World) -> None:
    world.images.hooks = ALL_HOOKS
    calls: list[tuple[Hook, str | None, timedelta]] = []
    original = world.host.call_hook

    async def note(microvm_id: object, hook: Hook, port: int, body: str | None, timeout: timedelta) -> HookAnswer:
        calls.append((hook, body, timeout))
        return await original(microvm_id, hook, port, body, timeout)  # type: ignore[arg-type]

    world.host.call_hook = note  # type: ignore[assignment,method-assign]
    microvm = await world.running(run_hook_payload='{"a": "ä"}')
    await world.life.microvms.suspend(CALLER, microvm.microvm_id)
    await world.life.microvms.resume(CALLER, microvm.microvm_id)
    await world.life.microvms.terminate(CALLER, microvm.microvm_id)
    await world.reach(microvm, S.TERMINATED)
    assert [hook for hook, _, _ in calls] == [Hook.RUN, Hook.SUSPEND, Hook.RESUME, Hook.TERMINATE]
    assert calls[0][1] == f'{{"microvmId": "{microvm.microvm_id}", "runHookPayload": "{{\\"a\\": \\"ä\\"}}"}}'
    assert [body for _, body, _ in calls[1:]] == [None, None, None]


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


async def test_a_second_terminate_does_not_cut_off_the_first(world: World) -> None:
    world.images.hooks = ALL_HOOKS
    for turns in range(0, 60, 3):
        microvm = await world.running()

        async def late(turns: int = turns, microvm_id: MicrovmId = microvm.microvm_id) -> None:
            for _ in range(turns):
                await asyncio.sleep(0)
            await world.life.microvms.terminate(CALLER, microvm_id)

        await asyncio.gather(late(), late(0))
        await world.reach(microvm, S.TERMINATED)


async def test_a_terminate_whose_virtual_machine_is_dead_comes_to_its_end(world: World) -> None:
    world.images.hooks = ALL_HOOKS
    microvm = await world.running()

    async def dead(*_: object) -> HookAnswer:
        raise VmmFailed("there is no such VM")

    world.host.call_hook = dead  # type: ignore[assignment,method-assign]
    await world.life.microvms.terminate(CALLER, microvm.microvm_id)
    assert (await world.reach(microvm, S.TERMINATED)).state_reason == "Success."


async def test_what_nothing_goes_on_with_is_brought_to_its_end(world: World) -> None:
    microvm = await world.running()
    live = world.life.fleet.find(microvm.microvm_id)
    assert live is not None
    await change(world.life.machine, live, state=S.TERMINATING)
    await world.life.reconcile.compare()
    await world.reach(microvm, S.TERMINATED)
    assert microvm.microvm_id not in world.microvms_on_disk()


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

    async def full(microvm_id: object) -> object:
        await original(microvm_id)  # type: ignore[arg-type]
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
    world.host.unpause = dead  # type: ignore[assignment,method-assign]
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


async def test_an_application_that_exits_keeps_running_for_its_grace(world: World) -> None:
    world.images.hooks = ALL_HOOKS
    microvm = await world.running()
    world.host.exit_application(microvm.microvm_id, 124)
    await world.until(microvm, lambda found: found.exited_at is not None)
    await world.advance(14.9)
    assert (await world.get(microvm)).state is S.RUNNING
    await world.advance(0.1)
    ended = await world.reach(microvm, S.TERMINATED)
    assert ended.state_reason == "Container Stopped with Exit Code: 124"
    assert ("terminate", "terminate_hook", "before") not in world.reached


async def test_a_dead_vmm_ends_its_microvm_at_once(world: World) -> None:
    microvm = await world.running()
    world.host.kill_vmm(microvm.microvm_id, "signal 9")
    ended = await world.reach(microvm, S.TERMINATED)
    assert ended.state_reason == "The virtual machine ended unexpectedly: signal 9"


async def test_a_policy_of_zero_terminates_where_it_would_suspend(world: World) -> None:
    policy = IdlePolicy(timedelta(seconds=60), timedelta(0), False)
    microvm = await world.running(idle_policy=policy)
    await world.life.microvms.suspend(CALLER, microvm.microvm_id)
    ended = await world.reach(microvm, S.TERMINATED)
    assert ended.state_reason is not None
    assert "idle policy" in ended.state_reason
    assert not [step for step in world.reached if step[0] == "suspend"]


async def test_a_terminate_cuts_off_a_launch_in_its_hook(world: World) -> None:
    world.images.hooks = Hooks(9000, {Hook.RUN: timedelta(seconds=60)})
    held = asyncio.Event()

    async def stall(*_: object) -> HookAnswer:
        held.set()
        await asyncio.Event().wait()
        raise AssertionError

    world.host.call_hook = stall  # type: ignore[assignment,method-assign]
    microvm = await world.run()
    await held.wait()
    await world.life.microvms.terminate(CALLER, microvm.microvm_id)
    ended = await world.reach(microvm, S.TERMINATED)
    assert ended.state_reason == "Success."
    assert microvm.microvm_id not in world.microvms_on_disk()


async def test_a_terminate_cuts_off_a_suspend_in_its_hook(world: World) -> None:
    world.images.hooks = Hooks(9000, {Hook.SUSPEND: timedelta(seconds=60)})
    microvm = await world.running()
    held = asyncio.Event()

    async def stall(*_: object) -> HookAnswer:
        held.set()
        await asyncio.Event().wait()
        raise AssertionError

    world.host.call_hook = stall  # type: ignore[assignment,method-assign]
    suspending = asyncio.create_task(world.life.microvms.suspend(CALLER, microvm.microvm_id))
    await held.wait()
    await world.life.microvms.terminate(CALLER, microvm.microvm_id)
    await suspending
    assert (await world.reach(microvm, S.TERMINATED)).state_reason == "Success."


async def test_another_account_does_not_see_it(world: World) -> None:
    microvm = await world.running()
    with pytest.raises(NotFound, match=f"MicroVM not found: {microvm.microvm_id}"):
        await world.life.microvms.get(STRANGER, microvm.microvm_id)


async def test_the_timeline_names_actions_and_steps(world: World) -> None:
    world.images.hooks = ALL_HOOKS
    microvm = await world.running()
    await world.life.microvms.suspend(CALLER, microvm.microvm_id)
    await world.life.microvms.resume(CALLER, microvm.microvm_id)
    await world.settle()
    entries = await world.life.microvms.timeline(CALLER, microvm.microvm_id)
    assert [entry.action for entry in entries if entry.step == ""] == ["launch", "suspend", "resume"]
    assert {"run_hook", "restore", "suspend_hook", "save", "release", "resume_hook"} <= {e.step for e in entries}
    assert entries[0].cause == CALLER.principal


async def test_lists_are_newest_first_in_pages_and_filtered(world: World) -> None:
    from torpor.model.paging import PageRequest

    made = []
    for _ in range(5):
        made.append(await world.running())
        await world.advance(1)
    await world.life.microvms.terminate(CALLER, made[0].microvm_id)
    await world.reach(made[0], S.TERMINATED)
    first = await world.life.microvms.list(CALLER, IMAGE, None, PageRequest(3))
    second = await world.life.microvms.list(CALLER, IMAGE, None, PageRequest(3, first.cursor))
    assert [vm.microvm_id for vm in (*first.items, *second.items)] == [vm.microvm_id for vm in reversed(made)]
    assert second.cursor is None
    assert not (await world.life.microvms.list(CALLER, IMAGE, "2.0", PageRequest())).items
    assert not (await world.life.microvms.list(STRANGER, None, None, PageRequest())).items


async def test_an_idle_policy_and_its_memory_count_are_kept(world: World) -> None:
    microvm = await world.running(idle_policy=AWAKE)
    assert world.life.microvms.memory_in_use(microvm.account, microvm.region) == 512
    assert world.life.microvms.count_live(IMAGE) == world.life.microvms.count_live(IMAGE, "1.0") == 1
    await world.restart()
    assert (await world.get(microvm)).idle_policy == AWAKE
    assert world.life.microvms.memory_in_use(microvm.account, microvm.region) == 512
    await world.life.microvms.terminate(CALLER, microvm.microvm_id)
    await world.reach(microvm, S.TERMINATED)
    assert world.life.microvms.memory_in_use(microvm.account, microvm.region) == 0
    assert world.life.microvms.count_live(IMAGE) == 0


def _answer(world: World, answers: dict[Hook, HookAnswer]) -> None:
    for hook, answer in answers.items():
        world.host.faults.fail_hook(hook, status=answer.status, failure=answer.failure)
