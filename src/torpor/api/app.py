"""The API as a bare ASGI application.

One request is: route, verify, throttle, parse, check constraints, run the operation, serialize. Nothing stands between
uvicorn and this, because at some thousand requests a second each layer is felt.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final

from torpor.api import errors
from torpor.api.errors import Answer
from torpor.api.extras import EXTRAS, HEALTH_PATH, Extra
from torpor.api.operations import OPERATIONS, Call
from torpor.api.parser import parse, parse_query
from torpor.api.routing import Router, UndecodablePath
from torpor.api.serializer import serialize
from torpor.api.sigv4 import Request, Verifier
from torpor.api.spec import Operation, all_operations
from torpor.api.streaming import Stream, send_stream
from torpor.api.validation import validate
from torpor.config import Config
from torpor.control import Control
from torpor.model.caller import Caller
from torpor.model.clock import Clock, SystemClock
from torpor.model.errors import Refused
from torpor.model.ids import new_request_id

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

MAX_BODY_BYTES: Final = 6 * 1024 * 1024
"""As AWS Lambda's control plane."""
MAX_HEADER_BYTES: Final = 64 * 1024

_log = logging.getLogger(__name__)


class Disconnected(Exception):
    """The client went away before it had sent its request."""


class Api:
    """Answers AWS's operations and Torpor's own routes."""

    def __init__(self, control: Control, config: Config, clock: Clock) -> None:
        self._control = control
        self._clock = clock
        self._regions = frozenset(config.served_regions)
        # The clients' own time: moving a simulated machine's clock must not make their signatures expire.
        self._verifier = Verifier(control.accounts.credential, SystemClock().now)
        served = all_operations().values()
        self._operations = Router((op.method, op.uri, op) for op in served if op.name in OPERATIONS)
        self._extras = Router(EXTRAS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self._http(scope, receive, send)
        elif scope["type"] == "lifespan":
            await _lifespan(receive, send)
        else:
            await send({"type": "websocket.close", "code": 1000})

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        request_id = new_request_id()
        operation: Operation | None = None
        try:
            raw_path = scope["raw_path"].decode("latin-1")
            if raw_path == HEALTH_PATH:
                return await _send(send, Answer(200, b'{"ready":true}'), request_id)
            operation, labels, extra = self._route(scope["method"], raw_path)
            call, request = await self._verified(scope, raw_path, receive, request_id)
            if extra is not None:
                answer = await extra(
                    Extra(call, self._clock, labels, dict(parse_query(request.raw_query)), request.body))
                if isinstance(answer, Stream):
                    return await send_stream(answer, receive, send, request_id)
            elif operation is None:
                raise errors.UnknownRoute
            else:
                answer = await self._run(call, operation, labels, request)
        except Disconnected:
            return None
        except Exception as error:
            answer = errors.answer_to(error, operation)
            if not isinstance(error, errors.WireError | Refused):
                _log.exception("request %s failed", request_id, extra={"request_id": request_id})
        return await _send(send, answer, request_id)

    def _route(self, method: str, raw_path: str) -> tuple[
            Operation | None, dict[str, str], Callable[[Extra], Awaitable[Answer | Stream]] | None]:
        """Operation and labels, or the function of an extra; neither where there is nothing.

        Raises:
            GatewayNotFound, SlashArn, Unreadable.
        """
        try:
            found = self._operations.find(method, raw_path)
            if found is not None:
                _refuse_slash_form(found[1])
                return found[0], found[1], None
            extra = self._extras.find(method, raw_path)
        except UndecodablePath as error:
            raise errors.Unreadable("The path could not be read") from error
        if extra is not None:
            return None, extra[1], extra[0]
        # An ARN with its slash raw is one segment too many for the front gateway, which answers a page (spec 1.3).
        if ":microvm-image/" in raw_path:
            raise errors.GatewayNotFound
        return None, {}, None

    async def _verified(self, scope: Scope, raw_path: str, receive: Receive,
                        request_id: str) -> tuple[Call, Request]:
        headers = _headers(scope["headers"])
        body = await _body(receive, headers)
        request = Request(scope["method"], raw_path, scope["query_string"].decode("latin-1"), headers, body)
        verified = self._verifier.verify(request)
        if verified.region not in self._regions:
            raise errors.RegionNotServed
        credential = verified.credential
        caller = Caller(credential.account, verified.region, credential.principal, credential.access_key_id)
        if verified.body is not body:
            request = Request(request.method, raw_path, request.raw_query, headers, verified.body)
        return Call(self._control, caller, request_id), request

    async def _run(self, call: Call, operation: Operation, labels: dict[str, str], request: Request) -> Answer:
        self._control.limits.throttle(call.caller, operation.name)
        given = parse(operation, labels, parse_query(request.raw_query), request.headers, request.body)
        validate(operation.input, given)
        members = await OPERATIONS[operation.name](call, given)
        return Answer(operation.status, serialize(operation, members))


def build_app(control: Control, config: Config, clock: Clock) -> Api:
    """The ASGI application; `control` must have been started before it is asked anything."""
    return Api(control, config, clock)


def _refuse_slash_form(labels: dict[str, str]) -> None:
    if any(":microvm-image/" in value for value in labels.values()):
        raise errors.SlashArn


def _headers(raw: list[tuple[bytes, bytes]]) -> dict[str, str]:
    """By name; repeated ones joined as a signature joins them."""
    headers: dict[str, str] = {}
    size = 0
    for name_bytes, value_bytes in raw:
        size += len(name_bytes) + len(value_bytes)
        name, value = name_bytes.decode("latin-1"), value_bytes.decode("latin-1")
        headers[name] = f"{headers[name]},{value}" if name in headers else value
    if size > MAX_HEADER_BYTES:
        raise errors.HeadersTooLarge
    return headers


async def _body(receive: Receive, headers: dict[str, str]) -> bytes:
    """The whole body.

    Raises:
        TooLarge: before or while it is read.
        Disconnected: the client went away.
    """
    declared = headers.get("content-length", "0")
    if declared.isdecimal() and int(declared[:20]) > MAX_BODY_BYTES:
        raise errors.TooLarge(MAX_BODY_BYTES)
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Disconnected
        part = message.get("body", b"")
        size += len(part)
        if size > MAX_BODY_BYTES:
            raise errors.TooLarge(MAX_BODY_BYTES)
        if not message.get("more_body"):
            return b"".join((*parts, part)) if parts else part
        parts.append(part)


async def _send(send: Send, answer: Answer, request_id: str) -> None:
    headers = [(b"x-amzn-requestid", request_id.encode()), *answer.headers]
    if answer.status != 204:
        headers += [(b"content-type", answer.content_type), (b"content-length", str(len(answer.body)).encode())]
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": answer.body})


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return
