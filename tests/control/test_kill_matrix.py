"""Kill the service at every boundary of every action: the next start reaches a state that is legal and loses nothing.

The list of actions is the one that recovery itself uses, so a new action or step is covered on the day it is added.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import timedelta

import pytest

from support.microvm_world import ALL_HOOKS, AWAKE, CALLER, World
from torpor.control.reconcile import ACTIONS
from torpor.model.errors import SaveFailed
from torpor.model.hooks import Hook, Hooks
from torpor.model.microvm import Microvm, MicrovmState
from torpor.store import journal

S = MicrovmState
MOMENTS = ("before", "ran", "done")


def _boundaries() -> Iterator[tuple[str, str, str]]:
    for action, steps in ACTIONS.items():
        for step in steps.steps:
            for moment in MOMENTS:
                is_last = step is steps.steps[-1]
                if not (is_last and moment == "done"):  # a last step is done with the action
                    yield action, step.name, moment
        yield action, "", "closed"


BOUNDARIES = list(_boundaries())
LEGAL = {
    "launch": {S.RUNNING}, "suspend": {S.SUSPENDED}, "resume": {S.SUSPENDED, S.RUNNING},
    "recover": {S.SUSPENDED, S.RUNNING}, "terminate": {S.TERMINATED},
}
"""Where each action may end when the machine has done nothing wrong."""


async def _begin(world: World, action: str) -> tuple[Microvm, asyncio.Task[None] | None]:
    """Begin the action on a microVM that remembers something, and crash in it."""
    world.images.hooks = Hooks(9000, {**ALL_HOOKS.enabled, Hook.READY: timedelta(seconds=5)})
    if action == "launch":
        return await world.run(idle_policy=AWAKE), None
    at, world.crash_at = world.crash_at, None
    microvm = await world.running(idle_policy=AWAKE)
    world.remember(microvm, "kept", "yes")
    if action in ("resume", "recover"):
        await world.life.microvms.suspend(CALLER, microvm.microvm_id)
    world.crash_at = at
    call = getattr(world.life.microvms, action)
    return microvm, asyncio.create_task(call(CALLER, microvm.microvm_id))


async def _crash_in(world: World, boundary: tuple[str, str, str]) -> Microvm:
    world.crash_at = boundary
    microvm, task = await _begin(world, boundary[0])
    async with asyncio.timeout(10):
        await world.crashed.wait()
    if task is not None:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    return microvm


@pytest.mark.parametrize("boundary", BOUNDARIES, ids="-".join)
async def test_a_killed_service_goes_on_where_it_was(world: World, boundary: tuple[str, str, str]) -> None:
    action = boundary[0]
    microvm = await _crash_in(world, boundary)
    await world.restart()
    await world.settle()
    found = await world.get(microvm)
    assert found.state in LEGAL[action], found
    assert await world.database.read(journal.unfinished) == []
    await _agrees(world, found)
    if action in ("suspend", "resume"):
        if found.state is S.SUSPENDED:
            await world.life.microvms.resume(CALLER, microvm.microvm_id)
        assert world.host.memory_of(microvm.microvm_id).values == {"kept": "yes"}
    if action == "launch":
        hooks = world.host.faults.calls_of(microvm.microvm_id)
        assert hooks.count(Hook.RUN) <= 1, "each new VM sees exactly one /run"


@pytest.mark.parametrize("boundary", BOUNDARIES, ids="-".join)
async def test_a_reboot_loses_only_what_ran(world: World, boundary: tuple[str, str, str]) -> None:
    action = boundary[0]
    microvm = await _crash_in(world, boundary)
    await world.restart(reboot=True)
    await world.settle()
    found = await world.get(microvm)
    assert found.state in (S.RUNNING, S.SUSPENDED, S.TERMINATED), found
    assert await world.database.read(journal.unfinished) == []
    await _agrees(world, found)
    was_saved = boundary in (("suspend", "save", "ran"), ("suspend", "save", "done")) or (
        action == "suspend" and boundary[1] in ("release", "")) or (
        action in ("resume", "recover") and boundary[1] != "")
    if was_saved:
        assert found.state is S.SUSPENDED, "what is on disk is not lost"
        await world.life.microvms.resume(CALLER, microvm.microvm_id)
        assert world.host.memory_of(microvm.microvm_id).values == {"kept": "yes"}
    elif found.state is S.TERMINATED and action != "terminate":
        assert found.state_reason is not None
        assert "virtual machine" in found.state_reason


@pytest.mark.parametrize("moment", ["before", "undone"])
async def test_an_undo_is_taken_up_again(world: World, moment: str) -> None:
    microvm = await world.running()
    world.host.faults.fail_step("save_memory", SaveFailed("disk full"))
    if moment == "undone":
        world.crash_at = ("suspend", "save", "undone")
    else:
        world.host.faults.set_delay("unpause", 60.0)
    suspending = asyncio.create_task(world.life.microvms.suspend(CALLER, microvm.microvm_id))
    if moment == "undone":
        await world.crashed.wait()
    else:
        await world.until(microvm, lambda found: found.state is S.SUSPENDING)
        await asyncio.sleep(0.05)
    suspending.cancel()
    world.host.faults.mend()
    await world.restart()
    await world.settle()
    found = await world.get(microvm)
    assert found.state is S.RUNNING
    assert found.state_reason == "The MicroVM could not be suspended: disk full"
    await _agrees(world, found)


async def test_a_crash_while_undoing_a_launch_ends_it(world: World) -> None:
    world.fail_at = ("launch", "restore", SaveFailed("no"))
    world.crash_at = ("launch", "restore", "undone")
    microvm = await world.run()
    await world.crashed.wait()
    await world.restart()
    await world.settle()
    found = await world.get(microvm)
    assert (found.state, found.state_reason) == (S.TERMINATED, "The MicroVM could not be launched: no")
    assert world.microvms_on_disk() == set()


async def test_strays_on_the_machine_are_discarded_at_start(world: World) -> None:
    microvm = await world.running()
    await world.crash()
    (world.path / "torpor.db").unlink()
    for left in world.path.glob("torpor.db-*"):
        left.unlink()
    await world.start()
    await world.settle()
    assert microvm.microvm_id not in world.microvms_on_disk()


async def test_what_was_saved_outlives_the_loss_of_its_record(world: World) -> None:
    """The wrong database, or an old one, is an operator's slip and no reason to delete memory and disks."""
    microvm = await world.running(idle_policy=AWAKE)
    await world.life.microvms.suspend(CALLER, microvm.microvm_id)
    await world.crash()
    kept = world.path / "kept.db"
    (world.path / "torpor.db").rename(kept)
    for left in world.path.glob("torpor.db-*"):
        left.unlink()
    await world.start()
    await world.settle()
    await world.life.reconcile.compare()
    assert microvm.microvm_id in world.microvms_on_disk()
    await world.crash()
    kept.rename(world.path / "torpor.db")
    for left in world.path.glob("torpor.db-*"):
        left.unlink()
    await world.start()
    await world.life.microvms.resume(CALLER, microvm.microvm_id)
    assert (await world.get(microvm)).state is S.RUNNING


async def _agrees(world: World, microvm: Microvm) -> None:
    """The machine has exactly what the record says."""
    found = {each.microvm_id: each for each in await world.host.survey()}
    here = found.get(microvm.microvm_id)
    if microvm.state is S.TERMINATED:
        assert here is None
    elif microvm.state is S.SUSPENDED:
        assert here is not None
        assert not here.is_alive
        assert here.saved_at is not None
    else:
        assert here is not None
        assert here.is_alive
        assert not here.is_paused
