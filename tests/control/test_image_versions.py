"""What becomes of an image: its versions, which of them is run, and the end of versions and images
(spec 1.2, 1.4, 1.5, 1.11, 2.1, 2.9)."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.catalogue_world import CALLER, REQUEST, World, hooks, image_arn, world_fixture
from torpor.config import Config, ImageSettings
from torpor.model.errors import Conflict, Invalid, NotFound
from torpor.model.hooks import Hook
from torpor.model.image import ImageState, VersionState, VersionStatus
from torpor.model.microvm import MicrovmState
from torpor.model.paging import PageRequest

S, V = ImageState, VersionState

world = world_fixture()


# Update


async def test_an_update_inherits_nothing_and_always_makes_a_version(world: World) -> None:
    """Spec 1.2, 1.4, 2.1."""
    await world.image(
        description="first", memory_mib=512, environment={"A": "1"}, all_capabilities=True,
        hooks=hooks(Hook.READY), request={"logging": {"disabled": {}}},
    )
    image, version = await world.catalogue.images.update(CALLER, image_arn("app"), REQUEST)
    assert (image.state, image.latest_active_version) == (S.UPDATING, "1.0")
    assert (version.version, version.memory_mib, version.environment) == ("2.0", 2048, {})
    assert (version.description, version.all_capabilities, version.hooks.enabled) == (None, False, {})
    assert version.request == {}
    image = await world.rested(image.arn)
    assert (image.state, image.latest_active_version) == (S.UPDATED, "2.0")
    await world.catalogue.images.update(CALLER, image.arn, REQUEST)
    assert (await world.rested(image.arn)).latest_active_version == "3.0"


async def test_version_numbers_are_never_used_again(world: World) -> None:
    """Spec 1.4."""
    await world.image()
    await world.catalogue.images.update(CALLER, image_arn("app"), REQUEST)
    await world.rested(image_arn("app"))
    await world.catalogue.images.delete_version(CALLER, image_arn("app"), "2.0")
    await world.rested(image_arn("app"))
    _, version = await world.catalogue.images.update(CALLER, image_arn("app"), REQUEST)
    assert version.version == "3.0"


async def test_versions_and_builds_are_listed_newest_first_in_pages(world: World) -> None:
    """Spec 1.2, 1.4."""
    images, arn = world.catalogue.images, image_arn("app")
    await world.image()
    for _ in range(2):
        await images.update(CALLER, arn, REQUEST)
        await world.rested(arn)
    first = await images.list_versions(CALLER, arn, PageRequest(max_results=2))
    assert [version.version for version in first.items] == ["3.0", "2.0"]
    second = await images.list_versions(CALLER, arn, PageRequest(2, first.cursor))
    assert [version.version for version in second.items] == ["1.0"]
    assert second.cursor is None
    for number in ("3", "3.0"):
        builds = await images.list_builds(CALLER, arn, number, None, "INTEL", "1", PageRequest())
        assert [build.version for build in builds.items] == ["3.0"]
    assert (await images.list_builds(CALLER, arn, "3.0", "ARM_64", None, None, PageRequest())).items == []
    found = await images.get_build(CALLER, arn, "3.0", builds.items[0].build_id)
    assert (found.architecture, found.chipset, found.chipset_generation) == ("X86_64", "INTEL", "1")


async def test_a_busy_image_refuses_updates_patches_and_version_deletes(world: World) -> None:
    """Spec 1.11."""
    await world.image()
    world.host.hold()
    images, arn = world.catalogue.images, image_arn("app")
    await images.update(CALLER, arn, REQUEST)
    for call in (
        images.update(CALLER, arn, REQUEST), images.delete_version(CALLER, arn, "1.0"),
        images.set_version_status(CALLER, arn, "1.0", VersionStatus.INACTIVE),
    ):
        with pytest.raises(Conflict, match=r"^MicroVM Image is already in state: UPDATING$"):
            await call
    with pytest.raises(Invalid, match=f"^Cannot delete MicroVM image in its current state: {arn}$"):
        await images.delete(CALLER, arn)


# Status


async def test_an_inactive_version_stays_successful_and_cannot_be_run(world: World) -> None:
    """Spec 2.9."""
    images, arn = world.catalogue.images, image_arn("app")
    await world.image()
    assert (await images.runnable(CALLER, arn, None))[1].version == "1.0"
    changed = await images.set_version_status(CALLER, arn, "1.0", VersionStatus.INACTIVE)
    assert (changed.state, changed.status) == (V.SUCCESSFUL, VersionStatus.INACTIVE)
    assert (await images.get(CALLER, arn)).latest_active_version is None
    for pinned in (None, "1.0"):
        with pytest.raises(NotFound, match="No active version found"):
            await images.runnable(CALLER, arn, pinned)
    await images.set_version_status(CALLER, arn, "1.0", VersionStatus.ACTIVE)
    image, version, snapshot = await images.runnable(CALLER, arn, "1.0")
    assert (image.latest_active_version, version.version) == ("1.0", "1.0")
    assert snapshot in world.host.snapshots


async def test_run_without_a_version_takes_the_newest_active_one(world: World) -> None:
    """Spec 1.4."""
    images, arn = world.catalogue.images, image_arn("app")
    await world.image()
    await images.update(CALLER, arn, REQUEST)
    await world.rested(arn)
    assert (await images.runnable(CALLER, arn, None))[1].version == "2.0"
    assert (await images.runnable(CALLER, arn, "1.0"))[1].version == "1.0"
    await images.set_version_status(CALLER, arn, "2.0", VersionStatus.INACTIVE)
    assert (await images.runnable(CALLER, arn, None))[1].version == "1.0"
    assert (await images.get(CALLER, arn)).latest_active_version == "1.0"


@pytest.mark.parametrize("is_lenient", [False, True])
async def test_run_while_updating_follows_the_setting(tmp_path: Path, is_lenient: bool) -> None:
    """Spec 1.5: the documented rule says no."""
    world = World(tmp_path, Config(images=ImageSettings(run_while_updating=is_lenient)))
    await world.start()
    await world.image()
    world.host.hold()
    await world.catalogue.images.update(CALLER, image_arn("app"), REQUEST)
    if is_lenient:
        assert (await world.catalogue.images.runnable(CALLER, image_arn("app"), None))[1].version == "1.0"
    else:
        with pytest.raises(NotFound, match="No active version found"):
            await world.catalogue.images.runnable(CALLER, image_arn("app"), None)
    await world.crash()


# Deletion


async def test_deleting_an_image_takes_its_versions_and_snapshots_along(world: World) -> None:
    """Spec 1.2, 2.9: asynchronous, with ACTIVE versions present."""
    images, arn = world.catalogue.images, image_arn("app")
    await world.image()
    world.host.hold()
    image = await images.delete(CALLER, arn)
    assert image.state is S.DELETING
    assert (await images.get_version(CALLER, arn, "1.0")).state is V.DELETING
    assert (await images.delete(CALLER, arn)).state is S.DELETING  # again
    with pytest.raises(NotFound):
        await images.runnable(CALLER, arn, None)
    world.host.release()
    await world.gone(arn)
    assert world.host.snapshots == set()
    with pytest.raises(NotFound):
        await images.get(CALLER, arn)


@pytest.mark.parametrize("state", [state for state in MicrovmState if state is not MicrovmState.TERMINATED])
async def test_an_image_with_live_microvms_is_not_deleted(world: World, state: MicrovmState) -> None:
    """Spec 1.11: TERMINATING counts."""
    await world.image()
    await world.microvm(state=state)
    with pytest.raises(Invalid, match=r"^Cannot delete microvm image with running microvms\.$"):
        await world.catalogue.images.delete(CALLER, image_arn("app"))


async def test_a_terminated_microvm_does_not_hold_its_image(world: World) -> None:
    await world.image()
    await world.microvm(state=MicrovmState.TERMINATED)
    await world.catalogue.images.delete(CALLER, image_arn("app"))
    await world.gone(image_arn("app"))


async def test_an_image_is_not_deleted_in_the_middle_of_a_build(world: World) -> None:
    """Spec 1.11."""
    world.host.hold()
    await world.catalogue.images.create(CALLER, "app", REQUEST, {})
    with pytest.raises(Invalid, match="Cannot delete MicroVM image in its current state: "):
        await world.catalogue.images.delete(CALLER, image_arn("app"))


async def test_a_version_is_deleted_while_its_image_is_updating(world: World) -> None:
    """Spec 2.9: an ACTIVE one, directly."""
    images, arn = world.catalogue.images, image_arn("app")
    await world.image()
    await images.update(CALLER, arn, REQUEST)
    await world.rested(arn)
    world.host.hold()
    assert (await images.delete_version(CALLER, arn, "2.0")).state is V.DELETING
    image = await images.get(CALLER, arn)
    assert (image.state, image.latest_active_version) == (S.UPDATING, "1.0")
    with pytest.raises(Invalid, match="Cannot delete MicroVM image in its current state"):
        await images.delete(CALLER, arn)
    world.host.release()
    assert (await world.rested(arn)).state is S.UPDATED
    with pytest.raises(NotFound):
        await images.get_version(CALLER, arn, "2.0")
    assert len(world.host.snapshots) == 1


async def test_the_last_version_and_versions_in_use_are_not_deleted(world: World) -> None:
    """Spec 1.11."""
    images, arn = world.catalogue.images, image_arn("app")
    await world.image()
    with pytest.raises(Invalid, match=r"^This is the last version\. Please delete the entire image$"):
        await images.delete_version(CALLER, arn, "1.0")
    await images.update(CALLER, arn, REQUEST)
    await world.rested(arn)
    await world.microvm(version="1.0")
    with pytest.raises(Invalid, match=r"^Cannot delete microvm image version with running microvms\.$"):
        await images.delete_version(CALLER, arn, "1.0")
    await images.delete_version(CALLER, arn, "2.0")


async def test_a_run_that_lost_against_a_delete_is_refused(world: World) -> None:
    images = world.catalogue.images
    await world.image()
    image, version, _ = await images.runnable(CALLER, image_arn("app"), None)
    await world.database.write(lambda connection: images.admit_run(connection, image, version))
    world.host.hold()
    await images.delete(CALLER, image.arn)
    with pytest.raises(NotFound, match="No active version found"):
        await world.database.write(lambda connection: images.admit_run(connection, image, version))
