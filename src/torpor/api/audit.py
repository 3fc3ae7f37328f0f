"""What an audit record says of a call, as CloudTrail says it (spec 9.2): who, what, on what, from where, how it ended.

Payloads and secrets are not in it: members that the model marks as sensitive, bodies of lines, commands and hooks.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache, partial
from typing import Any, Final

from torpor.api.errors import Answer
from torpor.api.spec import CORE, LOGS, MICROVMS, Shape
from torpor.control.audit import Audit, Record
from torpor.model.caller import Caller
from torpor.model.ids import new_request_id

HIDDEN: Final = "HIDDEN_DUE_TO_SECURITY_REASONS"
SOURCES: Final = {MICROVMS: "lambda.amazonaws.com", CORE: "lambda.amazonaws.com", LOGS: "logs.amazonaws.com",
                  "torpor": "torpor"}  # fmt: skip
DATA_EVENTS: Final = frozenset({
    "RunMicrovm", "TerminateMicrovm", "SuspendMicrovm", "ResumeMicrovm", "CreateMicrovmAuthToken",
    "CreateMicrovmShellAuthToken", "FilterLogEvents", "GetLogEvents", "PutLogEvents",
})
_PAYLOADS: Final = frozenset({"runHookPayload", "environmentVariables", "logEvents", "authToken", "clientToken"})
_ANSWERED: Final = (
    "microvmId", "state", "endpoint", "imageArn", "imageVersion", "imageIdentifier", "Arn", "Id", "State",
)
_QUERY: Final = ("path", "base", "imageIdentifier", "imageVersion")
_READS: Final = re.compile(r"(Get|List|Describe|Filter|Lookup)[A-Z]")


@dataclass(slots=True)
class Entry:
    """One call, filled in as more of it is known."""

    request_id: str
    source: str = "torpor"
    name: str = "Unknown"
    caller: Caller | None = None
    address: str = ""
    agent: str = ""
    given: Mapping[str, Any] = field(default_factory=dict)
    answered: Mapping[str, Any] = field(default_factory=dict)

    def of_extra(self, function: str, method: str, labels: Mapping[str, str], query: Mapping[str, str]) -> None:
        """A call of `/torpor/v1`."""
        name = "".join(part.capitalize() for part in function.split("_"))
        self.name = f"Get{name}" if method == "GET" and not _READS.match(name) else name
        known = {"microvmIdentifier" if name == "microvmId" else name: value for name, value in labels.items()}
        self.given = known | {name: query[name] for name in _QUERY if name in query}

    def of(self, scope: Mapping[str, Any], headers: Mapping[str, str]) -> None:
        client = scope.get("client")
        self.address = client[0] if client else ""
        self.agent = headers.get("user-agent", "")[:256]


async def keep(audit: Audit, entry: Entry, region: str, account: str, failure: Answer | None) -> None:
    """Record a call that has been answered; `failure` is the answer when it is an error."""
    # Put together by whoever writes it: no call waits for that.
    await audit.keep(partial(record_of, int(audit.now().timestamp()), entry, region, account, failure))


def record_of(at: int, entry: Entry, region: str, account: str, failure: Answer | None) -> Record:
    """`at` in seconds."""
    caller = entry.caller
    is_read = _is_read(entry.name)
    is_data = entry.name in DATA_EVENTS
    record: Record = {
        "eventVersion": "1.11",
        "userIdentity": _identity(caller),
        "eventTime": _written(at),
        "eventSource": SOURCES[entry.source],
        "eventName": entry.name,
        "awsRegion": caller.region if caller else region,
        "sourceIPAddress": entry.address,
        "userAgent": entry.agent,
        "requestParameters": dict(entry.given) or None,
        "responseElements": None if is_read or failure is not None else _response(entry),
        "requestID": entry.request_id,
        "eventID": new_request_id(),
        "readOnly": is_read,
        "eventType": "AwsApiCall",
        "managementEvent": not is_data,
        "recipientAccountId": caller.account if caller else account,
        "eventCategory": "Data" if is_data else "Management",
    }
    if failure is not None:
        code, message = _error(failure)
        record |= {"errorCode": code, "errorMessage": message}
    return record


@lru_cache(maxsize=16)
def _written(at: int) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@lru_cache(maxsize=1024)
def _is_read(name: str) -> bool:
    return _READS.match(name) is not None


@lru_cache(maxsize=1024)
def _identity(caller: Caller | None) -> dict[str, str]:
    if caller is None:
        return {"type": "Unknown"}
    kind = {"root": "Root", "user": "IAMUser", "assumed-role": "AssumedRole", "role": "Role"}
    resource = caller.principal.rpartition(":")[2]
    return {
        "type": kind.get(resource.partition("/")[0], "Unknown"), "arn": caller.principal, "accountId": caller.account,
        "accessKeyId": caller.access_key_id,
    }


def _response(entry: Entry) -> dict[str, Any] | None:
    found = {name: entry.answered[name] for name in _ANSWERED if entry.answered.get(name) is not None}
    if entry.name == "RunMicrovm" and found:  # CloudTrail's own names for them
        return {"microvmId": found["microvmId"], "microvmState": found["state"], "endpoint": found["endpoint"],
                "microvmImageArn": found["imageArn"], "microvmImageVersion": found["imageVersion"]}  # fmt: skip
    return found or None


def _error(failure: Answer) -> tuple[str, str | None]:
    code = next((value.decode() for name, value in failure.headers if name == b"x-amzn-errortype"), str(failure.status))
    try:
        document = json.loads(failure.body)
    except ValueError:
        return code, None
    return code, document.get("message") or document.get("Message") if isinstance(document, dict) else None


def shown(shape: Shape, given: Mapping[str, Any]) -> dict[str, Any]:
    """The members of an input without what is secret or payload."""
    found: dict[str, Any] = {}
    for name, value in given.items():
        member = shape.members.get(name)
        if name in _PAYLOADS or member is None or member.shape.is_sensitive:
            found[name] = HIDDEN
        elif member.shape.type == "structure" and isinstance(value, Mapping):
            found[name] = shown(member.shape, value)
        else:
            found[name] = value
    if "imageIdentifier" in found:
        found["microvmImageArn"] = found["imageIdentifier"]
    return found
