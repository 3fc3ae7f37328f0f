"""Roles and connectors that a request hands to the service: the caller must be allowed to pass each (spec 9.4)."""

from __future__ import annotations

from collections.abc import Iterable

from torpor.api.operations.registry import Call


async def authorize_role(call: Call, role_arn: str | None) -> None:
    if role_arn is not None:
        await call.authorize("iam:PassRole", role_arn)


async def authorize_connectors(call: Call, arns: Iterable[str]) -> None:
    """Including those that are used because none was given (spec 8.1)."""
    for arn in arns:
        await call.authorize("PassNetworkConnector", arn)
