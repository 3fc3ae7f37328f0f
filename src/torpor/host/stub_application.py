"""The application of all simulated VMs: a real HTTP server on one loopback port, told apart by two request headers.

    any path             JSON: microvm_id, port, method, path, query, headers, body_bytes, count, http_version
    /values/<name>       PUT keeps the body in the VM's memory, GET gives it back
    /events?count&every  server-sent events
    /status/<code>       that status
    /exit/<code>         the application ends
    WebSocket            echo
    /torpor.Stub/…       gRPC (`stub_grpc`)

It answers HTTP/1.1, and HTTP/2 where a connection begins with that. `Faults.fail_answers` makes all of it slow or
wrong.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final, cast

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.types import Message, Receive, Scope, Send
from starlette.websockets import WebSocket, WebSocketDisconnect
from uvicorn.protocols.http.auto import AutoHTTPProtocol
from uvicorn.server import ServerState

from torpor.host.simulated_vm import SimulatedVm
from torpor.host.stub_grpc import GrpcStub
from torpor.host.stub_http2 import PREFACE, Http2
from torpor.model.clock import Clock
from torpor.model.ids import MicrovmId

MICROVM_HEADER: Final = "x-torpor-microvm"
PORT_HEADER: Final = "x-torpor-port"
_INTERNAL: Final = (MICROVM_HEADER, PORT_HEADER)
_METHODS: Final = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]

FindVm = Callable[[str], SimulatedVm | None]
"""The VM of an id if it can answer now."""
Changed = Callable[[SimulatedVm], None]
Told = Callable[[MicrovmId], Awaitable[int | None]]
"""Waits as long as the VM's application was told to; the status it was told to answer with."""
Exit = Callable[[SimulatedVm, int], Awaitable[None]]


class _EitherHttp(asyncio.Protocol):
    """Decides by its first bytes which HTTP a connection speaks, and gives it away."""

    def __init__(self, config: uvicorn.Config, server_state: ServerState, app_state: dict[str, Any],
                 _loop: asyncio.AbstractEventLoop | None = None) -> None:
        http1: Any = AutoHTTPProtocol  # chosen when it is imported
        self._http1: Callable[[], asyncio.Protocol] = lambda: cast(
            asyncio.Protocol, http1(config, server_state, app_state, _loop))
        self._http2: Callable[[], asyncio.Protocol] = lambda: Http2(config.loaded_app, server_state.connections)
        self._begin = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        assert self._transport is not None
        self._begin += data
        if len(self._begin) < len(PREFACE) and PREFACE.startswith(self._begin):
            return
        protocol: asyncio.Protocol = self._http2() if self._begin.startswith(PREFACE) else self._http1()
        self._transport.set_protocol(protocol)
        protocol.connection_made(self._transport)
        protocol.data_received(self._begin)


class StubApplication:
    """Serves every simulated VM from one listener."""

    def __init__(self, clock: Clock, find: FindVm, changed: Changed, leave: Exit,
                 told: Told) -> None:
        self._clock = clock
        self._find = find
        self._changed = changed
        self._leave = leave
        self._told = told
        self._socket: socket.socket | None = None
        self._server: uvicorn.Server | None = None
        self._routes = Starlette(routes=[
            Route("/values/{name}", self._values, methods=["GET", "PUT"]),
            Route("/events", self._events),
            Route("/status/{code:int}", self._status, methods=_METHODS),
            Route("/exit/{code:int}", self._exit, methods=_METHODS),
            Mount("/torpor.Stub", GrpcStub(self._counted)),
            WebSocketRoute("/{path:path}", self._echo_frames),
            Route("/{path:path}", self._echo, methods=_METHODS),
        ])

    @property
    def port(self) -> int:
        if self._socket is None:
            raise RuntimeError("the simulated host is not started")
        return int(self._socket.getsockname()[1])

    async def start(self) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        config = uvicorn.Config(self, http=_EitherHttp, log_config=None, log_level="critical", access_log=False,
                                lifespan="off", timeout_graceful_shutdown=0, server_header=False)
        config.load()
        self._server = uvicorn.Server(config)
        self._server.lifespan = config.lifespan_class(config)
        # Not `serve()`: that would take over the process's signals and end a tenth of a second late.
        await self._server.startup(sockets=[self._socket])

    async def stop(self) -> None:
        if self._server is not None:
            await self._server.shutdown(sockets=[] if self._socket is None else [self._socket])
        if self._socket is not None:
            self._socket.close()
        self._server = self._socket = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI: find the VM, note its traffic, and break the connection when its life ends."""
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope.get("headers", [])}
        vm = self._find(headers.get(MICROVM_HEADER, ""))
        if vm is None:
            await _refuse(scope, receive, send)
            return
        scope["vm"] = vm
        scope["port"] = int(headers.get(PORT_HEADER, "0"))
        vm.last_traffic = self._clock.now()

        async def noted_receive() -> Message:
            message = await receive()
            if message.get("body") or message.get("text") or message.get("bytes"):
                vm.last_traffic = self._clock.now()
            return message

        has_begun = False

        async def noted_send(message: Message) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)
            if message.get("body") or message.get("text") or message.get("bytes"):
                vm.last_traffic = self._clock.now()

        await _until(vm.ended, self._answer(vm, scope, noted_receive, noted_send))
        if scope["type"] == "http" and not has_begun:
            await _refuse(scope, receive, send)

    async def _answer(self, vm: SimulatedVm, scope: Scope, receive: Receive, send: Send) -> None:
        status = await self._told(vm.microvm_id) if scope["type"] == "http" else None
        if status is None:
            await self._routes(scope, receive, send)
        else:
            await Response(status_code=status)(scope, receive, send)

    def _counted(self, scope: MutableMapping[str, Any]) -> int:
        vm: SimulatedVm = scope["vm"]
        vm.memory.count += 1
        self._changed(vm)
        return vm.memory.count

    async def _echo(self, request: Request) -> Response:
        vm = _count(request)
        length = 0
        async for chunk in request.stream():
            length += len(chunk)
        self._changed(vm)
        headers = {name: value for name, value in request.headers.items() if name not in _INTERNAL}
        return JSONResponse({
            "microvm_id": vm.microvm_id, "port": request.scope["port"], "method": request.method,
            "path": request.url.path, "query": request.url.query, "headers": headers, "body_bytes": length,
            "count": vm.memory.count, "http_version": request.scope["http_version"],
        })

    async def _values(self, request: Request) -> Response:
        vm = _count(request)
        name = request.path_params["name"]
        if request.method == "PUT":
            vm.memory.values[name] = (await request.body()).decode(errors="replace")
        self._changed(vm)
        value = vm.memory.values.get(name)
        return Response(status_code=404) if value is None else Response(value, media_type="text/plain")

    async def _events(self, request: Request) -> Response:
        self._changed(_count(request))
        count = int(request.query_params.get("count", "3"))
        every = float(request.query_params.get("every", "0.05"))

        async def events() -> Any:
            for number in range(1, count + 1):
                yield f"id: {number}\ndata: event {number}\n\n"
                if number < count:
                    await asyncio.sleep(every)

        return StreamingResponse(events(), media_type="text/event-stream")

    async def _status(self, request: Request) -> Response:
        self._changed(_count(request))
        return Response(status_code=request.path_params["code"])

    async def _exit(self, request: Request) -> Response:
        await self._leave(_count(request), request.path_params["code"])
        return Response("the application ends", media_type="text/plain")

    async def _echo_frames(self, websocket: WebSocket) -> None:
        vm: SimulatedVm = websocket.scope["vm"]
        vm.memory.count += 1
        self._changed(vm)
        offered = websocket.scope.get("subprotocols") or []
        await websocket.accept(subprotocol=offered[0] if offered else None)
        try:
            while True:
                message = await websocket.receive()
                if message["type"] == "websocket.disconnect":
                    return
                if message.get("text") is not None:
                    await websocket.send_text(message["text"])
                else:
                    await websocket.send_bytes(message["bytes"])
        except WebSocketDisconnect:
            return


def _count(request: Request) -> SimulatedVm:
    vm: SimulatedVm = request.scope["vm"]
    vm.memory.count += 1
    return vm


async def _until(ended: asyncio.Event, work: Awaitable[None]) -> None:
    """Run the request until it is done or the VM's life is over, which a client sees as a broken connection."""
    working = asyncio.ensure_future(work)
    ending = asyncio.ensure_future(ended.wait())
    try:
        await asyncio.wait((working, ending), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            working.result()
    finally:
        ending.cancel()
        working.cancel()
        await asyncio.gather(working, ending, return_exceptions=True)


async def _refuse(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "http":
        await Response(status_code=502)(scope, receive, send)
    else:
        await receive()
        await send({"type": "websocket.close", "code": 1011})
