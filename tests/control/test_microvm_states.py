"""The transitions of spec 1.6 while nothing fails, what each state refuses, and what is shown of them
(spec 1.11, 6.1)."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from support.microvm_world import ALL_HOOKS, AWAKE, CALLER, IMAGE, STRANGER, World
from torpor.control.microvm.machine import change
from torpor.host.base import HookAnswer
from torpor.model.errors import Conflict, Invalid, NotFound
from torpor.model.hooks import Hook, Hooks
from torpor.model.ids import MicrovmId
from torpor.model.microvm import IdlePolicy, MicrovmState

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

    async def note(microvm_id: MicrovmId, hook: Hook, port: int, body: str | None, timeout: timedelta) -> HookAnswer:
        calls.append((hook, body, timeout))
        return await original(microvm_id, hook, port, body, timeout)

    world.host.call_hook = note  # type: ignore[method-assign]
    microvm = await world.running(run_hook_payload='{"a": "ä"}')
    await world.life.microvms.suspend(CALLER, microvm.microvm_id)
    await world.life.microvms.resume(CALLER, microvm.microvm_id)
    await world.life.microvms.terminate(CALLER, microvm.microvm_id)
    await world.reach(microvm, S.TERMINATED)
    assert [hook for hook, _, _ in calls] == [Hook.RUN, Hook.SUSPEND, Hook.RESUME, Hook.TERMINATE]
    assert calls[0][1] == f'{{"microvmId": "{microvm.microvm_id}", "runHookPayload": "{{\\"a\\": \\"ä\\"}}"}}'
    assert [body for _, body, _ in calls[1:]] == [None, None, None]


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


async def test_what_nothing_goes_on_with_is_brought_to_its_end(world: World) -> None:
    microvm = await world.running()
    live = world.life.fleet.find(microvm.microvm_id)
    assert live is not None
    await change(world.life.machine, live, state=S.TERMINATING)
    await world.life.reconcile.compare()
    await world.reach(microvm, S.TERMINATED)
    assert microvm.microvm_id not in world.microvms_on_disk()


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
