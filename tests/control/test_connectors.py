"""Network connectors of customers and the ones AWS provides (spec 8.1, 8.2)."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from support.catalogue_world import ACCOUNT, CALLER, ELSEWHERE, OTHER, REGION, STRANGER, World, until
from torpor.config import Config, NetworkSettings
from torpor.model.arn import managed_connector
from torpor.model.connector import Connector, ConnectorState, UpdateStatus
from torpor.model.errors import Denied, Invalid, InvalidParameter, NotFound, ResourceConflict
from torpor.model.paging import PageRequest

ROLE = f"arn:aws:iam::{ACCOUNT}:role/operator"
S = ConnectorState
DELAY = timedelta(minutes=5)


def configuration(**changes: Any) -> dict[str, Any]:
    vpc = {
        "SubnetIds": ["subnet-1"], "SecurityGroupIds": ["sg-1"], "NetworkProtocol": "IPv4",
        "AssociatedComputeResourceTypes": ["MicroVm"], **changes,
    }
    return {"VpcEgressConfiguration": {name: value for name, value in vpc.items() if value is not None}}


def asked(name: str = "private", token: str | None = "token", **changes: Any) -> dict[str, Any]:
    whole = {"Name": name, "ClientToken": token, "OperatorRole": ROLE, "Configuration": configuration(), **changes}
    return {member: value for member, value in whole.items() if value is not None}


def slow(**network: Any) -> Config:
    return Config(network=NetworkSettings(connector_delay=DELAY, **network))


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    made = World(tmp_path)
    await made.start()
    yield made
    await made.crash()


@pytest.fixture
async def slow_world(tmp_path: Path) -> AsyncIterator[World]:
    made = World(tmp_path, slow())
    await made.start()
    yield made
    await made.crash()


async def settled(world: World, identifier: str) -> Connector:
    busy = (S.PENDING, S.DELETING)
    return await until(
        lambda: world.catalogue.connectors.get(CALLER, identifier),
        lambda one: one.state not in busy and one.last_update_status is not UpdateStatus.IN_PROGRESS,
    )


async def active(world: World, name: str = "private", **changes: Any) -> Connector:
    made = await world.catalogue.connectors.create(CALLER, asked(name, token=name, **changes))
    return await settled(world, made.id)


async def gone(world: World, connector: Connector) -> None:
    async def names() -> list[str]:
        return [one.id for one in (await world.catalogue.connectors.list(CALLER, None, PageRequest())).items]

    await until(names, lambda found: connector.id not in found)


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


async def test_it_is_found_by_id_name_arn_and_arn_with_version(world: World) -> None:
    """Spec 1.3, 8.2."""
    made = await active(world)
    for identifier in (made.id, made.name, made.arn, made.version_arn(1)):
        assert (await world.catalogue.connectors.get(CALLER, identifier)).id == made.id


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


# Identifiers and lists


async def test_other_accounts_are_denied_and_other_regions_unknown(world: World) -> None:
    """Spec 9.4."""
    made, connectors = await active(world), world.catalogue.connectors
    with pytest.raises(Denied):
        await connectors.get(STRANGER, made.arn)
    for caller, identifier in (
        (STRANGER, made.id), (STRANGER, made.name), (ELSEWHERE, made.arn), (ELSEWHERE, made.name),
        (CALLER, managed_connector(REGION, "INTERNET_EGRESS")), (CALLER, made.arn.replace(made.id, made.name)),
    ):
        with pytest.raises(NotFound):
            await connectors.get(caller, identifier)
    with pytest.raises(InvalidParameter):
        await connectors.get(CALLER, "arn:aws:s3:::bucket")


async def test_lists_go_in_pages_and_by_state(tmp_path: Path) -> None:
    """Spec 1.2, 8.2: State, Marker, MaxItems."""
    world = World(tmp_path, Config(network=NetworkSettings(subnets={"subnet-1": {}})))
    await world.start()
    connectors = world.catalogue.connectors
    for number in range(3):
        await active(world, f"n{number}")
        await world.clock.advance(timedelta(seconds=1))
    await active(world, "broken", Configuration=configuration(SubnetIds=["subnet-9"]))
    first = await connectors.list(CALLER, "ACTIVE", PageRequest(2))
    second = await connectors.list(CALLER, "ACTIVE", PageRequest(2, first.cursor))
    assert [one.name for one in (*first.items, *second.items)] == ["n2", "n1", "n0"]
    assert second.cursor is None
    assert [one.name for one in (await connectors.list(CALLER, "FAILED", PageRequest())).items] == ["broken"]
    with pytest.raises(InvalidParameter):
        await connectors.list(CALLER, "FAILED", PageRequest(2, first.cursor))
    await connectors.update(CALLER, "n0", {"OperatorRole": ROLE + "2"})
    await settled(world, "n0")
    shown, page = await connectors.list_versions(CALLER, "n0", None, PageRequest(1))
    assert (shown.name, [one.version for one in page.items]) == ("n0", [2])
    _, page = await connectors.list_versions(CALLER, "n0", None, PageRequest(1, page.cursor))
    assert ([one.version for one in page.items], page.cursor) == ([1], None)
    await world.crash()


# What a Run or image may name


async def test_run_gets_http_ingress_unless_it_says_otherwise(world: World) -> None:
    """Spec 4.1, 8.1."""
    ingress = world.catalogue.connectors.ingress
    default = (managed_connector(REGION, "HTTP_INGRESS"),)
    assert await ingress(CALLER, None) == default
    assert await ingress(CALLER, ()) == default
    for names in (["HTTP_INGRESS", "SHELL_INGRESS"], ["ALL_INGRESS", "SHELL_INGRESS"], ["NO_INGRESS"]):
        arns = tuple(managed_connector(REGION, name) for name in names)
        assert await ingress(CALLER, arns) == arns  # ALL_INGRESS mixed is refused at the shell token only


@pytest.mark.parametrize("name", ["INTERNET_EGRESS", "FTP_INGRESS", "http_ingress"])
async def test_unknown_managed_ingress_is_refused(world: World, name: str) -> None:
    """Spec 1.11."""
    arn = managed_connector(REGION, name)
    with pytest.raises(Invalid, match=f"^Unrecognized managed network connector ARN: {arn}$"):
        await world.catalogue.connectors.ingress(CALLER, [arn])
    other = managed_connector("eu-west-1", "HTTP_INGRESS")
    with pytest.raises(Invalid, match="Unrecognized managed"):
        await world.catalogue.connectors.ingress(CALLER, [other])
    with pytest.raises(Invalid, match=r"^Malformed network connector ARN$"):
        await world.catalogue.connectors.ingress(CALLER, [name])


async def test_egress_is_one_connector_the_images_or_the_internet(world: World) -> None:
    """Spec 1.11, 4.1, 8.1: NO_EGRESS does not exist; `[]` is as if omitted."""
    egress = world.catalogue.connectors.egress
    internet = managed_connector(REGION, "INTERNET_EGRESS")
    made = await active(world)
    assert await egress(CALLER, None) == (internet,)
    assert await egress(CALLER, [], [made.arn]) == (made.arn,)
    assert await egress(CALLER, [internet], [made.arn]) == (internet,)
    assert await egress(CALLER, [made.version_arn(1)]) == (made.version_arn(1),)
    with pytest.raises(Invalid, match=r"^Only one egress network connector can be provided$"):
        await egress(CALLER, [internet, made.arn])
    with pytest.raises(Invalid, match="Unrecognized managed network connector ARN"):
        await egress(CALLER, [managed_connector(REGION, "NO_EGRESS")])


async def test_a_customers_connector_must_exist_be_active_and_be_ones_own(slow_world: World) -> None:
    """Spec 8.2: the texts are unrecorded."""
    world, connectors = slow_world, slow_world.catalogue.connectors
    made = await connectors.create(CALLER, asked())
    with pytest.raises(Invalid, match="is not in ACTIVE state"):
        await connectors.egress(CALLER, [made.arn])
    await world.clock.advance(DELAY)
    await connectors.egress(CALLER, [made.arn])
    with pytest.raises(Invalid, match="cannot be used for ingress"):
        await connectors.ingress(CALLER, [made.arn])
    for missing in (made.version_arn(9), made.arn.replace(made.id, "nc-none"), made.arn.replace(made.id, made.name)):
        with pytest.raises(NotFound, match="Network connector not found for: "):
            await connectors.egress(CALLER, [missing])
    with pytest.raises(NotFound):
        await connectors.egress(ELSEWHERE, [made.arn])
    with pytest.raises(Denied):
        await connectors.egress(CALLER, [made.arn.replace(ACCOUNT, OTHER)])
    with pytest.raises(Denied):
        await connectors.egress(replace(STRANGER, region=REGION), [made.arn])
