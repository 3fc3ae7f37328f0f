"""What every engine promises (`vmm/base.py`), the same tests for all."""

from __future__ import annotations

import asyncio
import json
import secrets
import shutil
import time
from pathlib import Path

import pytest

from support.vmm_world import Saved, Vm, World
from torpor.host.guest import ENTROPY_BYTES
from torpor.model.errors import SaveFailed, SnapshotDamaged, SnapshotUnfit, VmmFailed
from torpor.vmm import DEVICE_STATE, ENGINE_RECORD, MEMORY_FILE, Machine, RestoreSpec, firecracker_vmm, qemu_vmm

pytestmark = pytest.mark.timeout(600)
CLOCKS_APART = 200_000_000
"""Nanoseconds between two clocks that run for some seconds; a wrong one is off by the age of its snapshot: seconds."""


async def gone(vm: Vm, within: float = 1.0) -> str:
    async with asyncio.timeout(within):
        return await vm.vmm.exited()


async def test_a_probe_tells_whether_the_engine_works(world: World) -> None:
    probe = await world.engine.probe()
    assert probe.works
    assert probe.acceleration in ("kvm", "tcg", "none")
    assert probe.reason


async def test_a_booted_vm_runs_and_keeps_what_it_is_told(world: World) -> None:
    vm = await world.boot()
    await vm.guest.put("colour", "red")
    await vm.guest.put_on_disk("written")
    assert await vm.guest.get("colour") == "red"
    assert await vm.guest.get_from_disk() == "written"
    assert vm.vmm.memory_bytes() > 0


async def test_pausing_and_unpausing_twice_do_nothing(world: World, base: Saved) -> None:
    vm = await world.resume(base)
    await vm.vmm.unpause()
    await vm.guest.put("a", "1")
    await vm.vmm.pause()
    await vm.vmm.pause()
    await vm.vmm.unpause()
    await vm.vmm.unpause()
    assert await vm.guest.get("a") == "1"


async def test_a_restored_vm_has_the_memory_and_the_disk_of_the_saved_one(world: World, base: Saved) -> None:
    vm = await world.resume(base)
    assert await vm.guest.get("who") == "base"
    assert await vm.guest.get_from_disk() == "base disk"


async def test_clones_of_one_snapshot_do_not_see_each_other(world: World, base: Saved) -> None:
    clones = [await world.resume(base) for _ in range(3)]
    for number, clone in enumerate(clones):
        await clone.guest.put("who", f"clone {number}")
        await clone.guest.put_on_disk(f"disk {number}")
    assert [await clone.guest.get("who") for clone in clones] == ["clone 0", "clone 1", "clone 2"]
    assert [await clone.guest.get_from_disk() for clone in clones] == ["disk 0", "disk 1", "disk 2"]
    late = await world.resume(base)
    assert await late.guest.get("who") == "base"


async def test_clones_and_their_later_lives_have_random_numbers_of_their_own_and_the_right_time(
    world: World, base: Saved
) -> None:
    lives = [await world.resume(base) for _ in range(3)]
    drawn = [await told_and_drawn(vm) for vm in lives]
    saved = await world.save(lives[0])
    lives[0] = await world.resume(saved)
    drawn += [await told_and_drawn(lives[0]), *[await vm.guest.random() for vm in lives]]
    assert len(set(drawn)) == len(drawn)


async def told_and_drawn(vm: Vm) -> str:
    """Tell a clone what every clone is told; its clock must be right then."""
    told = time.time_ns()
    await vm.guest.restored(told, secrets.token_bytes(ENTROPY_BYTES))
    took = time.time_ns() - told  # its clock was set at some moment of this
    asked = time.time_ns()
    at = await vm.guest.clock_ns()
    assert asked - took - CLOCKS_APART <= at <= time.time_ns() + CLOCKS_APART
    return await vm.guest.random()


async def test_many_suspends_and_resumes_keep_memory_and_disk(world: World, base: Saved) -> None:
    saved, expected = base, ""
    for round_ in range(1, 7):
        vm = await world.resume(saved)
        if expected:
            assert await vm.guest.checksum() == expected
            assert await vm.guest.get("round") == str(round_ - 1)
            assert await vm.guest.get_from_disk() == f"round {round_ - 1}"
        await vm.guest.put("round", str(round_))
        await vm.guest.put_on_disk(f"round {round_}")
        # Not in every round: a page that was dirtied rounds ago must come from the file of then.
        expected = await vm.guest.scribble(round_) if round_ % 2 else await vm.guest.checksum()
        older, saved = saved, await world.save(vm)
        await vm.vmm.end()
        if older != base:
            shutil.rmtree(older.snapshot)
    assert await (await world.resume(saved)).guest.get("who") == "base"


async def test_a_saved_vm_goes_on_and_can_be_saved_again(world: World, base: Saved) -> None:
    vm = await world.resume(base)
    await vm.guest.put("n", "1")
    first = await world.save(vm)
    await vm.vmm.unpause()
    await vm.guest.put("n", "2")
    second = await world.save(vm)
    assert await (await world.resume(first)).guest.get("n") == "1"
    assert await (await world.resume(second)).guest.get("n") == "2"


async def test_a_vm_can_be_saved_after_its_snapshot_was_deleted(world: World, base: Saved) -> None:
    own = base.copy(world.folder / "own")
    vm = await world.resume(own)
    await vm.guest.put("n", "1")
    shutil.rmtree(own.snapshot)
    saved = await world.save(vm)
    clone = await world.resume(saved)
    assert await clone.guest.get("n") == "1"
    assert await clone.guest.get("who") == "base"


async def test_saving_writes_the_three_files_and_nothing_else(world: World, base: Saved) -> None:
    vm = await world.resume(base)
    saved = await world.save(vm)
    assert sorted(path.name for path in saved.snapshot.iterdir()) == sorted([MEMORY_FILE, DEVICE_STATE, ENGINE_RECORD])


async def test_restoring_leaves_the_snapshot_as_it_was(world: World, base: Saved) -> None:
    own = base.copy(world.folder / "own")
    before = {path.name: path.read_bytes() for path in own.snapshot.iterdir()}
    vm = await world.resume(own)
    await vm.guest.scribble(3)
    await world.save(vm)
    assert {path.name: path.read_bytes() for path in own.snapshot.iterdir()} == before


async def test_a_running_vm_is_not_saved(world: World, base: Saved) -> None:
    vm = await world.resume(base)
    into = world.new_folder("refused")
    with pytest.raises(SaveFailed, match="not paused"):
        await vm.vmm.save(into)
    assert list(into.iterdir()) == []
    assert await vm.guest.get("who") == "base"


async def test_a_save_without_space_leaves_the_vm_whole_and_no_files(world: World, base: Saved) -> None:
    vm = await world.resume(base)
    await vm.guest.put("n", "1")
    sum_ = await vm.guest.scribble(1)
    await vm.vmm.pause()
    with world.full_folder(vm) as full:
        with pytest.raises(SaveFailed, match="No space left"):
            await vm.vmm.save(full)
        assert list(full.iterdir()) == []
    await vm.vmm.unpause()
    assert await vm.guest.get("n") == "1"
    saved = await world.save(vm)
    assert await (await world.resume(saved)).guest.checksum() == sum_


async def test_a_save_into_nowhere_fails_and_leaves_the_vm_whole(world: World, base: Saved) -> None:
    vm = await world.resume(base)
    await vm.vmm.pause()
    with pytest.raises(SaveFailed):
        await vm.vmm.save(world.folder / "nowhere")
    await vm.vmm.unpause()
    assert await vm.guest.get("who") == "base"


async def test_a_vmm_that_dies_is_noticed_within_a_second(world: World, base: Saved) -> None:
    vm = await world.resume(base)
    waiting = asyncio.ensure_future(vm.vmm.exited())
    await asyncio.sleep(0)
    world.die(vm)
    started = time.monotonic()
    assert "SIGKILL" in await asyncio.wait_for(waiting, 1.0)
    assert time.monotonic() - started < 1.0
    assert vm.vmm.memory_bytes() == 0


async def test_a_dead_vmm_refuses_everything_but_its_end(world: World, base: Saved) -> None:
    vm = await world.resume(base)
    world.die(vm)
    await gone(vm)
    for act in (vm.vmm.pause, vm.vmm.unpause):
        with pytest.raises(VmmFailed):
            await act()
    with pytest.raises(SaveFailed):
        await vm.vmm.save(world.new_folder("dead"))
    await vm.vmm.end()


async def test_a_vmm_that_hangs_is_given_up_by_a_deadline_and_can_go_on(
    world: World, base: Saved, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (qemu_vmm, firecracker_vmm):
        monkeypatch.setattr(module, "PAUSE_TIMEOUT", 0.5)
    vm = await world.resume(base)
    await vm.guest.put("n", "1")
    world.hang(vm)
    started = time.monotonic()
    with pytest.raises(VmmFailed):
        await vm.vmm.pause()
    with pytest.raises(VmmFailed):
        await vm.vmm.unpause()
    with pytest.raises(SaveFailed):
        await vm.vmm.save(world.new_folder("hung"))
    assert time.monotonic() - started < 30
    world.go_on(vm)
    monkeypatch.undo()
    await vm.vmm.unpause()
    assert await vm.guest.get("n") == "1"


async def test_a_vmm_that_hangs_can_be_ended(world: World, base: Saved) -> None:
    vm = await world.resume(base)
    world.hang(vm)
    await vm.vmm.end()
    assert await gone(vm)


async def test_ending_twice_does_nothing(world: World, base: Saved) -> None:
    vm = await world.resume(base)
    await vm.vmm.end()
    await vm.vmm.end()
    assert await gone(vm)


async def test_a_paused_vm_can_be_ended(world: World, base: Saved) -> None:
    vm = await world.restore(base)
    await vm.vmm.end()
    assert await gone(vm)


async def test_a_vm_is_adopted_after_a_restart(world: World, base: Saved) -> None:
    vm = await world.resume(base)
    await vm.guest.put("n", "1")
    await world.restart()
    again = await world.adopt(vm)
    assert again is not None
    assert again.vmm.pid == vm.vmm.pid
    assert await again.guest.get("n") == "1"
    saved = await world.save(again)
    assert await (await world.resume(saved)).guest.get("n") == "1"
    await again.vmm.end()
    assert await world.adopt(vm) is None


async def test_a_paused_vm_is_adopted_paused(world: World, base: Saved) -> None:
    vm = await world.restore(base)
    await world.restart()
    again = await world.adopt(vm)
    assert again is not None
    saved = world.new_folder("snapshot")
    await again.vmm.save(saved)
    await again.vmm.unpause()
    assert await again.guest.get("who") == "base"


async def test_the_death_of_an_adopted_vm_is_noticed(world: World, base: Saved) -> None:
    vm = await world.resume(base)
    await world.restart()
    again = await world.adopt(vm)
    assert again is not None
    world.die(vm)
    assert await gone(again)


async def test_nothing_is_adopted_where_no_vm_ever_was(world: World) -> None:
    assert await world.engine.adopt(world.folder / "nothing") is None


@pytest.mark.parametrize("name", [MEMORY_FILE, DEVICE_STATE, ENGINE_RECORD])
async def test_a_snapshot_without_one_of_its_files_is_damaged(world: World, base: Saved, name: str) -> None:
    own = base.copy(world.folder / "own")
    (own.snapshot / name).unlink()
    with pytest.raises(SnapshotDamaged):
        await world.restore(own)


@pytest.mark.parametrize("name", [MEMORY_FILE, DEVICE_STATE, ENGINE_RECORD])
async def test_a_truncated_snapshot_is_damaged(world: World, base: Saved, name: str) -> None:
    own = base.copy(world.folder / "own")
    _truncate(own.snapshot / name)
    with pytest.raises(SnapshotDamaged):
        await world.restore(own)


async def test_a_device_state_with_a_changed_byte_is_damaged(world: World, base: Saved) -> None:
    own = base.copy(world.folder / "own")
    path = own.snapshot / DEVICE_STATE
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(SnapshotDamaged, match="checksum"):
        await world.restore(own)


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("format", 0, "format 0.*build the image again"),
        ("engine", "bochs", "saved by bochs.*build the image again"),
        ("architecture", "sparc64", "sparc64 machine.*build the image again"),
        ("cpu", "GenuineIntel family 6 model 1 stepping 0", "GenuineIntel.*build the image again"),
    ],
)
async def test_a_snapshot_that_does_not_fit_is_refused_with_what_to_do(
    world: World, base: Saved, field: str, value: object, said: str
) -> None:
    own = base.copy(world.folder / "own")
    record = json.loads((own.snapshot / ENGINE_RECORD).read_bytes())
    record["maker"][field] = value
    (own.snapshot / ENGINE_RECORD).write_text(json.dumps(record))
    with pytest.raises(SnapshotUnfit, match=said):
        await world.restore(own)


async def test_a_snapshot_of_another_machine_is_refused_by_name(world: World, base: Saved) -> None:
    spec = RestoreSpec(Machine(1, 128), base.snapshot, [], None, world.folder / "run")
    with pytest.raises(VmmFailed, match="memory_mib=256"):
        await world.engine.restore(spec)


def _truncate(path: Path) -> None:
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.truncate(size // 2)
