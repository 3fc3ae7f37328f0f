"""Disk space for suspends that have not happened yet."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from support.host_world import HostWorld, host_world
from torpor.config import ConfigError, SnapshotSettings
from torpor.host.space import MEBIBYTE, Space
from torpor.model.errors import NoRoom, SaveFailed
from torpor.model.ids import MicrovmId

ONE, TWO, THREE = (MicrovmId(f"microvm-{n}") for n in (1, 2, 3))
GUEST_MIB = 2048


class Disk:
    """A disk with so many MiB free."""

    def __init__(self, free_mib: int) -> None:
        self.free_mib = free_mib

    def __call__(self, _: Path) -> int:
        return self.free_mib * MEBIBYTE


def space(disk: Disk, **settings: float) -> Space:
    wanted = {"reserve": 0.25, "keep_free_mib": 100} | settings
    return Space(SnapshotSettings(**wanted), (Path("/"),), disk)  # type: ignore[arg-type]


def test_as_many_are_admitted_as_can_be_suspended() -> None:
    found = space(Disk(100 + 2 * 512))
    found.promise(ONE, GUEST_MIB)
    found.promise(TWO, GUEST_MIB)
    with pytest.raises(NoRoom, match="would need 512 MiB, and 0 MiB are free and not promised to those that run"):
        found.promise(THREE, GUEST_MIB)
    with pytest.raises(NoRoom):
        found.admit(GUEST_MIB)
    found.drop(ONE)
    found.promise(THREE, GUEST_MIB)
    assert found.promised == 2 * 512 * MEBIBYTE


def test_a_promise_that_is_repeated_is_one() -> None:
    found = space(Disk(100 + 512))
    found.promise(ONE, GUEST_MIB)
    found.promise(ONE, GUEST_MIB)
    assert found.promised == 512 * MEBIBYTE


def test_what_runs_already_is_counted_whether_or_not_there_is_room() -> None:
    found = space(Disk(0))
    found.adopt(ONE, GUEST_MIB)
    assert found.promised == 512 * MEBIBYTE


def test_nothing_is_refused_without_a_reserve() -> None:
    found = space(Disk(0), reserve=0)
    found.promise(ONE, GUEST_MIB)
    with pytest.raises(SaveFailed, match="there is no disk space: up to 1 MiB are to be written, and 0 MiB are free"):
        found.check_save(ONE, GUEST_MIB, lambda: MEBIBYTE)


def test_a_save_may_use_its_own_promise_and_what_is_nobodys_but_no_others() -> None:
    disk = Disk(2000)
    found = space(disk)
    found.promise(ONE, GUEST_MIB)
    found.promise(TWO, GUEST_MIB)
    found.check_save(ONE, GUEST_MIB, lambda: 1488 * MEBIBYTE)
    with pytest.raises(SaveFailed, match="1488 MiB are free and not promised to others"):
        found.check_save(ONE, GUEST_MIB, lambda: 1489 * MEBIBYTE)
    disk.free_mib = 600  # somebody else has written
    with pytest.raises(SaveFailed):
        found.check_save(ONE, GUEST_MIB, lambda: 100 * MEBIBYTE)


def test_a_save_with_room_for_all_of_its_memory_is_not_asked_how_much_it_needs() -> None:
    space(Disk(GUEST_MIB)).check_save(ONE, GUEST_MIB, lambda: 1 // 0)


def test_negative_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match="must not be negative"):
        space(Disk(0), reserve=-1)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[HostWorld]:
    async with host_world(tmp_path) as made:
        yield made


async def test_a_host_without_room_refuses_before_it_has_made_anything(world: HostWorld) -> None:
    world.config = replace(world.config, snapshots=SnapshotSettings(reserve=10_000_000.0))
    await world.restarted()
    before = world.picture()
    with pytest.raises(NoRoom, match="no disk space to suspend another MicroVM later"):
        await world.host.launch(world.order())
    with pytest.raises(NoRoom):
        await world.host.admit(512)
    assert world.picture() == before


async def test_a_refused_wake_leaves_the_saved_files_and_can_be_tried_again(world: HostWorld) -> None:
    await world.host.launch(world.order())
    await world.host.save(ONE)
    await world.host.release(ONE)
    assert world.host._space.promised == 0
    disk = Disk(0)
    world.host._space._free = disk
    before = world.picture()
    for act in (world.host.resume, world.host.recover):
        with pytest.raises(NoRoom):
            await act(world.order())
    assert world.picture() == before
    disk.free_mib = 100_000
    await world.host.resume(world.order())


async def test_a_suspend_without_room_does_not_even_pause_the_vm(world: HostWorld) -> None:
    await world.host.launch(world.order())
    world.host._space._free = Disk(-1)
    with pytest.raises(SaveFailed, match="there is no disk space"):
        await world.host.save(ONE)
    (vmm,) = [each for each in world.engine.running.values() if each.is_alive]
    assert not world.host._placed[ONE].place.note.is_paused
    world.host._space._free = Disk(100_000)
    await world.host.save(ONE)
    assert vmm.is_alive
