"""What a host finds on its machine that it does not need, and that it takes nothing else for that."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from support.host_world import SNAPSHOT, HostWorld, host_world
from support.leak_plants import STRAY, Plants
from torpor.host.holding import Kind, unused
from torpor.host.inventory import kernel, processes
from torpor.model.ids import MicrovmId

VM, ASLEEP = MicrovmId("microvm-1"), MicrovmId("microvm-2")
KNOWN = {f"microvm:{VM}", f"microvm:{ASLEEP}", f"snapshot:{SNAPSHOT}"}


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[HostWorld]:
    """One microVM that runs, and one that sleeps."""
    async with host_world(tmp_path) as made:
        for microvm_id in (VM, ASLEEP):
            await made.host.launch(made.order(microvm_id))
            await made.host.save(microvm_id)
        await made.host.unpause(VM)
        await made.host.release(ASLEEP)
        yield made


async def leaks(world: HostWorld) -> set[tuple[str, str]]:
    return {(each.kind.value, each.name) for each in unused(await world.host.inventory(), KNOWN)}


async def test_what_runs_and_what_sleeps_is_no_leak(world: HostWorld) -> None:
    assert await leaks(world) == set()
    await world.restarted()
    assert await leaks(world) == set()


async def test_a_disk_mounted_at_a_folder_of_the_data_directory_is_its_owners_and_any_other_mount_a_leak(
        world: HostWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    estate = world.host._stock._estate
    places = [estate.data_dir / name for name in ("artefacts", "s3", "left", "artefacts/left")]
    table = tmp_path / "mountinfo"
    table.write_text("".join(f"30 1 8:1 / {place} rw - ext4 /dev/sdb rw\n" for place in places))
    monkeypatch.setattr(kernel, "MOUNT_TABLE", table)
    assert await leaks(world) == {("mount", str(places[2])), ("mount", str(places[3]))}


async def test_each_planted_file_is_found_and_removed_and_nothing_else(world: HostWorld) -> None:
    before = world.picture()
    plants = Plants(world.host._stock._estate)
    plants.files(ASLEEP)
    assert await leaks(world) == plants.planted
    for holding in unused(await world.host.inventory(), KNOWN):
        await world.host.remove(holding)
        await world.host.remove(holding)
    assert plants.still_there() == []
    assert world.picture() == before
    await world.host.resume(world.order(ASLEEP))


async def test_the_disk_and_the_generation_that_a_vm_runs_from_are_not_taken_for_old_ones(world: HostWorld) -> None:
    await world.host.save(VM)  # runs from `base`, has a generation newer than its last one
    assert await leaks(world) == set()
    await world.host.resume(world.order(ASLEEP))
    await world.host.save(ASLEEP)
    assert world.layout.microvm(ASLEEP).generations() == [1, 2]
    assert await leaks(world) == set()


async def test_a_vm_without_a_record_goes_with_everything_it_has(world: HostWorld) -> None:
    await world.host.launch(world.order(STRAY))
    found = unused(await world.host.inventory(), KNOWN)
    assert [each.kind for each in found] == [Kind.MICROVM]
    await world.host.remove(found[0])
    assert world.host.upstream(MicrovmId(STRAY), 80) is None
    assert len(world.slots.out) == 1


async def test_nothing_under_way_is_taken_for_a_leak(world: HostWorld) -> None:
    """Looked at twice with the records read between, as `gc` does, while microVMs come, sleep, wake and go."""
    busy = asyncio.ensure_future(_live_busily(world))
    try:
        while not busy.done():
            first = await world.host.inventory()
            second = {each.id for each in await world.host.inventory()}
            known = KNOWN | {"microvm:busy"}
            assert [each for each in unused(first, known) if each.id in second] == []
    finally:
        await busy


async def _live_busily(world: HostWorld) -> None:
    order, busy = world.order("busy"), MicrovmId("busy")
    for _ in range(5):
        await world.host.launch(order)
        for _ in range(3):
            await world.host.save(busy)
            await world.host.release(busy)
            await world.host.resume(order)
        await world.host.discard(busy)


async def test_somebody_elses_qemu_with_a_kernel_of_ours_is_none_of_our_processes(
        world: HostWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    estate = world.host._stock._estate
    kernel, monitor = estate.data_dir / "artefacts/kernel/vmlinuz", estate.layout.run_dir / "00000000/monitor"
    for pid, word in (("4000001", kernel), ("4000002", monitor)):
        process = tmp_path / "proc" / pid
        process.mkdir(parents=True)
        (process / "cmdline").write_text(f"/usr/bin/qemu-system-x86_64\0-x\0{word}\0")
        (process / "stat").write_text(f"{pid} (qemu) S 1 " + "7 " * 30)
    monkeypatch.setattr(processes, "PROC", tmp_path / "proc")
    assert [each.name for each in processes.processes(estate)] == ["4000002@7"]
