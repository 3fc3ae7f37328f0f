"""One small function for each operation of CloudWatch Logs that is served."""

from __future__ import annotations

import base64
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from typing import Final

from torpor.api.cloudwatch.batch import sort_out
from torpor.api.cloudwatch.pattern import Matches, compile_pattern
from torpor.api.operations import Call
from torpor.api.operations.registry import JsonObject, Members
from torpor.model.errors import Conflict, Invalid, NotFound
from torpor.model.logs import LogLine, StreamFacts, owned
from torpor.model.moments import EPOCH, from_microseconds, microseconds
from torpor.store.logs import Span

MOST_EVENTS: Final = 10_000
MOST_BYTES: Final = 1024 * 1024
"""Of the messages of one answer."""
SCANNED: Final = 50_000
"""Lines that one FilterLogEvents looks at before it answers with what it has and a token."""
RETENTION_DAYS: Final = frozenset({
    1, 3, 5, 7, 14, 30, 60, 90, 120, 150, 180, 365, 400, 545, 731, 1096, 1827, 2192, 2557, 2922, 3288, 3653,
})
NO_GROUP: Final = "The specified log group does not exist."
NO_STREAM: Final = "The specified log stream does not exist."
_PAGE: Final = 50

Run = Callable[[Call, Members], Awaitable[JsonObject]]
LOG_OPERATIONS: Final[dict[str, Run]] = {}


def _operation(name: str) -> Callable[[Run], Run]:
    def register(run: Run) -> Run:
        LOG_OPERATIONS[name] = run
        return run

    return register


@_operation("DescribeLogGroups")
async def describe_log_groups(call: Call, given: Members) -> JsonObject:
    await call.authorize("logs:DescribeLogGroups", _arn(call, "*"))
    prefix = _owned(call, "")
    names = [name.removeprefix(prefix) for name in await call.control.logs.groups() if name.startswith(prefix)]
    beginning, pattern = given.get("logGroupNamePrefix", ""), given.get("logGroupNamePattern", "").lower()
    if beginning and pattern:
        raise Invalid("LogGroup name prefix and LogGroup name pattern are mutually exclusive parameters.")
    names = [name for name in names if name.startswith(beginning) and pattern in name.lower()]
    page, token = _page(names, given)
    groups = []
    for name in page:
        facts = await call.control.logs.group_facts(_owned(call, name))
        if facts is not None:
            groups.append({
                "logGroupName": name, "creationTime": _ms(facts.created_at), "retentionInDays": facts.retention_days,
                "metricFilterCount": 0, "arn": _arn(call, name), "storedBytes": facts.size_bytes,
                "logGroupClass": "STANDARD", "logGroupArn": _arn(call, name).removesuffix(":*"),
            })
    return {"logGroups": groups, "nextToken": token}


@_operation("DescribeLogStreams")
async def describe_log_streams(call: Call, given: Members) -> JsonObject:
    name, group = await _group(call, given, "DescribeLogStreams")
    prefix, order = given.get("logStreamNamePrefix", ""), given.get("orderBy", "LogStreamName")
    if prefix and order == "LastEventTime":
        raise Invalid("Cannot order by LastEventTime with a logStreamNamePrefix.")
    names = [each for each in await call.control.logs.streams(group) if each.startswith(prefix)]
    if order == "LastEventTime":
        every = [facts for each in names if (facts := await call.control.logs.stream_facts(group, each))]
        every.sort(key=lambda facts: (facts.last_at or EPOCH, facts.name))
        names = [facts.name for facts in every]
    if given.get("descending"):
        names.reverse()
    page, token = _page(names, given)
    shown = [found for each in page if (found := await call.control.logs.stream_facts(group, each))]
    return {"logStreams": [_stream(call, name, each) for each in shown], "nextToken": token}


def _stream(call: Call, group: str, facts: StreamFacts) -> JsonObject:
    arn = f"{_arn(call, group).removesuffix(':*')}:log-stream:{facts.name}"
    return {
        "logStreamName": facts.name, "creationTime": _ms(facts.created_at), "arn": arn, "storedBytes": 0,
        "firstEventTimestamp": facts.first_at and _ms(facts.first_at),
        "lastEventTimestamp": facts.last_at and _ms(facts.last_at),
        "lastIngestionTime": facts.last_written_at and _ms(facts.last_written_at),
    }


@_operation("GetLogEvents")
async def get_log_events(call: Call, given: Members) -> JsonObject:
    stream = given["logStreamName"]
    _, group = await _group(call, given, "GetLogEvents", stream)
    await _expect_stream(call, group, stream)
    limit, token = given.get("limit", MOST_EVENTS), given.get("nextToken")
    forward, position = _position(token)
    logs, span = call.control.logs, _span(given)
    if token is None and not given.get("startFromHead"):
        found = await logs.read_back(group, stream, None, span, limit, MOST_BYTES)
    elif forward:
        found = await logs.read_span(group, [stream], Span(position, span.start, span.end), limit, MOST_BYTES)
    else:
        found = await logs.read_back(group, stream, position, span, limit, MOST_BYTES)
    ahead, behind = (found[-1].sequence, found[0].sequence) if found else (position, position)
    if not found and token is not None and not forward:
        ahead = position - 1
    elif not found and forward:
        behind = position + 1
    events = [{"timestamp": _ms(line.at), "message": line.text, "ingestionTime": line.sequence // 1000}
              for line in found]  # fmt: skip
    return {"events": events, "nextForwardToken": f"f/{ahead:056d}/s", "nextBackwardToken": f"b/{behind:056d}/s"}


@_operation("FilterLogEvents")
async def filter_log_events(call: Call, given: Members) -> JsonObject:
    _, group = await _group(call, given, "FilterLogEvents")
    names, prefix = given.get("logStreamNames"), given.get("logStreamNamePrefix")
    if names and prefix:
        raise Invalid("LogStreamNames and LogStreamNamePrefix are mutually exclusive parameters.")
    matches = compile_pattern(given.get("filterPattern", ""))
    streams = names or [each for each in await call.control.logs.streams(group) if each.startswith(prefix or "")]
    for name in names or ():
        await _expect_stream(call, group, name)
    after = int(_untoken(given.get("nextToken")) or 0)
    span = _span(given)
    found, token = await _filtered(call, group, streams, Span(after, span.start, span.end), matches,
                                   given.get("limit", MOST_EVENTS))  # fmt: skip
    events = [{
        "logStreamName": line.stream, "timestamp": _ms(line.at), "message": line.text,
        "ingestionTime": line.sequence // 1000, "eventId": f"{line.sequence:056d}",
    } for line in found]  # fmt: skip
    return {"events": events, "searchedLogStreams": [], "nextToken": token}


async def _filtered(call: Call, group: str, streams: Sequence[str], span: Span, matches: Matches,
                    limit: int) -> tuple[list[LogLine], str | None]:
    found: list[LogLine] = []
    scanned = 0
    while True:
        page = await call.control.logs.read_span(group, streams, span, MOST_EVENTS, MOST_BYTES)
        for line in page:
            span = Span(line.sequence, span.start, span.end)
            if matches(line.text):
                found.append(line)
                if len(found) == limit:
                    return found, _token(str(span.after))
        scanned += len(page)
        if not page:
            return found, None
        if scanned >= SCANNED or sum(len(line.text) for line in found) > MOST_BYTES:
            return found, _token(str(span.after))


@_operation("CreateLogGroup")
async def create_log_group(call: Call, given: Members) -> JsonObject:
    name = given["logGroupName"]
    await call.authorize("logs:CreateLogGroup", _arn(call, name))
    if not await call.control.logs.create_group(_owned(call, name)):
        raise Conflict("The specified log group already exists")
    return {}


@_operation("CreateLogStream")
async def create_log_stream(call: Call, given: Members) -> JsonObject:
    _, group = await _group(call, given, "CreateLogStream")
    if not await call.control.logs.create_stream(group, given["logStreamName"]):
        raise Conflict("The specified log stream already exists")
    return {}


@_operation("PutLogEvents")
async def put_log_events(call: Call, given: Members) -> JsonObject:
    stream = given["logStreamName"]
    _, group = await _group(call, given, "PutLogEvents", stream)
    await _expect_stream(call, group, stream)
    logs = call.control.logs
    batch = sort_out(given["logEvents"], _ms(logs.now()), await logs.retention_days(group))
    await logs.append(
        group, stream, [(from_microseconds(each["timestamp"] * 1000), "", each["message"]) for each in batch.events]
    )
    return {"rejectedLogEventsInfo": batch.rejected} if batch.rejected else {}


@_operation("DeleteLogGroup")
async def delete_log_group(call: Call, given: Members) -> JsonObject:
    _, group = await _group(call, given, "DeleteLogGroup")
    await call.control.logs.delete(group)
    return {}


@_operation("DeleteLogStream")
async def delete_log_stream(call: Call, given: Members) -> JsonObject:
    stream = given["logStreamName"]
    _, group = await _group(call, given, "DeleteLogStream", stream)
    await _expect_stream(call, group, stream)
    await call.control.logs.delete(group, stream)
    return {}


@_operation("PutRetentionPolicy")
async def put_retention_policy(call: Call, given: Members) -> JsonObject:
    _, group = await _group(call, given, "PutRetentionPolicy")
    days = given["retentionInDays"]
    if days not in RETENTION_DAYS:
        raise Invalid(f"Invalid retention value. Value must be one of: {sorted(RETENTION_DAYS)}")
    await call.control.logs.set_retention(group, days)
    return {}


@_operation("DeleteRetentionPolicy")
async def delete_retention_policy(call: Call, given: Members) -> JsonObject:
    _, group = await _group(call, given, "DeleteRetentionPolicy")
    await call.control.logs.set_retention(group, None)
    return {}


async def _group(call: Call, given: Members, action: str, stream: str | None = None) -> tuple[str, str]:
    """The group's name, and the name it is kept under, if the caller may do this to it. Raises NotFound, Denied."""
    name, identifier = given.get("logGroupName"), given.get("logGroupIdentifier")
    if (name is None) == (identifier is None):
        raise Invalid("Exactly one of logGroupName and logGroupIdentifier must be given.")
    if identifier is not None:
        name = identifier.removesuffix(":*").rpartition(":")[2]
        if identifier.startswith("arn:") and identifier.removesuffix(":*") != _arn(call, name).removesuffix(":*"):
            raise NotFound(NO_GROUP)
    assert name is not None
    arn = _arn(call, name)
    await call.authorize(f"logs:{action}", arn if stream is None else f"{arn[:-1]}log-stream:{stream}")
    kept = _owned(call, name)
    if not await call.control.logs.has_group(kept):
        raise NotFound(NO_GROUP)
    return name, kept


async def _expect_stream(call: Call, group: str, stream: str) -> None:
    if await call.control.logs.stream_facts(group, stream) is None:
        raise NotFound(NO_STREAM)


def _owned(call: Call, name: str) -> str:
    return owned(call.caller.account, call.caller.region, name)


def _arn(call: Call, name: str) -> str:
    return f"arn:aws:logs:{call.caller.region}:{call.caller.account}:log-group:{name}:*"


def _ms(moment: datetime) -> int:
    return microseconds(moment) // 1000


def _span(given: Members) -> Span:
    end = given.get("endTime")
    return Span(0, given.get("startTime", 0) * 1000, None if end is None else end * 1000)


def _position(token: str | None) -> tuple[bool, int]:
    """Whether to read forward, and from which sequence."""
    if token is None:
        return True, 0
    kind, _, rest = token.partition("/")
    digits = rest.removesuffix("/s")
    if kind not in ("f", "b") or not (digits.isascii() and digits.isdigit() and len(digits) <= 56):
        raise Invalid("The specified nextToken is invalid.")
    return kind == "f", int(digits)


def _page(names: Sequence[str], given: Members) -> tuple[Sequence[str], str | None]:
    """A page of names in an order that stays, and the token of the next one."""
    seen = _untoken(given.get("nextToken"))
    begin = names.index(seen) + 1 if seen in names else 0
    end = begin + given.get("limit", _PAGE)
    return names[begin:end], _token(names[end - 1]) if end < len(names) else None


def _token(text: str) -> str:
    return base64.urlsafe_b64encode(text.encode()).decode()


def _untoken(token: str | None) -> str | None:
    if token is None:
        return None
    try:
        return base64.urlsafe_b64decode(token).decode()
    except ValueError as error:
        raise Invalid("The specified nextToken is invalid.") from error
