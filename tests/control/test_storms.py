"""Everything at once: whatever is asked of a microVM in whatever order, it ends in a legal state and loses nothing."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Coroutine
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from support.microvm_world import ALL_HOOKS, AWAKE, CALLER, World
from support.microvm_world import world as make_world
from torpor.control.reconcile import ACTIONS
from torpor.model.endpoint import ALL_PORTS
from torpor.model.errors import GateUnavailable, Refused, SaveFailed, SnapshotDamaged
from torpor.model.hooks import Hook
from torpor.model.microvm import TRANSITIONS, Microvm, MicrovmState
from torpor.store import journal

S = MicrovmState
RESTING = {S.RUNNING, S.SUSPENDED, S.TERMINATED}
EDGES = {(before, after) for (before, _), after in TRANSITIONS.items()}


def _watch(world: World) -> list[tuple[MicrovmState, MicrovmState]]:
    """Every move of any record from now on."""
    seen: dict[str, MicrovmState] = {}
    moves: list[tuple[MicrovmState, MicrovmState]] = []

    def note(live: Any) -> None:
        before = seen.get(live.microvm_id)
        if before is not None and before is not live.state:
            moves.append((before, live.state))
        seen[live.microvm_id] = live.state

    world.life.fleet.on_change(note)
    return moves


async def _calls(world: World, microvm: Microvm, token: str, what: str) -> None:
    try:
        if what == "request":
            await world.life.gate.admit(microvm.endpoint_label, token, 8080)
        else:
            await getattr(world.life.microvms, what)(CALLER, microvm.microvm_id)
    except (Refused, GateUnavailable):
        pass


@pytest.mark.parametrize("seed", range(8))
async def test_a_storm_of_calls_ends_in_a_legal_state(world: World, seed: int) -> None:
    chance = random.Random(seed)
    world.images.hooks = ALL_HOOKS
    moves = _watch(world)
    microvm = await world.running(idle_policy=AWAKE)
    token = await world.life.tokens.mint(CALLER, microvm.microvm_id, (ALL_PORTS,), 60)
    kinds = ["suspend", "resume", "request"] * 20 + (["terminate"] if seed % 2 else [])
    chance.shuffle(kinds)
    storm: list[Coroutine[Any, Any, None]] = []
    for what in kinds:
        async def one(what: str = what, turns: int = chance.randrange(200)) -> None:
            for _ in range(turns):
                await asyncio.sleep(0)
            await _calls(world, microvm, token, what)

        storm.append(one())
    async with asyncio.timeout(30):
        await asyncio.gather(*storm)
        await world.settle()
    found = await world.get(microvm)
    assert found.state in RESTING
    assert set(moves) <= EDGES
    assert await world.database.read(journal.unfinished) == []
    if seed % 2:
        assert found.state is S.TERMINATED
        assert world.microvms_on_disk() == set()


async def test_every_request_is_answered_while_suspends_rain(world: World) -> None:
    microvm = await world.running(idle_policy=AWAKE)
    token = await world.life.tokens.mint(CALLER, microvm.microvm_id, (ALL_PORTS,), 60)
    answered = 0

    async def ask() -> None:
        nonlocal answered
        for _ in range(20):
            await world.life.gate.admit(microvm.endpoint_label, token, 8080)
            answered += 1
            await asyncio.sleep(0)

    async def suspend() -> None:
        for _ in range(20):
            await world.life.microvms.suspend(CALLER, microvm.microvm_id)
            await asyncio.sleep(0)

    async with asyncio.timeout(30):
        await asyncio.gather(ask(), ask(), ask(), suspend(), suspend())
    assert answered == 60


async def test_suspends_that_rain_without_end_starve_no_request(world: World) -> None:
    microvm = await world.running(idle_policy=AWAKE)
    token = await world.life.tokens.mint(CALLER, microvm.microvm_id, (ALL_PORTS,), 60)
    suspends, is_over = 0, False

    async def suspend() -> None:
        nonlocal suspends
        while not is_over:
            await world.life.microvms.suspend(CALLER, microvm.microvm_id)
            suspends += 1
            await asyncio.sleep(0)

    raining = [asyncio.create_task(suspend()) for _ in range(3)]
    async with asyncio.timeout(30):
        for _ in range(20):
            await world.life.gate.admit(microvm.endpoint_label, token, 8080)
            await asyncio.sleep(0)
    is_over = True
    await asyncio.gather(*raining)
    print(f"{suspends} suspends")


async def test_many_microvms_at_once_do_not_mix(world: World) -> None:
    microvms = await asyncio.gather(*(world.running(idle_policy=AWAKE) for _ in range(20)))
    for number, microvm in enumerate(microvms):
        world.remember(microvm, "mine", str(number))
    await asyncio.gather(*(world.life.microvms.suspend(CALLER, microvm.microvm_id) for microvm in microvms))
    await asyncio.gather(*(world.life.microvms.resume(CALLER, microvm.microvm_id) for microvm in microvms))
    assert [world.host.memory_of(microvm.microvm_id).values["mine"] for microvm in microvms] == [
        str(number) for number in range(20)
    ]


OPERATIONS = st.one_of(
    st.sampled_from(["suspend", "resume", "terminate", "request", "restart", "reboot", "kill", "exit", "run"]),
    st.tuples(st.just("advance"), st.sampled_from([1, 30, 60, 600])),
    st.tuples(st.just("fault"), st.sampled_from(["save_memory", "restore_memory", "take_slot", "unpause", "release"])),
    st.tuples(st.just("hook"), st.sampled_from([Hook.RUN, Hook.SUSPEND, Hook.RESUME, Hook.TERMINATE])),
    st.tuples(
        st.just("crash"),
        st.sampled_from([(action, step.name, moment) for action, steps in ACTIONS.items() for step in steps.steps
                         for moment in ("before", "ran", "done")]),
    ),
)


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(OPERATIONS, max_size=25))
def test_random_operations_faults_and_crashes_keep_the_promises(operations: list[Any]) -> None:
    async def play() -> None:
        with TemporaryDirectory() as directory:
            async with make_world(Path(directory)) as world:
                await _play(world, operations)

    asyncio.run(play())


async def _play(world: World, operations: list[Any]) -> None:
    world.images.hooks = ALL_HOOKS
    microvm = await world.running(idle_policy=AWAKE)
    token = await world.life.tokens.mint(CALLER, microvm.microvm_id, (ALL_PORTS,), 60)
    known = {microvm.microvm_id: microvm}
    for operation in operations:
        name, argument = operation if isinstance(operation, tuple) else (operation, None)
        if name == "crash":
            world.crash_at = argument  # in the operation that follows
            continue
        await _one(world, microvm, token, known, name, argument)
        await _calm(world)
        if world.crashed.is_set():
            await world.restart()
        world.crash_at = None
        await _invariants(world, known)


async def _calm(world: World) -> None:
    """Until nothing is under way, or the process has died; what is tried again after a pause comes to its end."""
    for _ in range(100):
        if world.life.is_idle or world.crashed.is_set():
            return
        await asyncio.sleep(0.001)
        await world.advance(1)


async def _one(world: World, microvm: Microvm, token: str, known: dict[Any, Microvm], name: str, argument: Any) -> None:
    here = world.host.upstream(microvm.microvm_id, 1) is not None
    match name:
        case "suspend" | "resume" | "terminate" | "request":
            calling = asyncio.create_task(_calls(world, microvm, token, name))
            dying = asyncio.create_task(world.crashed.wait())
            # What is tried again after a pause waits for the clock, which only the test moves.
            while not (await asyncio.wait({calling, dying}, timeout=0.05, return_when=asyncio.FIRST_COMPLETED))[0]:
                await world.advance(1)
            for task in (calling, dying):
                task.cancel()
            await asyncio.gather(calling, dying, return_exceptions=True)
        case "run":
            made = await world.run()
            known[made.microvm_id] = made
        case "restart" | "reboot":
            await world.restart(reboot=name == "reboot")
        case "kill" if here:
            world.host.kill_vmm(microvm.microvm_id)
            await asyncio.sleep(0.01)
        case "exit" if here:
            world.host.exit_application(microvm.microvm_id, 1)
            await asyncio.sleep(0.01)
        case "advance":
            await world.advance(argument)
        case "fault":
            error = SnapshotDamaged if argument == "restore_memory" else SaveFailed
            world.host.faults.fail_step(argument, error("injected"))
        case "hook":
            world.host.faults.fail_hook(argument, status=500, times=1)


async def _invariants(world: World, known: dict[Any, Microvm]) -> None:
    """No action hangs, no state is between two, the machine has what the records say and nothing else."""
    await _calm(world)
    assert world.life.is_idle, "an action hangs"
    assert await world.database.read(journal.unfinished) == []
    found = {each.microvm_id: each for each in await world.host.survey()}
    assert found.keys() <= known.keys()
    for microvm_id in known:
        record = await world.life.microvms.get(CALLER, microvm_id)
        here = found.get(microvm_id)
        assert record.state in RESTING, record
        assert (here is not None and here.is_alive) is (record.state is S.RUNNING), (record, here)
        assert record.state is not S.TERMINATED or here is None, record
        assert record.state is not S.TERMINATED or record.state_reason
        assert record.state is not S.SUSPENDED or (here is not None and here.saved_at is not None), record
