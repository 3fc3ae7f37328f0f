"""Which connectors a microVM or image gets: defaults, and the texts that refuse the rest (spec 1.11, 4.1, 8.1)."""

from __future__ import annotations

from collections.abc import Sequence

from torpor.config import NetworkSettings
from torpor.model.arn import ConnectorArn, managed_connector
from torpor.model.caller import Caller
from torpor.model.connector import (
    ALLOW_LIST,
    HTTP_INGRESS,
    INTERNET_EGRESS,
    MANAGED_EGRESS,
    MANAGED_INGRESS,
    ConnectorState,
)
from torpor.model.errors import Denied, Invalid, NotFound
from torpor.store import Database, connectors


async def ingress(caller: Caller, asked: Sequence[str] | None) -> tuple[str, ...]:
    """The ingress connectors of a Run: HTTP_INGRESS when none are given.

    Raises:
        Invalid: malformed, unknown, or a customer's connector, which are for egress only.
    """
    for text in asked or ():
        arn = ConnectorArn.parse(text)
        if not arn.is_managed:
            raise Invalid(f"Network connector {text} cannot be used for ingress")
        _check_managed(caller, text, arn, MANAGED_INGRESS)
    return tuple(asked) if asked else (managed_connector(caller.region, HTTP_INGRESS),)


async def egress(
    database: Database, settings: NetworkSettings, caller: Caller, asked: Sequence[str] | None,
    default: Sequence[str] | None = None,
) -> tuple[str, ...]:
    """The one egress connector of a Run or image: `default`, else INTERNET_EGRESS, when none is given.

    Raises:
        Invalid: malformed, unknown, more than one, or not ACTIVE.
        NotFound: a customer's connector that does not exist.
        Denied: another account's.
    """
    for text in asked or ():
        arn = ConnectorArn.parse(text)
        if arn.is_managed:
            _check_managed(caller, text, arn, MANAGED_EGRESS | {f"{ALLOW_LIST}{name}" for name in settings.allow_lists})
    if asked and len(asked) > 1:
        raise Invalid("Only one egress network connector can be provided")
    if not asked:
        return tuple(default or (managed_connector(caller.region, INTERNET_EGRESS),))
    arn = ConnectorArn.parse(asked[0])
    if not arn.is_managed:
        await _check_customer(database, caller, asked[0], arn)
    return tuple(asked)


def _check_managed(caller: Caller, text: str, arn: ConnectorArn, known: frozenset[str]) -> None:
    if arn.id not in known or arn.region != caller.region or str(arn) != text:
        raise Invalid(f"Unrecognized managed network connector ARN: {text}")


async def _check_customer(database: Database, caller: Caller, text: str, arn: ConnectorArn) -> None:
    if arn.account != caller.account:
        raise Denied(None)
    found = None
    if arn.region == caller.region:
        found = await database.read(lambda connection: connectors.find_id(connection, arn.account, arn.region, arn.id))
    if found is None:
        raise NotFound(f"Network connector not found for: {text}")
    if arn.version is not None:
        wanted = arn.version
        version = await database.read(lambda connection: connectors.find_version(connection, found.id, wanted))
        if version is None:
            raise NotFound(f"Network connector not found for: {text}")
    if found.state is not ConnectorState.ACTIVE:
        raise Invalid(f"Network connector {text} is not in ACTIVE state")
