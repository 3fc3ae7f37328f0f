"""Limits and rates (spec 1.11, 10.1)."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from support.catalogue_world import (
    ACCOUNT,
    CALLER,
    ELSEWHERE,
    REGION,
    REQUEST,
    STRANGER,
    World,
    image_arn,
    world_fixture,
)
from torpor.config import Config, ConfigError, LimitSettings
from torpor.control.limits import Limits
from torpor.model.errors import ConnectorLimitExceeded, Invalid, NotFound, QuotaExceeded, Throttled
from torpor.model.limits import AWS_RATES, Limit
from torpor.model.microvm import MicrovmState

MEMORY_TEXT = r"^The base maximum allocated memory limit has been reached for this account\.$"


async def started(path: Path, **limits: Any) -> World:
    world = World(path, Config(limits=LimitSettings(**limits)))
    await world.start()
    return world


world = world_fixture(Config(limits=LimitSettings()))


async def admit(world: World, memory_mib: int, region: str = REGION) -> None:
    limits = world.catalogue.limits
    await world.database.write(lambda connection: limits.admit_memory(connection, ACCOUNT, region, memory_mib))


async def test_the_memory_of_all_that_has_not_ended_counts_as_configured(tmp_path: Path) -> None:
    """Spec 6.1, 10.1: suspended and TERMINATING ones too; per account and region."""
    world = await started(tmp_path, memory_mib=6144)
    for state in (MicrovmState.RUNNING, MicrovmState.SUSPENDED, MicrovmState.TERMINATING):
        await world.microvm(state=state, memory=1024)
    await world.microvm(state=MicrovmState.TERMINATED, memory=8192)
    await admit(world, 2048 + 1024)
    with pytest.raises(QuotaExceeded, match=MEMORY_TEXT):
        await admit(world, 4096)
    await admit(world, 4096, "eu-west-1")
    await world.crash()


async def test_builds_count_against_the_memory_too(tmp_path: Path) -> None:
    """Spec 2.4, 10.1."""
    world = await started(tmp_path, memory_mib=4096)
    world.host.hold()
    await world.catalogue.images.create(CALLER, "app", REQUEST, {})
    await admit(world, 2048)
    with pytest.raises(QuotaExceeded, match=MEMORY_TEXT):
        await admit(world, 4096)
    with pytest.raises(QuotaExceeded, match=MEMORY_TEXT):
        await world.catalogue.images.create(CALLER, "more", replace(REQUEST, memory_mib=4096), {})
    world.host.release()
    await world.rested(image_arn("app"))
    await admit(world, 4096)
    await world.crash()


async def test_whoever_keeps_the_sum_in_memory_is_believed(tmp_path: Path) -> None:
    world = await started(tmp_path, memory_mib=1024)
    world.catalogue.limits.memory_of_microvms = lambda account, region: 1024
    with pytest.raises(QuotaExceeded):
        await admit(world, 512)
    await world.crash()


async def test_the_default_memory_limit_suits_the_machine(world: World) -> None:
    limits = world.catalogue.limits
    assert limits.of(ACCOUNT, Limit.MEMORY_MIB) == 32 * 1024
    stats = await world.host.stats()
    limits.fit(replace(stats, memory_bytes=2 * 1024**3))
    assert limits.of(ACCOUNT, Limit.MEMORY_MIB) == 8 * 1024


async def test_a_simulated_machine_has_no_memory_limit(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.host.acceleration = "none"
    await world.start()
    assert world.catalogue.limits.of(ACCOUNT, Limit.MEMORY_MIB) is None
    await admit(world, 10**9)
    await world.crash()


async def test_the_aws_preset_is_what_aws_publishes(tmp_path: Path) -> None:
    """Spec 10.1."""
    world = await started(tmp_path, preset="aws")
    limits = world.catalogue.limits
    assert {limit: limits.of(ACCOUNT, limit) for limit in list(Limit)[:4]} == {
        Limit.MEMORY_MIB: 400 * 1024, Limit.IMAGES: 100, Limit.VERSIONS: 50, Limit.BUILDS: 5,
    }
    assert {name: limits.rate(ACCOUNT, name) for name in AWS_RATES} == AWS_RATES
    assert limits.rate(ACCOUNT, "ListMicrovms") is None
    await world.crash()


async def test_images_and_versions_are_limited(tmp_path: Path) -> None:
    """Spec 10.1."""
    world = await started(tmp_path, images=1, versions=2, memory_mib=0)
    images = world.catalogue.images
    await world.image()
    with pytest.raises(QuotaExceeded, match="images"):
        await images.create(CALLER, "more", REQUEST, {})
    await images.create(STRANGER, "more", REQUEST, {})
    await images.update(CALLER, image_arn("app"), REQUEST)
    await world.rested(image_arn("app"))
    with pytest.raises(QuotaExceeded, match="versions"):
        await images.update(CALLER, image_arn("app"), REQUEST)
    await images.delete_version(CALLER, image_arn("app"), "1.0")
    await world.rested(image_arn("app"))
    await images.update(CALLER, image_arn("app"), REQUEST)
    await world.crash()


async def test_an_account_may_have_limits_of_its_own(world: World) -> None:
    limits = world.catalogue.limits
    await limits.set(ACCOUNT, "images", 1)
    await limits.set(ACCOUNT, "rates.GetMicrovm", 2)
    await world.image()
    with pytest.raises(QuotaExceeded):
        await world.catalogue.images.create(CALLER, "more", REQUEST, {})
    await world.restart()
    limits = world.catalogue.limits
    assert limits.of(ACCOUNT, Limit.IMAGES) == 1
    assert limits.rate(ACCOUNT, "GetMicrovm") is not None
    await limits.set(ACCOUNT, "images", 0)
    assert limits.of(ACCOUNT, Limit.IMAGES) is None
    await limits.set(ACCOUNT, "images", None)
    assert limits.of(ACCOUNT, Limit.IMAGES) == 100


async def test_impossible_limits_are_refused(world: World) -> None:
    for name, value in (("images", -1), ("images", 1.5), ("nonsense", 1), ("rates.GetMicrovm", float("nan"))):
        with pytest.raises(Invalid):
            await world.catalogue.limits.set(ACCOUNT, name, value)
    with pytest.raises(NotFound):
        await world.catalogue.limits.set(STRANGER.account, "images", 1)
    for settings in (LimitSettings(preset="azure"), LimitSettings(rates={"RunMicrovm": -1.0})):
        with pytest.raises((ConfigError, Invalid)):
            Limits(world.database, world.catalogue.accounts, settings, world.clock)


async def test_too_many_requests_are_told_how_long_to_wait(tmp_path: Path) -> None:
    """Spec 1.11, 10.1: burst, then the rate, per account, region and operation."""
    world = await started(tmp_path, preset="aws")
    throttle = world.catalogue.limits.throttle
    for _ in range(5):
        throttle(CALLER, "RunMicrovm")
    with pytest.raises(Throttled) as throttled:
        throttle(CALLER, "RunMicrovm")
    assert throttled.value.message == "Rate exceeded"
    assert throttled.value.retry_after == timedelta(seconds=0.2)
    throttle(CALLER, "SuspendMicrovm")
    throttle(STRANGER, "RunMicrovm")
    throttle(ELSEWHERE, "RunMicrovm")
    await world.clock.advance(throttled.value.retry_after)
    throttle(CALLER, "RunMicrovm")
    await world.crash()


async def test_without_a_configured_rate_nothing_is_throttled(world: World) -> None:
    for _ in range(1000):
        world.catalogue.limits.throttle(CALLER, "RunMicrovm")


async def test_connectors_and_their_versions_are_limited_with_an_error_of_their_own(tmp_path: Path) -> None:
    """Spec 1.11: 400 NetworkConnectorLimitExceededException."""
    world = await started(tmp_path, connectors=1, connector_versions=1)
    request = {
        "Name": "one", "ClientToken": "t", "OperatorRole": "arn:aws:iam::000000000000:role/r",
        "Configuration": {"VpcEgressConfiguration": {
            "SubnetIds": ["subnet-1"], "NetworkProtocol": "IPv4", "AssociatedComputeResourceTypes": ["MicroVm"],
        }},
    }
    made = await world.catalogue.connectors.create(CALLER, request)
    with pytest.raises(ConnectorLimitExceeded):
        await world.catalogue.connectors.create(CALLER, {**request, "Name": "two", "ClientToken": "u"})
    await world.rest()
    await world.catalogue.connectors._settling.settle()
    with pytest.raises(ConnectorLimitExceeded):
        await world.catalogue.connectors.update(CALLER, made.id, {"OperatorRole": "arn:aws:iam::000000000000:role/s"})
    await world.crash()


async def test_usage_shows_each_limit_its_use_and_what_would_free_some(world: World) -> None:
    await world.image()
    await world.microvm(memory=1024)
    await world.microvm(memory=512, state=MicrovmState.SUSPENDED)
    shown = {use.name: use for use in await world.catalogue.limits.usage(CALLER)}
    assert {name: (use.used, use.limit) for name, use in shown.items()} == {
        "memory_mib": (1536, 32768), "images": (1, 100), "versions": (1, 50), "builds": (0, 5), "connectors": (0, 100),
        "connector_versions": (0, 50),
    }
    assert shown["memory_mib"].frees == (
        "Terminate microVMs: suspended ones count too (1 of them, 512 MiB)."
    )
    assert shown["versions"].frees == "Delete versions of app."
    assert shown["memory_mib"].quota_code == "L-CD1C0CC4"
    assert [use.used for use in await world.catalogue.limits.usage(STRANGER)] == [0] * 6
