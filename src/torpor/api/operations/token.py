"""The bearer secrets for a microVM's endpoint and for its shell (spec 5.3, 7)."""

from __future__ import annotations

from typing import Final

from torpor.api.operations.microvm import microvm_id
from torpor.api.operations.registry import Call, JsonObject, Members, operation
from torpor.model.endpoint import ALL_PORTS, PortRange

AUTH_HEADER: Final = "X-aws-proxy-auth"


@operation("CreateMicrovmAuthToken")
async def create_token(call: Call, given: Members) -> JsonObject:
    ports = tuple(_range(specification) for specification in given["allowedPorts"])
    token = await call.control.tokens.mint(call.caller, microvm_id(given), ports, given["expirationInMinutes"])
    return {"authToken": {AUTH_HEADER: token}}


@operation("CreateMicrovmShellAuthToken")
async def create_shell_token(call: Call, given: Members) -> JsonObject:
    token = await call.control.tokens.mint_shell(call.caller, microvm_id(given), given["expirationInMinutes"])
    return {"authToken": {AUTH_HEADER: token}}


def _range(specification: Members) -> PortRange:
    """Of one member of the union (spec 5.3)."""
    if "port" in specification:
        return PortRange(specification["port"], specification["port"])
    if "range" in specification:
        return PortRange(specification["range"]["startPort"], specification["range"]["endPort"])
    return ALL_PORTS
