"""When saved files are summed and compared, and what happens when they differ."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from support.host_world import SNAPSHOT, HostWorld, host_world
from support.waiting import until
from torpor.config import ConfigError, SnapshotSettings
from torpor.host.base import FilesDamaged
from torpor.host.checksums import read_sums
from torpor.host.integrity import Integrity
from torpor.host.layout import Layout
from torpor.host.snapshots import CHECKSUMS
from torpor.model.errors import SnapshotDamaged
from torpor.model.ids import MicrovmId

VM = MicrovmId("microvm-1")


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[HostWorld]:
    async with host_world(tmp_path) as made:
        yield made


async def asleep(world: HostWorld) -> Path:
    """The saved generation of a microVM that sleeps."""
    await world.host.launch(world.order())
    await world.host.save(VM)
    await world.host.release(VM)
    return world.layout.microvm(VM).generation(1)


def damage(snapshot: Path) -> str:
    """Change what is saved so that nothing but a checksum can tell."""
    before = (snapshot / "memory").read_text()
    (snapshot / "memory").write_text(before.replace("41", "42"))
    assert (snapshot / "memory").read_text() != before
    return before


async def verifying(world: HostWorld, verify: str) -> None:
    world.config = replace(world.config, snapshots=SnapshotSettings(verify=verify))
    await world.restarted()


async def test_a_generation_is_summed_behind_its_suspend(world: HostWorld) -> None:
    generation = await asleep(world)
    await until(lambda: read_sums(generation) is not None)


async def test_what_an_earlier_process_did_not_sum_is_summed_at_the_next_start(world: HostWorld) -> None:
    generation = await asleep(world)
    await until((generation / CHECKSUMS).exists)
    (generation / CHECKSUMS).unlink()
    await world.restarted()
    await until(lambda: all((path / CHECKSUMS).exists() for path in (generation, world.layout.snapshot(SNAPSHOT))))


async def test_damage_is_told_at_the_start_and_a_resume_is_refused_until_the_files_are_right(world: HostWorld) -> None:
    generation = await asleep(world)
    await until((generation / CHECKSUMS).exists)
    right = damage(generation)
    await world.restarted()
    async with asyncio.timeout(10):
        event = await anext(world.host.events())
    assert event == FilesDamaged(VM, "snapshot gen-1: memory is not what was saved: its checksum differs at byte 0")
    with pytest.raises(SnapshotDamaged, match="memory is not what was saved"):
        await world.host.resume(world.order())
    assert list(world.host.damaged) == [str(generation)]
    (generation / "memory").write_text(right)
    await world.host.resume(world.order())
    assert world.host.damaged == {}


async def test_before_its_first_use_a_generation_is_compared(world: HostWorld) -> None:
    generation = await asleep(world)
    await until((generation / CHECKSUMS).exists)
    await verifying(world, "first-use")
    right = damage(generation)
    before = world.picture()
    with pytest.raises(SnapshotDamaged, match="memory is not what was saved"):
        await world.host.resume(world.order())
    assert world.picture() == before
    (generation / "memory").write_text(right)
    await world.host.resume(world.order())


async def test_before_its_first_use_an_image_is_compared(world: HostWorld) -> None:
    await verifying(world, "first-use")
    image = world.layout.snapshot(SNAPSHOT)
    await until((image / CHECKSUMS).exists)
    right = damage(image)
    with pytest.raises(SnapshotDamaged, match=f"snapshot {SNAPSHOT}: memory is not what was saved"):
        await world.host.launch(world.order())
    (image / "memory").write_text(right)
    await world.host.launch(world.order())


async def test_never_means_that_nothing_is_summed_or_compared(world: HostWorld) -> None:
    generation = await asleep(world)
    await until((generation / CHECKSUMS).exists)
    await verifying(world, "never")
    damage(generation)
    await world.host.resume(world.order())
    await world.host.save(VM)
    await asyncio.sleep(0.1)
    assert not (world.layout.microvm(VM).generation(2) / CHECKSUMS).exists()


async def test_generations_that_follow_each_other_quickly_are_summed_right(world: HostWorld) -> None:
    await world.host.launch(world.order())
    for number in range(1, 8):
        await world.host.save(VM)
        await world.host.release(VM)
        await world.host.resume(world.order())
        world.engine.running[max(world.engine.running)].memory["x"] = number
    await world.host.save(VM)
    generation = world.layout.microvm(VM).generation(8)
    await until((generation / CHECKSUMS).exists)
    await verifying(world, "first-use")
    await world.host.release(VM)
    await world.host.resume(world.order())


async def test_a_host_that_stops_while_it_reads_does_not_wait_for_the_end(world: HostWorld) -> None:
    generation = await asleep(world)
    await until((generation / CHECKSUMS).exists)
    async with asyncio.timeout(10):
        await world.restarted()
        await world.host.stop()
        await world.host.start()


def test_an_unknown_moment_is_refused_by_its_name(tmp_path: Path) -> None:
    async def tell(_: Path, __: str) -> None: ...

    with pytest.raises(ConfigError, match=r"snapshots\.verify must be background, first-use or never, not 'always'"):
        Integrity(SnapshotSettings(verify="always"), Layout(tmp_path, tmp_path), tell)
