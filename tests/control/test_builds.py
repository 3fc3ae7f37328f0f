"""Builds: queue, states, reasons, time limits and crashes (spec 1.9, 2.3, 2.4, 2.6)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from support.catalogue_world import (
    ACCOUNT,
    CALLER,
    REGION,
    REQUEST,
    SIZES,
    STRANGER,
    World,
    hooks,
    image_arn,
    until,
    world_fixture,
)
from torpor.config import BuildSettings, Config, LimitSettings
from torpor.model.errors import ArtifactUnavailable, BuildFailed, HostBusy, QuotaExceeded
from torpor.model.hooks import Hook
from torpor.model.image import Build, BuildState, ImageState, SnapshotSizes, VersionState, VersionStatus
from torpor.model.paging import PageRequest

ARN = image_arn("app")

world = world_fixture(Config(limits=LimitSettings(builds=20, memory_mib=0)))


async def build_of(world: World, arn: str = ARN, version: str = "1.0") -> Build:
    images = world.catalogue.images
    page = await images.list_builds(CALLER, arn, version, None, None, None, PageRequest())
    return await images.get_build(CALLER, arn, version, page.items[0].build_id)


async def under_way(world: World, count: int = 1) -> None:
    async def building() -> int:
        return len(world.host.building)

    await until(building, lambda found: found >= count)


async def test_a_build_goes_from_pending_over_in_progress_to_successful(world: World) -> None:
    """Spec 1.5, 2.3."""
    await world.rest()
    await world.catalogue.images.create(CALLER, "app", REQUEST, {})
    assert (await build_of(world)).state is BuildState.PENDING
    world.host.hold()
    world.work()
    await under_way(world)
    assert (await build_of(world)).state is BuildState.IN_PROGRESS
    assert (await world.get())[1].state is VersionState.IN_PROGRESS
    world.host.release()
    await world.rested(ARN)
    build = await build_of(world)
    assert (build.state, build.state_reason, build.sizes) == (BuildState.SUCCESSFUL, None, SIZES)
    assert (build.architecture, build.chipset, build.chipset_generation) == ("X86_64", "INTEL", "1")


async def test_the_host_gets_the_artifact_the_hooks_and_both_environments(world: World) -> None:
    """Spec 2.6."""
    await world.image(
        memory_mib=512, environment={"COLOUR": "blue"}, hooks=hooks(Hook.READY, Hook.RUN), all_capabilities=True
    )
    order = world.host.orders[0]
    assert order.code_artifact == b"PK"
    assert world.artifacts.fetched == [("s3://code/app.zip", BuildSettings().max_zip_bytes)]
    assert (order.memory_mib, order.all_capabilities) == (512, True)
    assert order.hooks == hooks(Hook.READY, Hook.RUN)
    assert order.environment == {
        "COLOUR": "blue",
        "AWS_LAMBDA_MICROVM_IMAGE_NAME": "app",
        "AWS_LAMBDA_MICROVM_IMAGE_ARN": ARN,
        "AWS_LAMBDA_MICROVM_IMAGE_VERSION": "1.0",
        "AWS_REGION": REGION,
    }


async def test_a_failed_create_says_why_on_the_build_record_alone(world: World) -> None:
    """Spec 1.9, 2.4."""
    world.host.fail_with = BuildFailed("The container image build failed.")
    image, version = await world.image()
    assert (image.state, image.latest_failed_version, image.latest_active_version) == (
        ImageState.CREATE_FAILED, "1.0", None,
    )
    assert (version.state, version.status, version.state_reason) == (VersionState.FAILED, VersionStatus.INACTIVE, None)
    build = await build_of(world)
    assert (build.state, build.state_reason, build.sizes) == (
        BuildState.FAILED, "The container image build failed.", None,
    )


async def test_a_validate_failure_is_also_on_the_version(world: World) -> None:
    """Spec 1.9."""
    world.host.fail_with = BuildFailed("Validate hook invocation timed out after PT10M")
    _, version = await world.image()
    assert version.state_reason == "Validate hook invocation timed out after PT10M"


async def test_a_ready_failure_keeps_the_size_of_the_container(world: World) -> None:
    """Spec 2.3."""
    sizes = SnapshotSizes(None, 186_400_768, None)
    world.host.fail_with = BuildFailed("Ready hook invocation timed out after PT5M", sizes)
    await world.image()
    assert (await build_of(world)).sizes == sizes


async def test_a_failed_update_leaves_the_older_active_version(world: World) -> None:
    """Spec 2.4."""
    await world.image()
    world.host.fail_with = BuildFailed("The container image build failed.")
    await world.catalogue.images.update(CALLER, ARN, REQUEST)
    image = await world.rested(ARN)
    assert (image.state, image.latest_active_version, image.latest_failed_version) == (
        ImageState.UPDATE_FAILED, "1.0", "2.0",
    )
    assert (await world.get())[1].status is VersionStatus.ACTIVE
    world.host.fail_with = None
    await world.catalogue.images.update(CALLER, ARN, REQUEST)
    image = await world.rested(ARN)
    assert (image.state, image.latest_active_version, image.latest_failed_version) == (
        ImageState.UPDATED, "3.0", "2.0",
    )
    await world.catalogue.images.delete_version(CALLER, ARN, "2.0")
    assert (await world.rested(ARN)).latest_failed_version is None


async def test_an_image_whose_create_failed_can_be_updated(world: World) -> None:
    world.host.fail_with = BuildFailed("The container image build failed.")
    await world.image()
    world.host.fail_with = None
    await world.catalogue.images.update(CALLER, ARN, REQUEST)
    image = await world.rested(ARN)
    assert (image.state, image.latest_active_version) == (ImageState.UPDATED, "2.0")


async def test_an_artifact_that_cannot_be_had_fails_the_build_with_its_reason(world: World) -> None:
    """Spec 2.4."""
    world.artifacts.fail_with = ArtifactUnavailable("S3_NO_SUCH_KEY: s3://code/app.zip does not exist")
    await world.image()
    assert (await build_of(world)).state_reason == "S3_NO_SUCH_KEY: s3://code/app.zip does not exist"
    assert world.host.orders == []


async def test_an_unexpected_error_fails_the_build_and_not_the_worker(world: World) -> None:
    world.host.fail_with = ZeroDivisionError("secret detail")
    await world.image()
    assert (await build_of(world)).state_reason == (
        "INTERNAL_PLATFORM_ERROR: The build failed because of an internal error."
    )
    world.host.fail_with = None
    image, _ = await world.image("next")
    assert image.state is ImageState.CREATED


async def test_a_busy_machine_is_asked_again(world: World) -> None:
    world.host.fail_with = HostBusy("no memory", delay=timedelta(seconds=5))
    await world.catalogue.images.create(CALLER, "app", REQUEST, {})

    async def orders() -> int:
        return len(world.host.orders)

    await until(orders, lambda count: count == 1)
    world.host.fail_with = None
    await until(_settled(world), bool)
    await world.clock.advance(timedelta(seconds=5))
    assert (await world.rested(ARN)).state is ImageState.CREATED
    assert len(world.host.orders) == 2


async def test_a_build_ends_at_its_limit_and_its_hooks_time_comes_on_top(world: World) -> None:
    """Spec 2.4: AWS's own limit is unknown."""
    world.host.hold()
    await world.catalogue.images.create(CALLER, "app", replace(REQUEST, hooks=hooks(Hook.READY, Hook.VALIDATE)), {})
    await under_way(world)
    await world.clock.advance(timedelta(minutes=31, seconds=59))
    assert (await build_of(world)).state is BuildState.IN_PROGRESS
    await world.clock.advance(timedelta(seconds=1))
    await world.rested(ARN)
    build = await build_of(world)
    assert (build.state, build.state_reason) == (BuildState.FAILED, "The build timed out after PT32M")
    assert world.host.building == set()


async def test_more_builds_than_places_wait_their_turn(world: World) -> None:
    """Spec 10.1: Torpor queues up to the limit."""
    world.host.hold()
    names = [f"image-{number}" for number in range(5)]
    for name in names:
        await world.catalogue.images.create(CALLER, name, REQUEST, {})
        await world.clock.advance(timedelta(seconds=1))
    await under_way(world, 2)
    # Two that begin together may reach the machine in either order.
    assert sorted(order.environment["AWS_LAMBDA_MICROVM_IMAGE_NAME"] for order in world.host.orders) == names[:2]
    assert (await build_of(world, image_arn("image-4"))).state is BuildState.PENDING
    world.host.release()
    for name in names:
        assert (await world.rested(image_arn(name))).state is ImageState.CREATED
    assert world.host.most_at_once == 2
    assert sorted(order.environment["AWS_LAMBDA_MICROVM_IMAGE_NAME"] for order in world.host.orders) == names


async def test_one_account_cannot_fill_the_queue_beyond_its_limit(tmp_path: Path) -> None:
    """Spec 1.11: 402."""
    world = World(tmp_path)
    await world.start()
    world.host.hold()
    for number in range(5):
        await world.catalogue.images.create(CALLER, f"image-{number}", replace(REQUEST, memory_mib=512), {})
    with pytest.raises(QuotaExceeded, match="maximum number of concurrent builds"):
        await world.catalogue.images.create(CALLER, "more", replace(REQUEST, memory_mib=512), {})
    await world.catalogue.images.create(STRANGER, "more", REQUEST, {})
    await world.crash()


@pytest.mark.parametrize("moment", ["pending", "in progress", "built and not recorded"])
async def test_a_build_that_a_crash_interrupts_starts_over(world: World, moment: str) -> None:
    if moment == "pending":
        await world.rest()
    world.host.hold()
    await world.catalogue.images.create(CALLER, "app", REQUEST, {})
    build_id = (await build_of(world)).build_id
    if moment != "pending":
        await under_way(world)
    if moment == "built and not recorded":
        world.host.snapshots.add(f"snapshot-{build_id}")
    await world.crash()
    assert world.host.building == set()
    world.host.gate = None
    await world.start()
    assert (await world.rested(ARN)).state is ImageState.CREATED
    assert {order.build_id for order in world.host.orders} == {build_id}
    assert len(world.host.orders) == (1 if moment == "pending" else 2)
    assert world.host.snapshots == {f"snapshot-{build_id}"}


async def test_interrupted_builds_come_before_waiting_ones(world: World) -> None:
    world.host.hold()
    for number in range(4):
        await world.catalogue.images.create(CALLER, f"image-{number}", REQUEST, {})
        await world.clock.advance(timedelta(seconds=1))
    await under_way(world, 2)
    world.host.orders.clear()
    await world.restart()
    await under_way(world, 2)
    names = {order.environment["AWS_LAMBDA_MICROVM_IMAGE_NAME"] for order in world.host.orders}
    assert names == {"image-0", "image-1"}


async def test_the_lines_of_a_build_are_in_the_group_of_its_image(world: World) -> None:
    """Spec 9.1."""
    await world.image()
    build = await build_of(world)
    group = f"{ACCOUNT}:{REGION}:/aws/lambda-microvms/app"
    assert await world.catalogue.images.build_streams(CALLER, ARN, "1.0") == (group, [build.build_id])
    assert {(line[0], line[1]) for line in world.logs.lines} == {(group, build.build_id)}
    assert ("build", "#1 [1/1] FROM torpor/python:3.11") in [line[2:] for line in world.logs.lines]


async def test_the_logging_of_the_request_decides_where_lines_go(world: World) -> None:
    """Spec 9.1."""
    place = {"cloudWatch": {"logGroup": "/mine", "logStream": "all"}}
    await world.image("placed", request={"logging": place})
    assert {(line[0], line[1]) for line in world.logs.lines} == {(f"{ACCOUNT}:{REGION}:/mine", "all")}
    world.logs.lines.clear()
    await world.image("quiet", request={"logging": {"disabled": {}}})
    assert world.logs.lines == []
    assert await world.catalogue.images.build_streams(CALLER, image_arn("quiet"), "1.0") is None


# Deletions


async def test_a_deletion_that_a_crash_interrupts_goes_on(world: World) -> None:
    await world.image()
    await world.catalogue.images.update(CALLER, ARN, REQUEST)
    await world.rested(ARN)
    await world.image("part")
    await world.catalogue.images.update(CALLER, image_arn("part"), REQUEST)
    await world.rested(image_arn("part"))
    world.host.hold()
    await world.catalogue.images.delete(CALLER, ARN)
    await world.catalogue.images.delete_version(CALLER, image_arn("part"), "1.0")
    await world.crash()
    world.host.gate = None
    await world.start()
    await world.gone(ARN)
    image = await world.rested(image_arn("part"))
    assert (image.state, image.latest_active_version) == (ImageState.UPDATED, "2.0")
    assert len(world.host.snapshots) == 1


async def test_a_deletion_that_fails_is_tried_again(world: World) -> None:
    await world.image()
    world.host.fail_deletes = 2
    await world.catalogue.images.delete(CALLER, ARN)
    for seconds in (2, 4):
        await until(_settled(world), bool)
        await world.clock.advance(timedelta(seconds=seconds))
    await world.gone(ARN)


async def test_a_deletion_that_cannot_be_done_is_delete_failed_and_can_be_asked_again(world: World) -> None:
    """Spec 1.5."""
    await world.image()
    world.host.fail_deletes = 5
    await world.catalogue.images.delete(CALLER, ARN)
    for _ in range(5):
        await until(_settled(world), bool)
        await world.clock.advance(timedelta(seconds=60))
    image = await world.rested(ARN)
    assert (image.state, image.latest_active_version) == (ImageState.DELETE_FAILED, None)
    assert (await world.get())[1].state is VersionState.DELETE_FAILED
    await world.catalogue.images.delete(CALLER, ARN)
    await world.gone(ARN)


def _settled(world: World) -> Callable[[], Awaitable[bool]]:
    async def sleeps() -> bool:
        await asyncio.sleep(0.01)
        return world.database.is_idle

    return sleeps
