"""WebSocket at the endpoint: authentication by subprotocol or headers, and who sees which subprotocol (spec 5.5)."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Sequence

import pytest
import websockets.asyncio.client
import websockets.asyncio.server
from websockets.datastructures import Headers
from websockets.exceptions import InvalidStatus
from websockets.typing import Subprotocol

from support.edge_world import HOST, TOKEN, World, serving
from torpor.host.base import Upstream

AUTHENTICATION = f"lambda-microvms.authentication.{TOKEN}"


class EchoApp:
    """Echoes frames; selects `selects` when it is offered."""

    def __init__(self, selects: str | None) -> None:
        self.port = 0
        self.seen: list[Headers] = []
        self._selects = selects

    def select(self, connection: object, offered: Sequence[Subprotocol]) -> Subprotocol | None:
        return next((name for name in offered if name == self._selects), None)

    async def serve(self, connection: websockets.asyncio.server.ServerConnection) -> None:
        assert connection.request is not None
        self.seen.append(connection.request.headers)
        async for message in connection:
            await connection.send(message)


@contextlib.asynccontextmanager
async def echoing(world: World, selects: str | None = None, port: int = 8080) -> AsyncIterator[EchoApp]:
    app = EchoApp(selects)
    async with websockets.asyncio.server.serve(app.serve, "127.0.0.1", 0, select_subprotocol=app.select,
                                               server_header=None) as server:
        app.port = server.sockets[0].getsockname()[1]
        world.gate.upstreams[port] = Upstream("127.0.0.1", app.port)
        yield app


def connect(world: World, offered: Sequence[str] | None, **headers: str) -> websockets.asyncio.client.connect:
    context = ssl.create_default_context(cafile=str(world.ca_file))
    return websockets.asyncio.client.connect(
        f"wss://{HOST}:{world.port}/socket?x=1", host="127.0.0.1", ssl=context, compression=None, proxy=None,
        subprotocols=None if offered is None else [*map(Subprotocol, offered)],
        additional_headers={name.replace("_", "-"): value for name, value in headers.items()})


@pytest.mark.parametrize(("offered", "selects", "reaches_guest", "answered"), [
    (["lambda-microvms", AUTHENTICATION], None, None, "lambda-microvms"),
    ([AUTHENTICATION, "lambda-microvms"], None, None, "lambda-microvms"),
    (["lambda-microvms", AUTHENTICATION, "lambda-microvms.port.8080"], None, None, "lambda-microvms"),
    (["lambda-microvms", AUTHENTICATION, "chat.v1"], "chat.v1", "chat.v1", "chat.v1"),
    (["lambda-microvms", AUTHENTICATION, "chat.v1"], None, "chat.v1", "lambda-microvms"),
    (["a", "lambda-microvms", AUTHENTICATION, "b"], "b", "a, b", "b"),
])
async def test_our_subprotocols_authenticate_and_end_at_the_proxy(
        world: World, offered: list[str], selects: str | None, reaches_guest: str | None, answered: str) -> None:
    async with echoing(world, selects) as app, connect(world, offered) as socket:
        assert socket.subprotocol == answered
        await socket.send("text ü")
        await socket.send(b"\x00\xff" * 40_000)
        assert await socket.recv() == "text ü"
        assert await socket.recv() == b"\x00\xff" * 40_000
    assert app.seen[0].get("Sec-WebSocket-Protocol") == reaches_guest
    assert app.seen[0]["Host"] == f"{HOST}:{world.port}"
    assert not [name for name, value in app.seen[0].raw_items() if TOKEN in value]


async def test_headers_authenticate_a_handshake_as_well(world: World) -> None:
    async with echoing(world, "chat"), connect(world, ["chat"], x_aws_proxy_auth=TOKEN) as socket:
        assert socket.subprotocol == "chat"
    async with echoing(world) as app, connect(world, None, x_aws_proxy_auth=TOKEN) as socket:
        assert socket.subprotocol is None
        await socket.send("hello")
        assert await socket.recv() == "hello"
    assert not [name for name, _ in app.seen[0].raw_items() if name.lower().startswith("x-aws-proxy")]


@pytest.mark.parametrize(("header", "subprotocol", "port"), [
    (None, None, 8080), (None, 9001, 9001), (9002, None, 9002), (9002, 9001, 9002),
])
async def test_the_port_header_comes_before_the_subprotocol_and_that_before_8080(
        world: World, header: int | None, subprotocol: int | None, port: int) -> None:
    offered = ["lambda-microvms", AUTHENTICATION, *([f"lambda-microvms.port.{subprotocol}"] if subprotocol else [])]
    extra = {"x_aws_proxy_port": str(header)} if header else {}
    async with echoing(world, port=port) as app, connect(world, offered, **extra):
        pass
    assert len(app.seen) == 1
    assert world.gate.asked[-1][2] == port


@pytest.mark.parametrize(("offered", "status"), [
    (None, 403),
    (["lambda-microvms"], 403),
    (["lambda-microvms", "lambda-microvms.authentication.a..b.c.d"], 403),
    (["lambda-microvms", AUTHENTICATION, "lambda-microvms.port.0"], 400),
    (["lambda-microvms", AUTHENTICATION, "lambda-microvms.port.99999"], 400),
    (["lambda-microvms", AUTHENTICATION, "lambda-microvms.port.7"], 403),
])
async def test_a_handshake_without_the_right_subprotocols_fails(
        world: World, offered: list[str] | None, status: int) -> None:
    async with echoing(world) as app:
        with pytest.raises(InvalidStatus) as failure:
            await connect(world, offered)
    assert failure.value.response.status_code == status
    assert app.seen == []


async def test_a_handshake_is_held_while_the_microvm_wakes(world: World) -> None:
    awake = asyncio.Event()

    async def wake() -> None:
        await awake.wait()

    world.gate.before = wake
    async with echoing(world):
        opening = asyncio.create_task(connect(world, ["lambda-microvms", AUTHENTICATION]).__aenter__())
        while not world.edge.authorizer.held:
            await asyncio.sleep(0.01)
        awake.set()
        socket = await opening
        await socket.send("awake")
        assert await socket.recv() == "awake"
        await socket.close()


async def test_subprotocols_of_a_plain_request_are_no_authentication(world: World) -> None:
    async with world.client(token=None, sec_websocket_protocol=f"lambda-microvms, {AUTHENTICATION}",
                            sec_websocket_key="a", x_torpor_upgrade="websocket") as http:
        answer = await http.get("/")
    assert (answer.status_code, answer.text) == (403, "Request missing authentication")


@pytest.mark.parametrize("request_line", ["GET / HTTP/1.1\r\nconnection: upgrade\r\nupgrade: raw-tcp",
                                          "CONNECT example.com:22 HTTP/1.1"])
async def test_tunnels_other_than_websocket_are_bad_requests(world: World, request_line: str) -> None:
    context = ssl.create_default_context(cafile=str(world.ca_file))
    async with serving():
        reader, writer = await asyncio.open_connection("127.0.0.1", world.port, ssl=context, server_hostname=HOST)
        writer.write(f"{request_line}\r\nhost: {HOST}\r\nx-aws-proxy-auth: {TOKEN}\r\n\r\n".encode())
        assert (await reader.readline()).startswith(b"HTTP/1.1 400 ")
        writer.close()
        with contextlib.suppress(ssl.SSLError, ConnectionError):
            await writer.wait_closed()
    assert world.app.requests == 0


async def test_a_socket_outlives_what_the_token_lives(world: World) -> None:
    """The token is looked at when the socket is opened, never again (spec 5.3)."""
    async with echoing(world), connect(world, ["lambda-microvms", AUTHENTICATION]) as socket:
        world.gate.upstreams.clear()
        await socket.send("still here")
        assert await socket.recv() == "still here"
    assert len(world.gate.asked) == 1
