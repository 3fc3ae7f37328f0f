"""What the local host promises, on the simulated engine: failures at every step, restarts, damaged files."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest

from support.host_world import SNAPSHOT, HostWorld, host_world
from torpor.host.base import ApplicationExited, ApplicationLine, HostEvent, VmmDied
from torpor.host.local import LocalHost
from torpor.host.network.tenant import ANYBODY
from torpor.host.snapshots import MANIFEST, PARTS
from torpor.model.errors import GuestSilent, SaveFailed, SnapshotDamaged, VmmFailed
from torpor.model.hooks import Hook
from torpor.model.ids import MicrovmId

VM = MicrovmId("microvm-1")


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[HostWorld]:
    async with host_world(tmp_path) as made:
        yield made


async def told(host: LocalHost, count: int) -> list[HostEvent]:
    events = host.events()
    async with asyncio.timeout(5):
        return [await anext(events) for _ in range(count)]


def memory(world: HostWorld) -> dict[str, object]:
    return next(vmm.memory for vmm in world.engine.running.values() if vmm.is_alive)


async def test_a_launch_names_its_steps_and_tells_the_guest_the_time(world: HostWorld) -> None:
    placement = await world.host.launch(world.order())
    assert [step.name for step in placement.steps] == ["take_slot", "clone_disk", "restore_memory", "unpause",
                                                       "guest_restored"]
    (restored,) = world.agent(VM).restored
    assert len(restored["entropy"]) == 88
    assert world.host.upstream(VM, 8080) is not None


async def test_two_launches_get_different_entropy_and_addresses(world: HostWorld) -> None:
    one = await world.host.launch(world.order("microvm-1"))
    two = await world.host.launch(world.order("microvm-2"))
    entropy = {world.agent(MicrovmId(f"microvm-{n}")).restored[0]["entropy"] for n in (1, 2)}
    assert len(entropy) == 2
    assert one.address != two.address


@pytest.mark.parametrize("action", ["restore", "unpause"])
async def test_a_launch_that_fails_leaves_nothing(world: HostWorld, action: str) -> None:
    before = world.picture()
    world.faults.fail_next(action, VmmFailed("broken"))
    with pytest.raises(VmmFailed):
        await world.host.launch(world.order())
    assert world.picture() == before


async def test_a_launch_whose_guest_is_silent_leaves_nothing(world: HostWorld) -> None:
    before = world.picture()
    world.slots.is_broken = True
    with pytest.raises(GuestSilent):
        await world.host.launch(world.order())
    assert world.picture() == before


async def test_a_launch_cancelled_at_any_moment_leaves_nothing_or_a_whole_vm(world: HostWorld) -> None:
    before = world.picture()
    for step in range(40):
        launching = asyncio.ensure_future(world.host.launch(world.order()))
        await asyncio.sleep(step * 0.0005)
        launching.cancel()
        await asyncio.wait([launching])
        if launching.cancelled():
            assert world.picture() == before, step
        else:
            await world.host.discard(VM)
            assert world.picture() == before, step


async def test_a_damaged_snapshot_is_named(world: HostWorld) -> None:
    (world.layout.snapshot(SNAPSHOT) / "disk").write_bytes(b"")
    before = world.picture()
    with pytest.raises(SnapshotDamaged, match="disk has 0 bytes instead of 4"):
        await world.host.launch(world.order())
    assert world.picture() == before


async def test_memory_and_disk_survive_suspends(world: HostWorld) -> None:
    await world.host.launch(world.order())
    for round_ in range(3):
        memory(world)["x"] = round_
        world.layout.microvm(VM).live_disk.write_bytes(f"disk {round_}".encode())
        saved = await world.host.save(VM)
        assert [step.name for step in saved.steps] == ["close_connections", "sync", "pause", "save_memory",
                                                       "clone_disk", "publish"]
        await world.host.release(VM)
        assert world.host.upstream(VM, 8080) is None
        await world.host.resume(world.order())
        assert memory(world)["x"] == round_
        assert world.layout.microvm(VM).live_disk.read_bytes() == f"disk {round_}".encode()
    assert world.layout.microvm(VM).generations() == [3]


async def test_a_resume_gets_a_new_address(world: HostWorld) -> None:
    first = await world.host.launch(world.order())
    await world.host.save(VM)
    await world.host.release(VM)
    assert (await world.host.resume(world.order())).address != first.address


async def test_what_happens_after_a_resume_does_not_touch_the_saved_files(world: HostWorld) -> None:
    await world.host.launch(world.order())
    await world.host.save(VM)
    await world.host.release(VM)
    generation = world.layout.microvm(VM).generation(1)
    # Its checksums come later, beside the files.
    before = {name: (generation / name).read_bytes() for name in (*PARTS, MANIFEST)}
    await world.host.resume(world.order())
    world.layout.microvm(VM).live_disk.write_bytes(b"changed")
    memory(world)["x"] = "changed"
    await world.host.release(VM)
    assert {name: (generation / name).read_bytes() for name in before} == before


@pytest.mark.parametrize("error", [SaveFailed("no space"), VmmFailed("it did not answer")])
async def test_a_failed_save_leaves_a_paused_whole_vm_and_no_draft(world: HostWorld, error: Exception) -> None:
    await world.host.launch(world.order())
    before = world.picture()
    world.faults.fail_next("save", error)
    with pytest.raises(SaveFailed):
        await world.host.save(VM)
    assert world.picture() == before
    await world.host.unpause(VM)
    await world.host.save(VM)


async def test_a_full_disk_fails_the_save_and_keeps_the_earlier_generation(
        world: HostWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    await world.host.launch(world.order())
    await world.host.save(VM)
    before = world.picture()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("torpor.host.saving.publish_snapshot", full)
    with pytest.raises(SaveFailed, match="No space left"):
        await world.host.save(VM)
    assert world.picture() == before


async def test_a_cancelled_save_leaves_no_draft(world: HostWorld) -> None:
    await world.host.launch(world.order())
    before = world.picture()
    world.faults.hang("save")
    saving = asyncio.ensure_future(world.host.save(VM))
    await asyncio.sleep(0.05)
    saving.cancel()
    await asyncio.wait([saving])
    assert world.picture() == before


async def test_a_failed_resume_keeps_the_generation(world: HostWorld) -> None:
    await world.host.launch(world.order())
    await world.host.save(VM)
    await world.host.release(VM)
    before = world.picture()
    world.faults.fail_next("restore", SnapshotDamaged("checksum"))
    with pytest.raises(SnapshotDamaged):
        await world.host.resume(world.order())
    assert world.picture() == before
    await world.host.resume(world.order())


async def test_save_pause_and_release_may_be_repeated(world: HostWorld) -> None:
    await world.host.launch(world.order())
    await world.host.save(VM)
    await world.host.save(VM)
    for _ in range(2):
        await world.host.release(VM)
    assert world.layout.microvm(VM).generations() == [2]
    for _ in range(2):
        await world.host.discard(VM)
    assert await world.host.survey() == []


async def test_launching_twice_is_launching_once(world: HostWorld) -> None:
    first = await world.host.launch(world.order())
    again = await world.host.launch(world.order())
    assert again.address == first.address
    assert len(world.slots.out) == 1


async def test_a_microvm_outlives_the_snapshot_it_came_from(world: HostWorld) -> None:
    await world.host.launch(world.order())
    for _ in range(2):
        await world.host.delete_snapshot(SNAPSHOT)
    await world.host.save(VM)
    await world.host.release(VM)
    await world.host.resume(world.order())
    with pytest.raises(SnapshotDamaged):
        await world.host.launch(world.order("microvm-2"))


async def test_discarding_leaves_nothing(world: HostWorld) -> None:
    before = world.picture()
    await world.host.launch(world.order())
    await world.host.save(VM)
    await world.host.discard(VM)
    assert world.picture() == before


async def test_lines_and_the_end_of_the_application_are_told_in_order(world: HostWorld) -> None:
    await world.host.launch(world.order())
    agent = world.agent(VM)
    agent.writes("one")
    agent.writes("two")
    agent.exits(3)
    lines = await told(world.host, 3)
    assert [event.line for event in lines if isinstance(event, ApplicationLine)] == ["one", "two"]
    assert lines[2] == ApplicationExited(VM, 3)


async def test_no_line_is_lost_or_doubled_over_suspends(world: HostWorld) -> None:
    await world.host.launch(world.order())
    seen = 0
    for round_ in range(3):
        agent = world.agent(VM)
        agent.writes(f"before {round_}")
        (event,) = await told(world.host, 1)
        assert isinstance(event, ApplicationLine)
        assert event.line == f"before {round_}"
        await world.host.save(VM)
        agent.writes(f"unread {round_}")  # as if it was on its way when the VM was paused
        lines = list(agent.lines)
        await world.host.release(VM)
        await world.host.resume(world.order())
        world.agent(VM).lines[:] = lines
        (event,) = await told(world.host, 1)
        assert isinstance(event, ApplicationLine)
        assert event.line == f"unread {round_}"
        seen += 2
    assert len(lines) == seen


async def test_a_dying_vmm_is_told_and_its_place_is_taken_back_later(world: HostWorld) -> None:
    await world.host.launch(world.order())
    next(iter(world.engine.running.values())).die("killed by signal 9")
    assert await told(world.host, 1) == [VmmDied(VM, "killed by signal 9")]
    assert world.host.upstream(VM, 8080) is None
    with pytest.raises(VmmFailed):
        await world.host.save(VM)
    await world.host.release(VM)
    assert world.slots.out == {}


async def test_our_own_end_of_a_vmm_is_no_news(world: HostWorld) -> None:
    await world.host.launch(world.order())
    await world.host.release(VM)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await anext(world.host.events())


async def test_hooks_reach_the_guest(world: HostWorld) -> None:
    await world.host.launch(world.order())
    answer = await world.host.call_hook(VM, Hook.RUN, 9000, '{"a":1}', timedelta(seconds=2))
    assert (answer.status, answer.seconds) == (200, 0.003)
    assert world.agent(VM).hooks == [{"name": "run", "port": 9000, "body": '{"a":1}', "timeout_ms": 2000}]


async def test_a_restarted_service_adopts_what_lives(world: HostWorld) -> None:
    await world.host.launch(world.order("microvm-1"))
    await world.host.launch(world.order("microvm-2"))
    await world.host.save(MicrovmId("microvm-2"))
    world.agent(VM).writes("told before")
    await told(world.host, 1)
    before = world.picture()
    host = await world.restarted()
    assert world.picture() == before
    found = {each.microvm_id: each for each in await host.survey()}
    assert (found[VM].is_alive, found[VM].is_paused, found[VM].saved_at) == (True, False, None)
    other = found[MicrovmId("microvm-2")]
    assert (other.is_alive, other.is_paused) == (True, True)
    assert other.saved_at is not None
    world.agent(VM).writes("told after")
    (event,) = await told(host, 1)
    assert isinstance(event, ApplicationLine)
    assert event.line == "told after"
    await host.save(VM)
    await host.release(VM)


async def test_a_restart_in_the_middle_of_a_launch_removes_it(world: HostWorld) -> None:
    world.faults.hang("unpause")
    launching = asyncio.ensure_future(world.host.launch(world.order()))
    await asyncio.sleep(0.1)
    picture = world.picture()
    assert any(line.startswith("vmm") for line in picture)
    old = world.host
    world.host = LocalHost(world.config, world.prepared, world.engine, world.slots, old._clock,
                           run_dir=world.layout.run_dir)
    await world.host.start()  # the old one never stopped, as after kill -9
    assert not [line for line in world.picture() if line.startswith(("vmm", "slot"))]
    launching.cancel()
    await asyncio.wait([launching])
    await old.stop()


async def test_slots_drafts_builds_and_stale_disks_nobody_owns_are_removed(world: HostWorld) -> None:
    await world.host.launch(world.order())
    await world.host.save(VM)
    await world.host.release(VM)
    before = world.picture()
    await world.slots.take(ANYBODY)
    for parent, name in ((world.layout.snapshots, "x.draft"), (world.layout.builds, "b"),
                         (world.layout.microvm(VM).path, "gen-9.draft")):
        (parent / name).mkdir()
    world.layout.microvm(VM).live_disk.write_bytes(b"stale")
    await world.restarted()
    assert world.picture() == before


async def test_traffic_is_dated_when_a_counter_moves(world: HostWorld) -> None:
    await world.host.launch(world.order())
    assert await world.host.last_traffic(VM) is None
    world.slots.counts[next(iter(world.slots.out))] = 10
    await asyncio.sleep(0.15)
    first = await world.host.last_traffic(VM)
    assert first is not None
    await asyncio.sleep(0.15)
    assert await world.host.last_traffic(VM) == first
    world.slots.counts[next(iter(world.slots.out))] = 11
    await asyncio.sleep(0.15)
    assert (await world.host.last_traffic(VM) or first) > first
    await world.host.discard(VM)
    assert await world.host.last_traffic(VM) is None


async def test_actions_on_one_microvm_wait_for_each_other(world: HostWorld) -> None:
    await world.host.launch(world.order())
    hanging = world.faults.hang("save")
    saving = asyncio.ensure_future(world.host.save(VM))
    releasing = asyncio.ensure_future(world.host.release(VM))
    await asyncio.sleep(0.1)
    assert not releasing.done()
    hanging.set()
    await saving
    await releasing
    assert world.layout.microvm(VM).generations() == [1]


async def test_statistics_are_of_this_machine(world: HostWorld) -> None:
    await world.host.launch(world.order())
    stats = await world.host.stats()
    assert (stats.engine, stats.acceleration) == ("simulated", "none")
    assert stats.memory_used_bytes > 0
    assert stats.disk_free_bytes > 0


async def test_a_suspended_microvm_keeps_no_file_of_its_image_but_what_it_shares(world: HostWorld) -> None:
    await world.host.launch(world.order())
    await world.host.save(VM)
    await world.host.release(VM)
    assert not world.layout.microvm(VM).base.exists()
    await world.host.resume(world.order())
