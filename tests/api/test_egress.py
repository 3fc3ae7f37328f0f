"""Egress connectors from the wire to the machine (spec 8)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from support.api_world import BASE, CODE, ROLE, ApiWorld, api_world, served
from torpor.host.simulated import SimulatedHost
from torpor.model.arn import managed_connector
from torpor.model.egress import INTERNET, NO_EGRESS, EgressKind
from torpor.model.ids import MicrovmId


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[ApiWorld]:
    async with api_world(tmp_path) as made, served(made):
        yield made


async def launched(world: ApiWorld, **members: Any) -> MicrovmId:
    client = world.client("lambda-microvms")
    arns = [item["imageArn"] for item in (await world.boto(client.list_microvm_images))["items"]]
    if not arns:
        made = await world.boto(client.create_microvm_image, name="image", baseImageArn=BASE, buildRoleArn=ROLE,
                                codeArtifact={"uri": CODE})
        arns = [made["imageArn"]]
        await world.until("GetMicrovmImage", lambda found: found["state"] == "CREATED", imageIdentifier=arns[0])
    microvm = (await world.boto(client.run_microvm, imageIdentifier=arns[0], **members))["microvmId"]
    await world.until("GetMicrovm", lambda found: found["state"] == "RUNNING", microvmIdentifier=microvm)
    return MicrovmId(microvm)


def egress_of(world: ApiWorld, microvm_id: MicrovmId) -> Any:
    host = world.control.host
    assert isinstance(host, SimulatedHost)
    return host.egress[microvm_id]


async def test_the_machine_is_told_what_the_connector_lets_through(world: ApiWorld) -> None:
    assert egress_of(world, await launched(world)) == INTERNET
    closed = managed_connector("us-east-1", "TORPOR_NO_EGRESS")
    assert egress_of(world, await launched(world, egressNetworkConnectors=[closed])) == NO_EGRESS


async def test_deleting_a_connector_takes_egress_from_what_runs_with_it_and_from_nothing_else(world: ApiWorld) -> None:
    network = world.client("lambda-core")
    vpc = {"SubnetIds": ["subnet-1"], "SecurityGroupIds": ["sg-1"], "NetworkProtocol": "IPv4",
           "AssociatedComputeResourceTypes": ["MicroVm"]}
    made = await world.boto(network.create_network_connector, Name="c", ClientToken="c", OperatorRole=ROLE,
                            Configuration={"VpcEgressConfiguration": vpc})
    arn = made["Arn"]
    while (await world.boto(network.get_network_connector, Identifier=arn))["State"] != "ACTIVE":
        pass
    bound = await launched(world, egressNetworkConnectors=[arn])
    pinned = await launched(world, egressNetworkConnectors=[f"{arn}:1"])
    other = await launched(world)
    assert egress_of(world, bound).kind is egress_of(world, pinned).kind is EgressKind.RULES
    await world.boto(network.delete_network_connector, Identifier=arn)
    assert [egress_of(world, vm) for vm in (bound, pinned, other)] == [NO_EGRESS, NO_EGRESS, INTERNET]
    client = world.client("lambda-microvms")
    await world.boto(client.suspend_microvm, microvmIdentifier=bound)
    await world.boto(client.resume_microvm, microvmIdentifier=bound)
    await world.until("GetMicrovm", lambda found: found["state"] == "RUNNING", microvmIdentifier=bound)
    assert egress_of(world, bound) == NO_EGRESS
