"""Network connectors of customers, which are Lambda Core's (spec 8.2)."""

from __future__ import annotations

from torpor.api.operations.passing import authorize_role
from torpor.api.operations.registry import Call, JsonObject, Members, operation
from torpor.model.connector import Connector, ConnectorVersion
from torpor.model.errors import NotFound
from torpor.model.paging import PageRequest


@operation("CreateNetworkConnector")
async def create_connector(call: Call, given: Members) -> JsonObject:
    await call.authorize("CreateNetworkConnector")
    await authorize_role(call, given.get("OperatorRole"))
    return _brief(await call.control.connectors.create(call.caller, given))


@operation("GetNetworkConnector")
async def get_connector(call: Call, given: Members) -> JsonObject:
    connector = await call.control.connectors.get(call.caller, given["Identifier"])
    await call.authorize("GetNetworkConnector", connector.arn)
    return {
        **_brief(connector),
        **_latest(connector),
        **_last_update(connector),
        "StateReason": connector.state_reason,
        "StateReasonCode": connector.state_reason_code,
        "LastUpdateStatusReasonCode": connector.last_update_reason_code,
    }


@operation("ListNetworkConnectors")
async def list_connectors(call: Call, given: Members) -> JsonObject:
    await call.authorize("ListNetworkConnectors")
    page = await call.control.connectors.list(call.caller, given.get("State"), _page(given))
    return {"NetworkConnectors": [_item(connector) for connector in page.items], "NextMarker": page.cursor}


@operation("ListNetworkConnectorVersions")
async def list_connector_versions(call: Call, given: Members) -> JsonObject:
    connector, page = await call.control.connectors.list_versions(
        call.caller, given["Identifier"], given.get("State"), _page(given))
    await call.authorize("ListNetworkConnectorVersions", connector.arn)
    versions = [_version(connector, version) for version in page.items]
    return {"NetworkConnectorVersions": versions, "NextMarker": page.cursor}


@operation("UpdateNetworkConnector")
async def update_connector(call: Call, given: Members) -> JsonObject:
    connector = await call.control.connectors.get(call.caller, given["Identifier"])
    await call.authorize("UpdateNetworkConnector", connector.arn)
    await authorize_role(call, given.get("OperatorRole"))
    updated = await call.control.connectors.update(call.caller, given["Identifier"], given)
    return {**_brief(updated), **_last_update(updated)}


@operation("DeleteNetworkConnector")
async def delete_connector(call: Call, given: Members) -> JsonObject:
    await call.authorize("DeleteNetworkConnector", await _arn_if_any(call, given["Identifier"]))
    return _brief(await call.control.connectors.delete(call.caller, given["Identifier"]))


async def _arn_if_any(call: Call, identifier: str) -> str | None:
    """None when it has gone: deleting it again is no error."""
    try:
        connector = await call.control.connectors.get(call.caller, identifier)
    except NotFound:
        return None
    return connector.arn


def _page(given: Members) -> PageRequest:
    return PageRequest(given.get("MaxItems"), given.get("Marker"))


def _brief(connector: Connector) -> JsonObject:
    """What Create and Delete answer."""
    current = connector.current
    return {
        "Arn": connector.arn,
        "Name": connector.name,
        "Id": connector.id,
        "VersionArn": connector.version_arn(current.version),
        "Version": current.version,
        "Configuration": current.configuration,
        "OperatorRole": current.operator_role,
        "State": connector.state,
    }


def _latest(connector: Connector) -> JsonObject:
    return {
        "LatestVersion": connector.latest_version,
        "LatestVersionArn": connector.version_arn(connector.latest_version),
    }


def _last_update(connector: Connector) -> JsonObject:
    return {
        "LastModified": connector.modified_at,
        "LastUpdateStatus": connector.last_update_status,
        "LastUpdateStatusReason": connector.last_update_reason,
    }


def _item(connector: Connector) -> JsonObject:
    return {
        **_latest(connector),
        "Arn": connector.arn,
        "Name": connector.name,
        "Id": connector.id,
        "Type": "VPC_EGRESS",
        "State": connector.state,
        "LastModified": connector.modified_at,
    }


def _version(connector: Connector, version: ConnectorVersion) -> JsonObject:
    return {
        "Arn": connector.arn,
        "VersionArn": connector.version_arn(version.version),
        "Name": connector.name,
        "Id": connector.id,
        "Version": version.version,
        "State": version.state,
        "StateReason": version.state_reason,
        "StateReasonCode": version.state_reason_code,
        "LastModified": version.modified_at,
    }
