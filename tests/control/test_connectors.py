"""A customer's connector from its creation to its end: its states, its updates, what is refused (spec 8.2)."""

from __future__ import annotations

import re
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from support.catalogue_world import ACCOUNT, CALLER, ELSEWHERE, REGION, STRANGER, World, world_fixture
from support.connector_world import DELAY, ROLE, S, active, asked, configuration, gone, settled
from torpor.config import Config, NetworkSettings
from torpor.model.connector import UpdateStatus
from torpor.model.errors import InvalidParameter, NotFound, ResourceConflict
from torpor.model.paging import PageRequest

world = world_fixture()


# Create


async def test_a_new_connector_is_pending_and_becomes_active_by_itself(world: World) -> None:
    """Spec 8.2."""
    made = await world.catalogue.connectors.create(CALLER, asked(Tags={"a": "b"}))
    assert made.state is S.PENDING
    assert re.fullmatch(r"nc-[0-9a-f-]{36}", made.id)
    assert made.arn == f"arn:aws:lambda:{REGION}:{ACCOUNT}:network-connector:{made.id}"
    assert made.version_arn(1) == f"{made.arn}:1"
    found = await settled(world, made.id)
    assert (found.state, found.state_reason, found.state_reason_code) == (S.ACTIVE, "Initial creation", None)
    assert (found.current.configuration, found.current.operator_role) == (configuration(), ROLE)
    assert (found.last_update_status, found.tags) == (None, {"a": "b"})


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"token": None}, "ClientToken is a required field"),
        ({"Configuration": configuration(NetworkProtocol=None)},
         "NetworkProtocol cannot be null or empty for VPC_EGRESS connector"),
        ({"Configuration": configuration(AssociatedComputeResourceTypes=None)},
         "AssociatedComputeResourceTypes cannot be null or empty for VPC_EGRESS connector"),
        ({"Configuration": configuration(SubnetIds=None)},
         "SubnetIds cannot be null or empty for VPC_EGRESS connector"),
        ({"Configuration": {}}, "VpcEgressConfiguration cannot be null or empty for VPC_EGRESS connector"),
        ({"OperatorRole": None}, "NetworkConnectorOperatorRole is required for VPC_EGRESS connector type"),
        ({"name": f"arn:aws:lambda:{REGION}:{ACCOUNT}:network-connector:x"},
         "Name must satisfy regular expression pattern: [a-zA-Z0-9_-]{1,64}"),
    ],
)  # fmt: skip
async def test_what_the_model_calls_optional_is_still_enforced(
    world: World, changes: dict[str, Any], text: str
) -> None:
    """Spec 8.2."""
    with pytest.raises(InvalidParameter) as refused:
        await world.catalogue.connectors.create(CALLER, asked(**changes))
    assert refused.value.message == text


async def test_a_name_is_unique_in_its_account_and_region(world: World) -> None:
    """Spec 8.2."""
    made = await active(world)
    with pytest.raises(ResourceConflict):
        await world.catalogue.connectors.create(CALLER, asked(token="other"))
    await world.catalogue.connectors.create(CALLER, asked(made.id, token="name that is an id"))
    await world.catalogue.connectors.create(STRANGER, asked())
    await world.catalogue.connectors.create(ELSEWHERE, asked())


async def test_a_repeated_client_token_returns_the_existing_connector(world: World) -> None:
    """Spec 8.2."""
    connectors = world.catalogue.connectors
    made = await connectors.create(CALLER, asked())
    assert (await connectors.create(CALLER, asked())).id == made.id
    await world.restart()
    connectors = world.catalogue.connectors
    assert (await connectors.create(CALLER, asked())).id == made.id
    with pytest.raises(ResourceConflict):
        await connectors.create(CALLER, asked("other"))
    await settled(world, made.id)
    await connectors.delete(CALLER, made.id)
    await gone(world, made)
    assert (await connectors.create(CALLER, asked())).id != made.id


@pytest.mark.parametrize(
    ("subnets", "groups", "code"),
    [
        (["subnet-a"], ["sg-a"], None),
        (["subnet-a"], [], None),
        (["subnet-x"], [], "InvalidSubnet"),
        (["subnet-a"], ["sg-x"], "InvalidSecurityGroup"),
        (["subnet-a", "subnet-b"], [], "InvalidSubnet"),
        (["subnet-a"], ["sg-b"], "InvalidSecurityGroup"),
    ],
)
async def test_configured_subnets_and_groups_decide_whether_it_becomes_active(
    tmp_path: Path, subnets: list[str], groups: list[str], code: str | None
) -> None:
    """Spec 8.2: reason codes; all in one VPC."""
    network = NetworkSettings(
        subnets={"subnet-a": {"vpc": "vpc-1"}, "subnet-b": {"vpc": "vpc-2"}},
        security_groups={"sg-a": {"vpc": "vpc-1"}, "sg-b": {"vpc": "vpc-2"}},
    )
    world = World(tmp_path, Config(network=network))
    await world.start()
    made = await world.catalogue.connectors.create(
        CALLER, asked(Configuration=configuration(SubnetIds=subnets, SecurityGroupIds=groups))
    )
    found = await settled(world, made.id)
    assert (found.state, found.state_reason_code) == (S.FAILED if code else S.ACTIVE, code)
    assert found.current.state is found.state
    await world.catalogue.connectors.delete(CALLER, made.id)
    await world.crash()


@pytest.mark.parametrize("changes", [{"SubnetIds": ["subnet-"]}, {"SecurityGroupIds": ["sg-"]}])
async def test_without_configured_ones_any_well_formed_id_is_taken(world: World, changes: dict[str, Any]) -> None:
    assert (await active(world)).state is S.ACTIVE
    made = await world.catalogue.connectors.create(
        CALLER, asked("empty", token="empty", Configuration=configuration(**changes))
    )
    assert (await settled(world, made.id)).state is S.FAILED


async def test_pending_lasts_as_long_as_the_setting_says_also_across_a_crash(slow_world: World) -> None:
    """Spec 8.2: AWS needs up to ten minutes."""
    world = slow_world
    made = await world.catalogue.connectors.create(CALLER, asked())
    await world.clock.advance(DELAY - timedelta(seconds=1))
    assert (await world.catalogue.connectors.get(CALLER, made.id)).state is S.PENDING
    await world.restart()
    assert (await world.catalogue.connectors.get(CALLER, made.id)).state is S.PENDING
    with pytest.raises(ResourceConflict):
        await world.catalogue.connectors.update(CALLER, made.id, {"OperatorRole": ROLE + "2"})
    with pytest.raises(ResourceConflict):
        await world.catalogue.connectors.delete(CALLER, made.id)
    await world.clock.advance(timedelta(seconds=1))
    assert (await settled(world, made.id)).state is S.ACTIVE


# Update


async def test_an_update_leaves_it_active_and_makes_a_version(slow_world: World) -> None:
    """Spec 8.2."""
    world, connectors = slow_world, slow_world.catalogue.connectors
    made = await connectors.create(CALLER, asked())
    await world.clock.advance(DELAY)
    changed = configuration(SubnetIds=["subnet-2"], SecurityGroupIds=None)
    answer = await connectors.update(CALLER, made.id, {"Configuration": changed})
    assert (answer.state, answer.last_update_status) == (S.ACTIVE, UpdateStatus.IN_PROGRESS)
    assert (answer.current.version, answer.current.configuration) == (2, changed)
    meanwhile = await connectors.get(CALLER, made.id)
    assert (meanwhile.latest_version, meanwhile.current.configuration) == (1, configuration())
    with pytest.raises(ResourceConflict):
        await connectors.update(CALLER, made.id, {"OperatorRole": ROLE + "2"})
    await world.clock.advance(DELAY)
    found = await settled(world, made.id)
    assert (found.state, found.last_update_status, found.latest_version) == (S.ACTIVE, UpdateStatus.SUCCESSFUL, 2)
    assert found.current.configuration == changed
    assert found.current.operator_role == ROLE
    old = await connectors.get(CALLER, made.version_arn(1))
    assert (old.current.version, old.current.configuration, old.state) == (1, configuration(), S.ACTIVE)


async def test_an_update_that_changes_nothing_is_successful_at_once(world: World) -> None:
    """Spec 8.2."""
    made = await active(world)
    for request in ({"Configuration": configuration()}, {"OperatorRole": ROLE}, {}):
        found = await world.catalogue.connectors.update(CALLER, made.name, request)
        assert (found.last_update_status, found.last_update_reason, found.latest_version) == (
            UpdateStatus.SUCCESSFUL, "No configuration changes detected", 1,
        )


async def test_an_update_to_an_unknown_subnet_fails_and_the_old_version_stays(tmp_path: Path) -> None:
    """Spec 8.2."""
    world = World(tmp_path, Config(network=NetworkSettings(subnets={"subnet-1": {}})))
    await world.start()
    made = await active(world)
    await world.catalogue.connectors.update(
        CALLER, made.id, {"Configuration": configuration(SubnetIds=["subnet-9"])}
    )
    found = await settled(world, made.id)
    assert (found.state, found.last_update_status, found.last_update_reason_code, found.latest_version) == (
        S.ACTIVE, UpdateStatus.FAILED, "InvalidSubnet", 1,
    )
    _, page = await world.catalogue.connectors.list_versions(CALLER, made.id, None, PageRequest())
    assert [(one.version, one.state) for one in page.items] == [(2, S.FAILED), (1, S.ACTIVE)]
    await world.crash()


async def test_an_update_is_checked_like_a_create_and_repeated_by_its_token(world: World) -> None:
    """Spec 8.2."""
    made, connectors = await active(world), world.catalogue.connectors
    with pytest.raises(InvalidParameter, match="NetworkProtocol cannot be null or empty"):
        await connectors.update(CALLER, made.id, {"Configuration": configuration(NetworkProtocol=None)})
    request = {"OperatorRole": ROLE + "2", "ClientToken": "u"}
    first = await connectors.update(CALLER, made.id, request)
    await settled(world, made.id)
    again = await connectors.update(CALLER, made.id, request)
    assert (first.current.version, again.current.version, again.latest_version) == (2, 2, 2)
    with pytest.raises(ResourceConflict):
        await connectors.update(CALLER, made.id, {**request, "OperatorRole": ROLE + "3"})


async def test_an_update_that_a_crash_interrupts_goes_on(slow_world: World) -> None:
    world = slow_world
    made = await world.catalogue.connectors.create(CALLER, asked())
    await world.clock.advance(DELAY)
    await world.catalogue.connectors.update(CALLER, made.id, {"OperatorRole": ROLE + "2"})
    await world.restart()
    await world.clock.advance(DELAY)
    assert (await settled(world, made.id)).latest_version == 2


# Delete


async def test_a_deleted_connector_is_gone_and_deleting_it_again_does_nothing(slow_world: World) -> None:
    """Spec 8.2."""
    world, connectors = slow_world, slow_world.catalogue.connectors
    made = await connectors.create(CALLER, asked())
    await world.clock.advance(DELAY)
    assert (await connectors.delete(CALLER, made.name)).state is S.DELETING
    assert (await connectors.delete(CALLER, made.name)).state is S.DELETING
    await world.restart()
    connectors = world.catalogue.connectors
    await world.clock.advance(DELAY)
    await gone(world, made)
    for identifier in (made.id, made.name, made.arn):
        again = await connectors.delete(CALLER, identifier)
        assert (again.id, again.name, again.arn) == (made.id, made.name, made.arn)
    with pytest.raises(NotFound, match=f"^Network connector not found for: {made.arn}$"):
        await connectors.get(CALLER, made.arn)
    with pytest.raises(NotFound):
        await connectors.delete(CALLER, "never-existed")


async def test_an_older_version_can_be_deleted_and_the_latest_cannot(world: World) -> None:
    """Lambda Core's model."""
    made, connectors = await active(world), world.catalogue.connectors
    await connectors.update(CALLER, made.id, {"OperatorRole": ROLE + "2"})
    await settled(world, made.id)
    with pytest.raises(InvalidParameter):
        await connectors.delete(CALLER, made.version_arn(2))
    await connectors.delete(CALLER, made.version_arn(1))
    with pytest.raises(NotFound):
        await connectors.get(CALLER, made.version_arn(1))
    assert (await connectors.get(CALLER, made.id)).state is S.ACTIVE
