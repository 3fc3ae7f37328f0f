"""Connectors of a customer: requests for them, a configuration under which they take their time, and waits."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from support.catalogue_world import ACCOUNT, CALLER, World, until
from torpor.config import Config, NetworkSettings
from torpor.model.connector import Connector, ConnectorState, UpdateStatus
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
