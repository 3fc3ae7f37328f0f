"""What an egress connector lets through, from the configuration (spec 8)."""

from __future__ import annotations

from typing import Any

import pytest

from support.catalogue_world import ACCOUNT, CALLER, REGION, World, until, world_fixture
from torpor.config import Config, NetworkSettings
from torpor.model.arn import managed_connector
from torpor.model.connector import Connector, ConnectorState
from torpor.model.egress import ALL, INTERNET, NO_EGRESS, Egress, EgressKind, Name, Rule
from torpor.model.errors import Invalid

SETTINGS = NetworkSettings(
    subnets={"subnet-1": {}, "subnet-2": {"egress": ["tcp 443 0.0.0.0/0"]}},
    security_groups={"sg-1": {"egress": ["tcp 443 10.0.0.0/8"]}, "sg-2": {"egress": ["udp 53 10.0.0.0/8"]}, "sg-3": {},
                     "sg-4": {"egress": []}},
    allow_lists={"python": ["pypi.org", "*.pythonhosted.org"]},
)

world = world_fixture(Config(network=SETTINGS))


async def connector(world: World, subnets: list[str], groups: list[str], name: str = "private") -> Connector:
    vpc: dict[str, Any] = {"SubnetIds": subnets, "SecurityGroupIds": groups, "NetworkProtocol": "IPv4",
                           "AssociatedComputeResourceTypes": ["MicroVm"]}
    made = await world.catalogue.connectors.create(CALLER, {
        "Name": name, "ClientToken": name, "OperatorRole": f"arn:aws:iam::{ACCOUNT}:role/operator",
        "Configuration": {"VpcEgressConfiguration": vpc}})

    async def is_active() -> bool:
        return (await world.catalogue.connectors.get(CALLER, made.id)).state is ConnectorState.ACTIVE

    await until(is_active, bool)
    return made


@pytest.mark.parametrize(("name", "egress"), [
    ("INTERNET_EGRESS", INTERNET), ("TORPOR_NO_EGRESS", NO_EGRESS),
    ("TORPOR_ALLOW_python", Egress(EgressKind.NAMES, names=(Name("pypi.org"), Name("pythonhosted.org", True)))),
])
async def test_managed_connectors_are_awss_one_and_two_kinds_of_ours(world: World, name: str, egress: Egress) -> None:
    arn = managed_connector(REGION, name)
    assert await world.catalogue.connectors.egress(CALLER, [arn]) == (arn,)
    assert await world.catalogue.connectors.outward([arn]) == egress


async def test_an_allow_list_that_is_not_configured_is_no_connector(world: World) -> None:
    for name in ("TORPOR_ALLOW_other", "TORPOR_ALLOW_", "NO_EGRESS"):
        with pytest.raises(Invalid, match="Unrecognized managed network connector ARN"):
            await world.catalogue.connectors.egress(CALLER, [managed_connector(REGION, name)])
    # Bound when there was one: nothing, and not everything.
    assert await world.catalogue.connectors.outward([managed_connector(REGION, "TORPOR_ALLOW_other")]) == NO_EGRESS


async def test_no_connector_is_the_default_one(world: World) -> None:
    assert await world.catalogue.connectors.outward([]) == INTERNET


@pytest.mark.parametrize(("subnets", "groups", "allowed", "passed"), [
    (["subnet-1"], ["sg-1"], [Rule("tcp", "10.0.0.0/8", 443, 443)], [ALL]),
    (["subnet-2"], ["sg-1", "sg-2"], [Rule("tcp", "10.0.0.0/8", 443, 443), Rule("udp", "10.0.0.0/8", 53, 53)],
     [Rule("tcp", "0.0.0.0/0", 443, 443)]),
    (["subnet-1"], ["sg-3"], [ALL], [ALL]),
    (["subnet-1"], ["sg-4"], [], [ALL]),
    (["subnet-1", "subnet-2"], [], [ALL], [ALL, Rule("tcp", "0.0.0.0/0", 443, 443)]),
])
async def test_a_customers_connector_is_the_rules_of_its_groups_and_subnets(
        world: World, subnets: list[str], groups: list[str], allowed: list[Rule], passed: list[Rule]) -> None:
    made = await connector(world, subnets, groups)
    assert await world.catalogue.connectors.outward([made.arn]) == Egress(
        EgressKind.RULES, tuple(allowed), tuple(passed))


async def test_a_version_that_the_arn_names_holds_and_without_one_the_latest_does(world: World) -> None:
    made = await connector(world, ["subnet-1"], ["sg-1"])
    before = await world.catalogue.connectors.outward([made.arn])
    vpc = {**made.current.configuration["VpcEgressConfiguration"], "SecurityGroupIds": ["sg-2"]}
    await world.catalogue.connectors.update(CALLER, made.id, {"Configuration": {"VpcEgressConfiguration": vpc}})

    async def is_updated() -> bool:
        return (await world.catalogue.connectors.get(CALLER, made.id)).latest_version == 2

    await until(is_updated, bool)
    assert await world.catalogue.connectors.outward([made.version_arn(1)]) == before
    assert (await world.catalogue.connectors.outward([made.arn])).groups == (Rule("udp", "10.0.0.0/8", 53, 53),)


async def test_what_is_bound_to_a_connector_that_is_gone_reaches_nothing(world: World) -> None:
    made = await connector(world, ["subnet-1"], ["sg-1"])
    await world.catalogue.connectors.delete(CALLER, made.id)
    assert await world.catalogue.connectors.outward([made.arn]) == NO_EGRESS
