"""Idle time, suspended time and maximum duration are kept to the second of the injected clock (spec 1.6, 4.1)."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.microvm_world import AWAKE, CALLER, World
from torpor.control.keeper import Limit, deadline
from torpor.control.microvm.live import Live
from torpor.control.settings import MicrovmSettings
from torpor.control.work import lasting
from torpor.model.clock import VirtualClock
from torpor.model.endpoint import ALL_PORTS
from torpor.model.errors import SaveFailed, StoreUnavailable
from torpor.model.ids import AccountId, EndpointLabel, MicrovmId
from torpor.model.microvm import IdlePolicy, Microvm, MicrovmState

S = MicrovmState


async def test_a_silent_microvm_is_suspended_at_its_idle_limit(world: World) -> None:
    microvm = await world.running(idle_policy=AWAKE)
    await world.advance(59.999)
    assert (await world.get(microvm)).state is S.RUNNING
    await world.advance(0.001)
    found = await world.reach(microvm, S.SUSPENDED)
    assert found.suspended_at == microvm.started_at + timedelta(seconds=60)


async def test_one_long_step_of_time_suspends_at_the_same_moment(world: World) -> None:
    microvm = await world.running(idle_policy=AWAKE)
    await world.advance(500)
    found = await world.reach(microvm, S.SUSPENDED)
    assert found.suspended_at == microvm.started_at + timedelta(seconds=60)


async def test_traffic_moves_the_idle_limit(world: World) -> None:
    microvm = await world.running(idle_policy=AWAKE)
    for _ in range(5):
        await world.advance(50)
        world.host.touch(microvm.microvm_id)
    await world.advance(59.9)
    assert (await world.get(microvm)).state is S.RUNNING
    await world.advance(0.1)
    assert (await world.reach(microvm, S.SUSPENDED)).suspended_at == microvm.started_at + timedelta(seconds=310)


async def test_an_admitted_request_moves_the_idle_limit(world: World) -> None:
    microvm = await world.running(idle_policy=AWAKE)
    token = await world.life.tokens.mint(CALLER, microvm.microvm_id, (ALL_PORTS,), 60)
    await world.advance(59.999)
    await world.life.gate.admit(microvm.endpoint_label, token, 8080)
    await world.advance(59)
    assert (await world.get(microvm)).state is S.RUNNING
    await world.advance(1)
    await world.reach(microvm, S.SUSPENDED)


async def test_without_an_idle_policy_it_runs_to_its_maximum_duration(world: World) -> None:
    microvm = await world.running()
    await world.advance(28_799)
    assert (await world.get(microvm)).state is S.RUNNING
    await world.advance(1)
    found = await world.reach(microvm, S.TERMINATED)
    assert found.terminated_at == microvm.started_at + timedelta(hours=8)
    assert found.state_reason == "The MicroVM reached its maximum duration of 28800 seconds."


async def test_suspended_time_counts_towards_the_maximum_duration(world: World) -> None:
    microvm = await world.running(maximum_duration=timedelta(seconds=100))
    await world.life.microvms.suspend(CALLER, microvm.microvm_id)
    await world.advance(99)
    assert (await world.get(microvm)).state is S.SUSPENDED
    await world.advance(1)
    await world.reach(microvm, S.TERMINATED)


async def test_a_microvm_that_sleeps_too_long_is_terminated(world: World) -> None:
    microvm = await world.running(idle_policy=AWAKE)
    await world.advance(60)
    await world.reach(microvm, S.SUSPENDED)
    await world.advance(599)
    assert (await world.get(microvm)).state is S.SUSPENDED
    await world.advance(1)
    found = await world.reach(microvm, S.TERMINATED)
    assert found.terminated_at == microvm.started_at + timedelta(seconds=660)
    assert found.state_reason == "The MicroVM was suspended for 600 seconds, as long as its idle policy allows."


async def test_waking_starts_the_idle_time_anew(world: World) -> None:
    microvm = await world.running(idle_policy=AWAKE)
    await world.advance(60)
    await world.reach(microvm, S.SUSPENDED)
    await world.advance(30)
    await world.life.microvms.resume(CALLER, microvm.microvm_id)
    await world.advance(59)
    assert (await world.get(microvm)).state is S.RUNNING
    await world.advance(1)
    await world.reach(microvm, S.SUSPENDED)


async def test_a_restarted_service_keeps_the_deadlines_of_the_old_one(world: World) -> None:
    microvm = await world.running(idle_policy=AWAKE, maximum_duration=timedelta(seconds=200))
    world.host.touch(microvm.microvm_id)
    await world.advance(30)
    await world.life.microvms.suspend(CALLER, microvm.microvm_id)
    await world.advance(20)
    await world.restart()
    await world.advance(149)
    assert (await world.get(microvm)).state is S.SUSPENDED
    await world.advance(1)
    await world.reach(microvm, S.TERMINATED)


async def test_after_a_restart_a_machine_that_forgot_the_traffic_counts_from_then(world: World) -> None:
    microvm = await world.running(idle_policy=AWAKE)
    await world.advance(50)
    await world.restart()
    await world.advance(59)
    assert (await world.get(microvm)).state is S.RUNNING
    await world.advance(1)
    await world.reach(microvm, S.SUSPENDED)


async def test_a_deadline_that_passed_while_the_service_was_down_is_kept_at_once(world: World) -> None:
    microvm = await world.running(maximum_duration=timedelta(seconds=100))
    await world.crash()
    await world.advance(1000)
    await world.start()
    await world.reach(microvm, S.TERMINATED)


async def test_an_idle_suspend_that_fails_is_tried_again_later(world: World) -> None:
    microvm = await world.running(idle_policy=AWAKE)
    world.host.faults.fail_step("save_memory", SaveFailed("disk full"))
    await world.advance(60)
    found = await world.until(microvm, lambda found: found.state_reason is not None)
    assert (found.state, found.state_reason) == (S.RUNNING, "The MicroVM could not be suspended: disk full")
    await world.advance(59)
    assert (await world.get(microvm)).state is S.RUNNING
    await world.advance(1)
    await world.reach(microvm, S.SUSPENDED)


async def test_an_idle_suspend_never_drops_a_request(world: World) -> None:
    """Requests come at, just before and just after the idle limit, at every turn of the loop."""
    for turns in range(0, 60, 3):
        microvm = await world.running(idle_policy=AWAKE)
        token = await world.life.tokens.mint(CALLER, microvm.microvm_id, (ALL_PORTS,), 60)
        await world.advance(59.999)
        moving = asyncio.create_task(world.advance(0.001))
        for _ in range(turns):
            await asyncio.sleep(0)
        admission = await world.life.gate.admit(microvm.endpoint_label, token, 8080)
        await moving
        assert admission.microvm_id == microvm.microvm_id
        await world.settle()
        assert (await world.get(microvm)).state is S.RUNNING, turns
        await world.life.microvms.terminate(CALLER, microvm.microvm_id)
        await world.reach(microvm, S.TERMINATED)


async def test_many_changes_do_not_pile_up(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torpor.control.keeper.SPARE_ENTRIES", 5)
    microvm = await world.running(idle_policy=AWAKE)
    for _ in range(20):
        await world.life.microvms.suspend(CALLER, microvm.microvm_id)
        await world.life.microvms.resume(CALLER, microvm.microvm_id)
    assert len(world.life._keeper._due) < 12
    await world.advance(60)
    await world.reach(microvm, S.SUSPENDED)


async def test_a_terminated_microvm_is_forgotten_after_its_time(world: World) -> None:
    from torpor.model.errors import NotFound

    microvm = await world.running()
    await world.life.microvms.terminate(CALLER, microvm.microvm_id)
    await world.reach(microvm, S.TERMINATED)
    await world.advance(24 * 3600 - 60)
    assert (await world.get(microvm)).state is S.TERMINATED
    await world.advance(200)
    with pytest.raises(NotFound):
        await world.get(microvm)


@given(
    st.sampled_from(S), st.integers(0, 100_000), st.integers(60, 28_800), st.integers(0, 28_800),
    st.integers(1, 28_800), st.booleans(), st.booleans(),
)
def test_a_deadline_is_never_after_the_maximum_duration(
    state: MicrovmState, active: int, max_idle: int, suspended: int, duration: int, has_policy: bool, exited: bool,
) -> None:
    start = VirtualClock().now()
    microvm = Microvm(
        MicrovmId("m"), AccountId("a"), "r", "image", "1.0", EndpointLabel("e"), state, None, start, None,
        timedelta(seconds=duration),
        IdlePolicy(timedelta(seconds=max_idle), timedelta(seconds=suspended), True) if has_policy else None,
        None, (), (), start + timedelta(seconds=active), start if state is S.SUSPENDED else None,
        exited_at=start if exited else None,
    )
    found = deadline(Live(microvm), MicrovmSettings())
    if state in (S.TERMINATING, S.TERMINATED):
        assert found is None
        return
    assert found is not None
    at, limit = found
    assert at <= microvm.ends_at
    if limit is Limit.IDLE:
        assert state is S.RUNNING
        assert at == microvm.last_active_at + timedelta(seconds=max_idle)
    if limit is Limit.SUSPENDED:
        assert state is S.SUSPENDED


async def test_a_store_that_fails_delays_what_the_keeper_does_and_loses_none_of_it(
        world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    idle = await world.running(idle_policy=AWAKE)
    short = await world.running(maximum_duration=timedelta(seconds=60))
    exited = await world.running()
    write, left = world.database.write, [6]

    async def full(work: Any) -> Any:
        left[0] -= 1
        if left[0] >= 0:
            raise StoreUnavailable("database or disk is full")
        return await write(work)

    await world.advance(59)
    monkeypatch.setattr(world.database, "write", full)
    world.host.exit_application(exited.microvm_id, 3)
    await world.advance(30)
    assert (await world.reach(idle, S.SUSPENDED)).state is S.SUSPENDED
    await world.reach(short, S.TERMINATED)
    await world.advance(15)
    assert (await world.reach(exited, S.TERMINATED)).state_reason == "Container Stopped with Exit Code: 3"


async def test_a_limit_that_cannot_be_kept_now_is_kept_later(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    microvm = await world.running(idle_policy=AWAKE)
    last_traffic = world.host.last_traffic

    async def broken(microvm_id: MicrovmId) -> Any:
        raise OSError("the counters cannot be read")

    monkeypatch.setattr(world.host, "last_traffic", broken)
    await world.advance(61)
    assert (await world.get(microvm)).state is S.RUNNING
    monkeypatch.setattr(world.host, "last_traffic", last_traffic)
    await world.advance(60)
    await world.reach(microvm, S.SUSPENDED)


async def test_a_loop_that_breaks_begins_again_and_ends_no_service(world: World) -> None:
    runs = 0

    async def breaks() -> None:
        nonlocal runs
        runs += 1
        if runs < 3:
            raise RuntimeError("a surprise")
        await asyncio.Event().wait()

    running = asyncio.create_task(lasting(world.clock, "a loop", breaks))
    await world.advance(10)
    assert not running.done()
    assert runs == 3
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
