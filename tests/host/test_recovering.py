"""A cold boot of a saved disk: with the application as its image says, and nothing saved is touched."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from support.host_world import HostWorld, host_world
from torpor.host.holding import unused
from torpor.host.snapshots import read_manifest
from torpor.model.errors import SnapshotDamaged, VmmFailed
from torpor.model.ids import MicrovmId

VM = MicrovmId("microvm-1")
KNOWN = {f"microvm:{VM}", "snapshot:build-1"}


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[HostWorld]:
    """A microVM that sleeps, with something on its disk."""
    async with host_world(tmp_path) as made:
        await made.host.launch(made.order())
        made.layout.microvm(VM).live_disk.write_bytes(b"what it wrote")
        await made.host.save(VM)
        await made.host.release(VM)
        yield made


async def test_the_disk_is_booted_and_the_application_started_as_its_image_says(world: HostWorld) -> None:
    (world.layout.microvm(VM).generation(1) / "memory").unlink()
    placement = await world.host.recover(world.order())
    assert [each.name for each in placement.steps] == ["take_slot", "clone_disk", "boot_vm", "start_application"]
    assert world.layout.microvm(VM).live_disk.read_bytes() == b"what it wrote"
    (started,) = world.agent(VM).started
    assert (started["args"], started["env"], started["cwd"], started["user"]) == (
        ["python3", "app.py"], ["A=b"], "/app", "worker")  # fmt: skip
    assert unused(await world.host.inventory(), KNOWN) == []


async def test_a_recovered_one_is_adopted_saved_and_resumed_as_any_other(world: HostWorld) -> None:
    await world.host.recover(world.order())
    await world.restarted()
    assert world.host.upstream(VM, 80) is not None
    world.layout.microvm(VM).live_disk.write_bytes(b"later")
    await world.host.save(VM)
    await world.host.release(VM)
    generation = world.layout.microvm(VM).generation(2)
    assert (generation / "disk").read_bytes() == b"later"
    assert read_manifest(generation).application is not None
    assert sorted(path.name for path in world.layout.microvm(VM).path.iterdir()) == ["gen-2"]
    await world.host.resume(world.order())


@pytest.mark.parametrize("is_silent", [False, True])
async def test_a_boot_that_fails_leaves_nothing_and_the_saved_files_whole(world: HostWorld, is_silent: bool) -> None:
    before = world.picture()
    if is_silent:
        (world.layout.microvm(VM).generation(1) / "disk").write_bytes(b"")
        with pytest.raises(SnapshotDamaged, match="disk has 0 bytes instead of 13"):
            await world.host.recover(world.order())
    else:
        world.faults.fail_next("boot", VmmFailed("broken"))
        with pytest.raises(VmmFailed, match="broken"):
            await world.host.recover(world.order())
    assert world.picture() == before


async def test_without_a_record_of_how_the_application_starts_it_is_refused(world: HostWorld) -> None:
    manifest = world.layout.microvm(VM).generation(1) / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"application": {', '"application": null, "x": {'))
    with pytest.raises(SnapshotDamaged, match="does not say how its application is started"):
        await world.host.recover(world.order())
