"""The only place that knows AWS's error types, status codes and texts (spec 1.11).

WireError                         refused before or outside `control`
├── MissingAuthentication         403 MissingAuthenticationTokenException
├── IncompleteSignature           403 IncompleteSignatureException
├── UnknownKey                    403 UnrecognizedClientException
│   └── WrongToken
├── InvalidSignature              403 InvalidSignatureException
│   ├── SignatureMismatch
│   ├── SignatureExpired
│   └── SignatureNotYetCurrent
├── RegionNotServed               403 AccessDeniedException, null message
├── SlashArn                      403 AccessDeniedException, null message
├── UnknownRoute                  404 UnknownOperationException
├── GatewayNotFound               404, the front gateway's HTML page
├── Unreadable                    400 SerializationException
├── ConstraintsViolated           400 ValidationException
├── HeadersTooLarge               400 RequestHeaderSectionTooLarge
└── TooLarge                      413 RequestTooLargeException

What `control` refuses (`torpor.model.errors.Refused`) becomes an answer by the family of the operation; anything else
that is raised becomes InternalServerException without a word about its cause.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from torpor.api.spec import CORE, MICROVMS, ErrorShape, Operation, load_service
from torpor.model import errors as model

JSON_TYPE: Final = b"application/json"


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole HTTP response, but for the request id."""

    status: int
    body: bytes
    headers: tuple[tuple[bytes, bytes], ...] = ()
    content_type: bytes = JSON_TYPE


class WireError(Exception):
    """Refused by the wire itself. `code` None is not an AWS error but a page of the gateway."""

    status = 400
    code: str | None = None
    message_member = "message"

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or "")
        self.message = message

    def answer(self) -> Answer:
        return _answer(self.status, self.code or "", {self.message_member: self.message})


class MissingAuthentication(WireError):
    status, code = 403, "MissingAuthenticationTokenException"

    def __init__(self) -> None:
        super().__init__("Missing Authentication Token")


class IncompleteSignature(WireError):
    status, code = 403, "IncompleteSignatureException"


class UnknownKey(WireError):
    status, code = 403, "UnrecognizedClientException"

    def __init__(self) -> None:
        super().__init__("The security token included in the request is invalid.")


class WrongToken(UnknownKey):
    """The key is known, the session token is not its own."""


class InvalidSignature(WireError):
    status, code = 403, "InvalidSignatureException"


class SignatureMismatch(InvalidSignature):
    def __init__(self) -> None:
        super().__init__(
            "The request signature we calculated does not match the signature you provided. Check your AWS Secret "
            "Access Key and signing method. Consult the service documentation for details.")


class SignatureExpired(InvalidSignature):
    def __init__(self, signed: datetime, now: datetime, allowed: timedelta) -> None:
        super().__init__(f"Signature expired: {_basic(signed)} is now earlier than {_basic(now - allowed)} "
                         f"({_basic(now)} - {_minutes(allowed)} min.)")


class SignatureNotYetCurrent(InvalidSignature):
    def __init__(self, signed: datetime, now: datetime, allowed: timedelta) -> None:
        super().__init__(f"Signature not yet current: {_basic(signed)} is still later than {_basic(now + allowed)} "
                         f"({_basic(now)} + {_minutes(allowed)} min.)")


class RegionNotServed(WireError):
    status, code = 403, "AccessDeniedException"


class SlashArn(WireError):
    status, code = 403, "AccessDeniedException"


class UnknownRoute(WireError):
    status, code = 404, "UnknownOperationException"


class GatewayNotFound(WireError):
    status = 404

    def answer(self) -> Answer:
        return Answer(404, b"<html><body><h1>404 Not Found</h1></body></html>", content_type=b"text/html")


class Unreadable(WireError):
    """The body, path or query cannot be turned into the operation's input."""

    code, message_member = "SerializationException", "Message"


class ConstraintsViolated(WireError):
    code = "ValidationException"

    def __init__(self, violations: Sequence[str]) -> None:
        count = len(violations)
        super().__init__(f"{count} validation error{'s' if count > 1 else ''} detected: {'; '.join(violations)}")


class HeadersTooLarge(WireError):
    code = "RequestHeaderSectionTooLarge"

    def __init__(self) -> None:
        super().__init__("Your request header section exceeds the maximum allowed size.")


class TooLarge(WireError):
    status, code = 413, "RequestTooLargeException"

    def __init__(self, limit: int) -> None:
        super().__init__(f"Request must be smaller than {limit} bytes")


@dataclass(frozen=True, slots=True)
class _Family:
    """How one family of operations names what `control` refuses."""

    service: str
    names: Mapping[type[Exception], str]
    internal: str
    message_member: str
    """For errors that are not in the service's model."""


_MICROVMS = _Family(MICROVMS, {
    model.Invalid: "ValidationException",
    model.InvalidParameter: "InvalidParameterValueException",
    model.NotFound: "ResourceNotFoundException",
    model.Conflict: "ConflictException",
    model.ResourceConflict: "ResourceConflictException",
    model.Denied: "AccessDeniedException",
    model.QuotaExceeded: "ServiceQuotaExceededException",
    model.Throttled: "ThrottlingException",
    model.NoCapacity: "InsufficientCapacityException",
}, "InternalServerException", "message")
_TAGS = _Family(MICROVMS, {
    **_MICROVMS.names,
    model.Conflict: "ResourceConflictException",
    model.Throttled: "TooManyRequestsException",
}, "ServiceException", "message")
_CONNECTORS = _Family(CORE, {
    model.Invalid: "InvalidParameterValueException",
    model.NotFound: "ResourceNotFoundException",
    model.Conflict: "ResourceConflictException",
    model.Denied: "AccessDeniedException",
    model.QuotaExceeded: "NetworkConnectorLimitExceededException",
    model.Throttled: "TooManyRequestsException",
}, "ServiceException", "Message")
_TAG_PATH: Final = "/2017-03-31/"
_STATUS_WITHOUT_SHAPE: Final = {"AccessDeniedException": 403}
_FAULT_MESSAGE: Final = "An internal error occurred. The request id names it in the server's log."
_FAULT_RETRY_SECONDS: Final = 1


def answer_to(error: Exception, operation: Operation | None) -> Answer:
    """AWS's answer to whatever was raised while `operation` ran (None: outside the models)."""
    if isinstance(error, WireError):
        return error.answer()
    family = _family_of(operation)
    if isinstance(error, model.Refused):
        name = next((family.names[t] for t in type(error).__mro__ if t in family.names), family.internal)
        if name != family.internal:
            return _modelled(family, name, error.message, error)
    return _modelled(family, family.internal, _FAULT_MESSAGE, None)


def _family_of(operation: Operation | None) -> _Family:
    if operation is None:
        return _MICROVMS
    if operation.service == CORE:
        return _CONNECTORS
    return _TAGS if operation.uri.startswith(_TAG_PATH) else _MICROVMS


def _modelled(family: _Family, name: str, message: str | None, refused: model.Refused | None) -> Answer:
    shape = load_service(family.service).errors.get(name)
    retry_after = _retry_after(refused)
    headers = ((b"retry-after", str(retry_after).encode()),) if retry_after else ()
    if shape is None:
        return _answer(_STATUS_WITHOUT_SHAPE[name], name, {family.message_member: message}, headers)
    return _answer(shape.status, name, _members(family, shape, message, refused), headers)


def _members(family: _Family, shape: ErrorShape, message: str | None,
             refused: model.Refused | None) -> dict[str, Any]:
    values: dict[str, Any] = {
        "message": message,
        "Message": message,
        "Type": "Service" if shape.is_fault else "User",
        "Reason": "CallerRateLimitExceeded",
        "resourceId": refused.resource_id if refused else None,
        "resourceType": refused.resource_type if refused else None,
    }
    members = {name: values.get(name) for name in shape.members}
    if family.service == CORE:
        return {name: value for name, value in members.items() if value is not None}
    return members


def _retry_after(refused: model.Refused | None) -> int | None:
    """Whole seconds, at least one."""
    if refused is None:
        return _FAULT_RETRY_SECONDS
    if isinstance(refused, model.Throttled):
        return max(1, math.ceil(refused.retry_after.total_seconds()))
    return None


def _answer(status: int, code: str, members: Mapping[str, Any],
            headers: tuple[tuple[bytes, bytes], ...] = ()) -> Answer:
    body = json.dumps(members, separators=(",", ":")).encode()
    return Answer(status, body, ((b"x-amzn-errortype", code.encode()), *headers))


def _basic(moment: datetime) -> str:
    """ISO 8601 basic, as SigV4 writes it."""
    return moment.strftime("%Y%m%dT%H%M%SZ")


def _minutes(duration: timedelta) -> int:
    return int(duration.total_seconds() // 60)
