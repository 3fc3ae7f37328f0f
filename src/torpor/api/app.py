"""The API as a bare ASGI application.

One request is: route, verify, throttle, parse, check constraints, run the operation, serialize. Nothing stands between
uvicorn and this, because at some thousand requests a second each layer is felt.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

from torpor.api import audit, cloudwatch, errors
from torpor.api.asgi import (
    Disconnected,
    Receive,
    Scope,
    Send,
    body_of,
    headers_of,
    lifespan,
    pieces_of,
    refuse_socket,
    send_answer,
)
from torpor.api.audit import Entry
from torpor.api.errors import Answer
from torpor.api.extras import EXTRAS, HEALTH_PATH, SOCKETS, UPLOADS, Extra
from torpor.api.extras.socket import Socket, SocketClosed
from torpor.api.metrics import METRICS_PATH, Answered, metrics
from torpor.api.operations import OPERATIONS, Call
from torpor.api.parser import parse, parse_query
from torpor.api.routing import Router, UndecodablePath
from torpor.api.serializer import serialize
from torpor.api.sigv4 import SERVICE, UNSIGNED, Request, Verifier
from torpor.api.spec import LOGS, Operation, all_operations
from torpor.api.streaming import BrokenOff, Download, Stream, send_download, send_stream
from torpor.api.validation import validate
from torpor.config import Config
from torpor.control import Control
from torpor.model.caller import Caller
from torpor.model.clock import Clock, SystemClock
from torpor.model.errors import Refused
from torpor.model.ids import new_request_id

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Route:
    """Where a request goes; to nothing when it has neither an operation nor a function of ours."""

    labels: dict[str, str] = field(default_factory=dict)
    operation: Operation | None = None
    function: Callable[[Extra], Awaitable[Answer | Stream | Download]] | None = None
    service: str = SERVICE
    """What the request is signed for."""


class Api:
    """Answers AWS's operations and Torpor's own routes."""

    def __init__(self, control: Control, config: Config, clock: Clock) -> None:
        self._control = control
        self._clock = clock
        self._regions = frozenset(config.served_regions)
        self._home = (config.region, config.account)
        """Of calls by nobody who is known."""
        # The clients' own time: moving a simulated machine's clock must not make their signatures expire.
        self._verifier = Verifier(control.accounts.credential, SystemClock().now)
        served = all_operations().values()
        self._operations = Router((op.method, op.uri, op) for op in served if op.name in OPERATIONS)
        self._extras = Router(EXTRAS)
        self._sockets = Router(SOCKETS)
        self._answered = Answered()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self._http(scope, receive, send)
        elif scope["type"] == "websocket":
            await self._socket(scope, receive, send)
        else:
            await lifespan(receive, send)

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        request_id = new_request_id()
        route, entry = Route(), Entry(request_id)
        failure: Answer | None = None
        try:
            raw_path = scope["raw_path"].decode("latin-1")
            if raw_path == HEALTH_PATH:
                return await send_answer(send, Answer(200, b'{"ready":true}'), request_id)
            if raw_path == METRICS_PATH and scope["method"] == "GET":
                return await send_answer(send, await metrics(self._control, self._answered), request_id)
            route = self._route(scope["method"], raw_path)
            answer = await self._answer(scope, route, receive, entry)
            if isinstance(answer, Stream):
                await self._keep(entry)  # it may go on for hours
                return await send_stream(answer, receive, send, request_id)
            if isinstance(answer, Download):
                await send_download(answer, receive, send, request_id)
                return await self._keep(entry)
        except Disconnected:
            return None
        except BrokenOff:
            await self._keep(entry)
            raise
        except Exception as error:
            answer = failure = self._answer_to(error, route, request_id)
        await self._keep(entry, failure)
        return await send_answer(send, answer, request_id)

    async def _socket(self, scope: Scope, receive: Receive, send: Send) -> None:
        request_id = new_request_id()
        entry = Entry(request_id, name="RunCommand")
        socket = Socket(receive, send, lambda: self._keep(entry))
        try:
            await receive()  # websocket.connect
            found = self._sockets.find("GET", scope["raw_path"].decode("latin-1"))
            if found is None:
                raise errors.UnknownRoute
            headers = headers_of(scope["headers"])
            entry.of(scope, headers)
            entry.given = {"microvmIdentifier": found[1]["microvmId"]}
            call, request = self._verified(scope, "GET", headers, b"", entry, SERVICE)
            await found[0](Extra(call, self._clock, found[1], dict(parse_query(request.raw_query)), b""), socket)
        except SocketClosed:
            return
        except Exception as error:
            answer = self._answer_to(error, Route(), request_id)
            if socket.is_open:
                await socket.close(1011, "InternalServerException")
            else:
                await self._keep(entry, answer)
                await refuse_socket(send, answer, request_id)

    async def _keep(self, entry: Entry, failure: Answer | None = None) -> None:
        self._answered.count(entry.name, failure.status if failure is not None else 200)
        await audit.keep(self._control.audit, entry, *self._home, failure)

    def _answer_to(self, error: Exception, route: Route, request_id: str) -> Answer:
        if not isinstance(error, errors.WireError | Refused):
            _log.error("request %s failed", request_id, exc_info=error, extra={"request_id": request_id})
        return cloudwatch.answer_to(error) if route.service == LOGS else errors.answer_to(error, route.operation)

    async def _answer(self, scope: Scope, route: Route, receive: Receive,
                      entry: Entry) -> Answer | Stream | Download:
        headers = headers_of(scope["headers"])
        entry.of(scope, headers)
        is_upload = route.function in UPLOADS
        body = b"" if is_upload else await body_of(receive, headers)
        if route.operation is not None:
            entry.source, entry.name = route.operation.service, route.operation.name
        call, request = self._verified(scope, scope["method"], headers, body, entry, route.service)
        if route.service == LOGS:
            operation = cloudwatch.operation_of(headers)
            entry.source, entry.name = LOGS, operation.name
            given = cloudwatch.read(operation, headers, request.body)
            entry.given = audit.shown(operation.input, given)
            return await cloudwatch.answer(call, operation, given)
        if is_upload and headers.get("x-amz-content-sha256") != UNSIGNED:
            raise errors.Unreadable(f"A body of any length is sent with x-amz-content-sha256: {UNSIGNED}")
        if route.function is not None:
            upload: AsyncIterator[bytes] | None = pieces_of(receive) if is_upload else None
            query = dict(parse_query(request.raw_query))
            entry.of_extra(route.function.__name__, scope["method"], route.labels, query)
            return await route.function(Extra(call, self._clock, route.labels, query, request.body, upload))
        if route.operation is None:
            raise errors.UnknownRoute
        return await self._run(call, route.operation, route.labels, request, entry)

    def _route(self, method: str, raw_path: str) -> Route:
        """Raises GatewayNotFound, SlashArn, Unreadable."""
        try:
            if raw_path == "/" and method == "POST":
                return Route(service=LOGS)
            found = self._operations.find(method, raw_path)
            if found is not None:
                _refuse_slash_form(found[1])
                return Route(found[1], operation=found[0])
            extra = self._extras.find(method, raw_path)
        except UndecodablePath as error:
            raise errors.Unreadable("The path could not be read") from error
        if extra is not None:
            return Route(extra[1], function=extra[0])
        # An ARN with its slash raw is one segment too many for the front gateway, which answers a page (spec 1.3).
        if ":microvm-image/" in raw_path:
            raise errors.GatewayNotFound
        return Route()

    def _verified(self, scope: Scope, method: str, headers: dict[str, str], body: bytes,
                  entry: Entry, service: str) -> tuple[Call, Request]:
        raw_path, raw_query = scope["raw_path"].decode("latin-1"), scope["query_string"].decode("latin-1")
        request = Request(method, raw_path, raw_query, headers, body)
        verified = self._verifier.verify(request, service)
        if verified.region not in self._regions:
            raise errors.RegionNotServed
        credential = verified.credential
        caller = Caller(credential.account, verified.region, credential.principal, credential.access_key_id)
        entry.caller = caller
        if verified.body is not body:
            request = Request(method, raw_path, raw_query, headers, verified.body)
        return Call(self._control, caller, entry.request_id), request

    async def _run(self, call: Call, operation: Operation, labels: dict[str, str], request: Request,
                   entry: Entry) -> Answer:
        self._control.limits.throttle(call.caller, operation.name)
        given = parse(operation, labels, parse_query(request.raw_query), request.headers, request.body)
        entry.given = audit.shown(operation.input, given)
        validate(operation.input, given)
        members = entry.answered = await OPERATIONS[operation.name](call, given)
        return Answer(operation.status, serialize(operation, members))


def build_app(control: Control, config: Config, clock: Clock) -> Api:
    """The ASGI application; `control` must have been started before it is asked anything."""
    return Api(control, config, clock)


def _refuse_slash_form(labels: dict[str, str]) -> None:
    if any(":microvm-image/" in value for value in labels.values()):
        raise errors.SlashArn
