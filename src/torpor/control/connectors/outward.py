"""What an egress connector lets through, from the configuration's subnets, security groups and allow-lists (spec 8)."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Final

from sqlalchemy import Connection

from torpor.config import NetworkSettings
from torpor.model.arn import ConnectorArn
from torpor.model.connector import ALLOW_LIST, NO_EGRESS, ConnectorState, ConnectorVersion
from torpor.model.egress import ALL, INTERNET, Egress, EgressKind, Rule
from torpor.model.egress import NO_EGRESS as NOTHING
from torpor.store import Database, connectors

log: Final = logging.getLogger(__name__)


async def outward(database: Database, settings: NetworkSettings, arns: Sequence[str]) -> Egress:
    """Nothing when the connector, or the allow-list it names, is gone: the rules it stood for are unknown now."""
    if not arns:
        return INTERNET
    arn = ConnectorArn.parse(arns[0])
    if arn.is_managed:
        return _managed(settings, arn.id)
    version = await database.read(lambda connection: _version(connection, arn))
    if version is None:
        log.warning("the network connector %s is gone: what was bound to it reaches nothing", arn)
        return NOTHING
    return _of_customer(settings, version)


def _managed(settings: NetworkSettings, name: str) -> Egress:
    if name == NO_EGRESS:
        return NOTHING
    if not name.startswith(ALLOW_LIST):
        return INTERNET
    allow_list = name.removeprefix(ALLOW_LIST)
    if allow_list not in settings.allow_lists:
        log.warning("there is no allow-list %s in the configuration any more", allow_list)
        return NOTHING
    return Egress(EgressKind.NAMES, names=settings.names_of(allow_list))


def _version(connection: Connection, arn: ConnectorArn) -> ConnectorVersion | None:
    """The version that the ARN names, else the latest that works."""
    found = connectors.find_id(connection, arn.account, arn.region, arn.id)
    if found is None or found.state is ConnectorState.DELETING:
        return None
    return found.current if arn.version is None else connectors.find_version(connection, found.id, arn.version)


def _of_customer(settings: NetworkSettings, version: ConnectorVersion) -> Egress:
    vpc = version.configuration["VpcEgressConfiguration"]
    groups = [_place(settings.security_groups, identity) for identity in vpc.get("SecurityGroupIds") or ()]
    subnets = [_place(settings.subnets, identity) for identity in vpc.get("SubnetIds") or ()]
    # Without a group AWS uses the VPC's default one, which lets everything out.
    allowed = [rule for group in groups for rule in settings.rules_of(group)] if groups else [ALL]
    return Egress(EgressKind.RULES, _each_once(allowed), _each_once(
        [rule for subnet in subnets for rule in settings.rules_of(subnet)]))


def _place(known: Mapping[str, Mapping[str, Any]], identity: str) -> Mapping[str, Any]:
    """Any id is good while none is configured; one that has gone from the configuration lets nothing through."""
    return known.get(identity, {"egress": []} if known else {})


def _each_once(rules: Sequence[Rule]) -> tuple[Rule, ...]:
    return tuple(dict.fromkeys(rules))
