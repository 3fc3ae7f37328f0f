"""The six connector operations of Lambda Core (spec 8.2). Requests are the wire's own PascalCase members."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from sqlalchemy import Connection

from torpor.config import NetworkSettings
from torpor.control import idempotency
from torpor.control.connectors import choice
from torpor.control.connectors.outward import outward
from torpor.control.connectors.rules import check_configuration, check_name, check_role
from torpor.control.connectors.settling import Settling
from torpor.control.limits import Limits
from torpor.control.paging import Cursors, Position, page_size
from torpor.control.tag_count import check_count
from torpor.model.arn import ConnectorArn
from torpor.model.caller import Caller
from torpor.model.clock import Clock
from torpor.model.connector import Connector, ConnectorState, ConnectorVersion, UpdateStatus
from torpor.model.egress import Egress
from torpor.model.errors import Denied, Invalid, InvalidParameter, NotFound, ResourceConflict
from torpor.model.ids import new_connector_id
from torpor.model.moments import microseconds
from torpor.model.paging import Page, PageRequest
from torpor.model.seams import Seams
from torpor.store import Database, connectors

LARGEST_PAGE: Final = 50
LARGEST_VERSION_PAGE: Final = 100
"""The lists of the model hold no more, whatever MaxItems says."""


class Connectors:
    def __init__(
        self, database: Database, settings: NetworkSettings, limits: Limits, cursors: Cursors, clock: Clock,
        seams: Seams,
    ) -> None:
        self._database = database
        self._settings = settings
        self._limits = limits
        self._cursors = cursors
        self._clock = clock
        self._settling = Settling(database, settings, clock, seams)
        self.lost: Callable[[str], Awaitable[None]] = _nobody
        """Told the ARN of each connector that is deleted: what is bound to it loses its egress at once (spec 8.2)."""

    async def run(self) -> None:
        """Move connectors on, for ever."""
        await self._settling.run()

    async def ingress(self, caller: Caller, asked: Sequence[str] | None) -> tuple[str, ...]:
        """See `choice.ingress`."""
        return await choice.ingress(caller, asked)

    async def egress(
        self, caller: Caller, asked: Sequence[str] | None, default: Sequence[str] | None = None
    ) -> tuple[str, ...]:
        """See `choice.egress`."""
        return await choice.egress(self._database, self._settings, caller, asked, default)

    async def outward(self, arns: Sequence[str]) -> Egress:
        """What a microVM with these egress connectors may reach, as of now."""
        return await outward(self._database, self._settings, arns)

    async def create(self, caller: Caller, request: Mapping[str, Any]) -> Connector:
        """A PENDING connector with version 1. Raises InvalidParameter, ResourceConflict, ConnectorLimitExceeded."""
        token = request.get("ClientToken")
        if not token:
            raise InvalidParameter("ClientToken is a required field")
        name, configuration, role = request["Name"], request["Configuration"], request.get("OperatorRole")
        check_name(name)
        check_configuration(configuration)
        check_role(role)
        check_count(request.get("Tags") or {})
        now = self._clock.now()
        pending = ConnectorState.PENDING
        version = ConnectorVersion(1, pending, None, None, dict(configuration), role, now)
        made = Connector(
            new_connector_id(), caller.account, caller.region, name, pending, None, None, None, None, None, 1, now, now,
            version, dict(request.get("Tags") or {}),
        )
        claimed = idempotency.claim(caller, "CreateNetworkConnector", token, _without_token(request))

        def make(connection: Connection) -> Connector:
            earlier = idempotency.recall(connection, claimed, now, ResourceConflict)
            if earlier is not None:
                return self.find(connection, caller, earlier.partition("#")[0])
            if connectors.find_named(connection, caller.account, caller.region, name):
                raise ResourceConflict(f"A network connector with the name '{name}' already exists in this account")
            self._limits.admit_connector(connection, caller.account, caller.region)
            connectors.insert(connection, made)
            idempotency.keep(connection, claimed, f"{made.arn}#1", now)
            return made

        created = await self._database.write(make)
        self._settling.wake()
        return created

    async def get(self, caller: Caller, identifier: str) -> Connector:
        """By id, name, ARN or ARN with version. Raises NotFound, Denied."""
        return await self._database.read(lambda connection: self.find(connection, caller, identifier))

    async def list(self, caller: Caller, state: str | None, page: PageRequest) -> Page[Connector]:
        scope = f"ListNetworkConnectors {caller.account} {caller.region} {state or ''}"
        after = self._after(page, scope)
        size = page_size(page, LARGEST_PAGE)
        found = await self._database.read(
            lambda connection: connectors.page(
                connection, caller.account, caller.region, state, after.key if after else None, size + 1
            )
        )
        return self._cursors.page(page, scope, found, size, lambda one: Position(microseconds(one.created_at), one.id))

    async def list_versions(
        self, caller: Caller, identifier: str, state: str | None, page: PageRequest
    ) -> tuple[Connector, Page[ConnectorVersion]]:
        """The connector and a page of its versions, newest first. Raises NotFound, Denied."""
        connector = await self.get(caller, identifier)
        scope = f"ListNetworkConnectorVersions {connector.arn} {state or ''}"
        after = self._after(page, scope)
        size = page_size(page, LARGEST_VERSION_PAGE)
        found = await self._database.read(
            lambda connection: connectors.page_versions(
                connection, connector.id, state, after.at_us if after else None, size + 1
            )
        )
        return connector, self._cursors.page(page, scope, found, size, lambda one: Position(one.version, ""))

    async def update(self, caller: Caller, identifier: str, request: Mapping[str, Any]) -> Connector:
        """Begin to replace configuration or role. Raises InvalidParameter, ResourceConflict, NotFound, Denied."""
        if request.get("Configuration") is not None:
            check_configuration(request["Configuration"])
        now = self._clock.now()
        claimed = idempotency.claim(
            caller, "UpdateNetworkConnector", request.get("ClientToken"),
            {**_without_token(request), "Identifier": identifier},
        )

        def change(connection: Connection) -> Connector:
            earlier = idempotency.recall(connection, claimed, now, ResourceConflict)
            connector = self.find(connection, caller, _unqualified(identifier))
            if earlier is not None:
                shown = connectors.find_version(connection, connector.id, int(earlier.partition("#")[2]))
                return replace(connector, current=shown or connector.current)
            changed = self._changed(connection, connector, request)
            idempotency.keep(connection, claimed, f"{connector.arn}#{changed.current.version}", now)
            return changed

        updated = await self._database.write(change)
        self._settling.wake()
        return updated

    def _changed(self, connection: Connection, connector: Connector, request: Mapping[str, Any]) -> Connector:
        now = self._clock.now()
        if connector.state is not ConnectorState.ACTIVE:
            raise ResourceConflict(f"Network connector is in state {connector.state} and cannot be updated")
        if connector.last_update_status is UpdateStatus.IN_PROGRESS:
            raise ResourceConflict("An update is in progress for the network connector")
        configuration = dict(request.get("Configuration") or connector.current.configuration)
        role = request.get("OperatorRole") or connector.current.operator_role
        if configuration == connector.current.configuration and role == connector.current.operator_role:
            same = replace(
                connector, last_update_status=UpdateStatus.SUCCESSFUL, last_update_reason_code=None,
                last_update_reason="No configuration changes detected",
            )
            connectors.save(connection, same)
            return same
        self._limits.admit_connector_version(connection, connector.account, connector.id)
        number = connectors.highest_version(connection, connector.id) + 1
        version = ConnectorVersion(number, ConnectorState.PENDING, None, None, configuration, role, now)
        connectors.put_version(connection, connector.id, version)
        changing = replace(
            connector, last_update_status=UpdateStatus.IN_PROGRESS, last_update_reason=None,
            last_update_reason_code=None, modified_at=now,
        )
        connectors.save(connection, changing)
        return replace(changing, current=version)

    async def delete(self, caller: Caller, identifier: str) -> Connector:
        """Begin to delete it, or delete one older version. Repeating it does nothing.

        Raises:
            NotFound: it never existed. ResourceConflict: it is PENDING. InvalidParameter: the latest version alone.
        """
        version = _parsed(identifier).version if identifier.startswith("arn:") else None

        def remove(connection: Connection) -> Connector:
            try:
                connector = self.find(connection, caller, _unqualified(identifier))
            except NotFound:
                gone = connectors.find_tombstone(connection, caller.account, caller.region, _key(identifier))
                if gone is None:
                    raise
                return gone
            if version is not None:
                return self._delete_version(connection, connector, version, identifier)
            if connector.state is ConnectorState.DELETING:
                return connector
            if connector.state not in (ConnectorState.ACTIVE, ConnectorState.FAILED):
                raise ResourceConflict(f"Network connector is in state {connector.state} and cannot be deleted")
            deleting = replace(
                connector, state=ConnectorState.DELETING, state_reason=None, state_reason_code=None,
                modified_at=self._clock.now(),
            )
            connectors.save(connection, deleting)
            return deleting

        removed = await self._database.write(remove)
        self._settling.wake()
        if removed.state is ConnectorState.DELETING and version is None:
            await self.lost(removed.arn)
        return removed

    def _delete_version(
        self, connection: Connection, connector: Connector, version: int, identifier: str
    ) -> Connector:
        found = connectors.find_version(connection, connector.id, version)
        if found is None:
            raise NotFound(f"Network connector not found for: {identifier}")
        if version == connector.latest_version:
            raise InvalidParameter("The latest version of a network connector cannot be deleted on its own")
        if found.state is ConnectorState.PENDING:
            raise ResourceConflict("An update is in progress for the network connector")
        connectors.remove_version(connection, connector.id, version)
        return replace(connector, current=replace(found, state=ConnectorState.DELETING))

    def find(self, connection: Connection, caller: Caller, identifier: str) -> Connector:
        """Inside a transaction, by id, name, ARN or ARN with version. Raises NotFound, Denied, InvalidParameter."""
        missing = NotFound(f"Network connector not found for: {identifier}")
        place = (caller.account, caller.region)
        if not identifier.startswith("arn:"):
            connector = connectors.find_id(connection, *place, identifier)
            connector = connector or connectors.find_named(connection, *place, identifier)
            if connector is None:
                raise missing
            return connector
        arn = _parsed(identifier)
        if arn.is_managed or arn.region != caller.region:
            raise missing
        if arn.account != caller.account:
            raise Denied(None)
        connector = connectors.find_id(connection, *place, arn.id)
        if connector is None:
            raise missing
        if arn.version is None:
            return connector
        shown = connectors.find_version(connection, connector.id, arn.version)
        if shown is None:
            raise missing
        return replace(
            connector, current=shown, state=shown.state, state_reason=shown.state_reason,
            state_reason_code=shown.state_reason_code,
        )

    def _after(self, page: PageRequest, scope: str) -> Position | None:
        try:
            return self._cursors.read(page, scope)
        except Invalid as error:
            raise InvalidParameter("Invalid Marker") from error


async def _nobody(arn: str) -> None:
    return None


def _parsed(identifier: str) -> ConnectorArn:
    try:
        return ConnectorArn.parse(identifier)
    except Invalid as error:
        raise InvalidParameter(error.message) from error


def _unqualified(identifier: str) -> str:
    return _parsed(identifier).unqualified if identifier.startswith("arn:") else identifier


def _key(identifier: str) -> str:
    return _parsed(identifier).id if identifier.startswith("arn:") else identifier


def _without_token(request: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in request.items() if name != "ClientToken"}
