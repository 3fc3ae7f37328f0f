"""From a target header and a body to an operation, and from whatever it raised to AWS's answer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from torpor.api import errors
from torpor.api.cloudwatch.operations import LOG_OPERATIONS
from torpor.api.errors import Answer
from torpor.api.operations import Call
from torpor.api.parser import parse
from torpor.api.serializer import serialize
from torpor.api.spec import LOGS, Operation, load_service
from torpor.api.validation import validate
from torpor.model import errors as model

TARGET: Final = "Logs_20140328."
JSON_1_1: Final = b"application/x-amz-json-1.1"
_CODES: Final[Mapping[type[Exception], str]] = {
    model.Invalid: "InvalidParameterException",
    model.NotFound: "ResourceNotFoundException",
    model.Conflict: "ResourceAlreadyExistsException",
    model.Denied: "AccessDeniedException",
    model.Throttled: "ThrottlingException",
}


def operation_of(headers: Mapping[str, str]) -> Operation:
    """Raises UnknownRoute for one that is not served."""
    target = headers.get("x-amz-target", "")
    found = load_service(LOGS).operations.get(target.removeprefix(TARGET)) if target.startswith(TARGET) else None
    if found is None or found.name not in LOG_OPERATIONS:
        raise errors.UnknownRoute
    return found


def read(operation: Operation, headers: Mapping[str, str], body: bytes) -> dict[str, Any]:
    """The operation's input. Raises Unreadable, ConstraintsViolated."""
    given = parse(operation, {}, [], headers, body)
    validate(operation.input, given)
    return given


async def answer(call: Call, operation: Operation, given: dict[str, Any]) -> Answer:
    members = await LOG_OPERATIONS[operation.name](call, given)
    return Answer(200, serialize(operation, members), content_type=JSON_1_1)


def answer_to(error: Exception) -> Answer:
    """AWS's answer to whatever was raised."""
    if isinstance(error, errors.ConstraintsViolated):
        return _error(400, "InvalidParameterException", error.message)
    if isinstance(error, errors.UnknownRoute):
        return _error(400, "UnknownOperationException", None)
    if isinstance(error, errors.WireError):
        return _error(400, error.code or "SerializationException", error.message)
    if isinstance(error, model.Refused):
        name = next((_CODES[kind] for kind in type(error).__mro__ if kind in _CODES), "InvalidParameterException")
        return _error(400, name, error.message)
    return _error(500, "InternalFailure", "An internal error occurred. The request id names it in the server's log.")


def _error(status: int, code: str, message: str | None) -> Answer:
    document = {"__type": code} | ({"message": message} if message is not None else {})
    return Answer(status, json.dumps(document, separators=(",", ":")).encode(),
                  ((b"x-amzn-errortype", code.encode()),), JSON_1_1)
