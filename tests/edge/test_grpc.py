"""gRPC through the endpoint with grpcio on both ends (spec 5.4, 5.5)."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import pytest

from support.edge_world import HOST, TOKEN, World, serving_h2c
from support.grpc_client import QUIET, Stub, channel
from torpor.edge import Caps
from torpor.host.base import Upstream

METADATA = (("x-aws-proxy-auth", TOKEN),)
SILENCE = 3.0


class Service(grpc.GenericRpcHandler):  # type: ignore[misc]  # grpcio has no types
    """A real gRPC server's side; it notes the metadata it sees."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Any]] = []

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        self.seen.append(dict(details.invocation_metadata or ()))
        method = details.method.rpartition("/")[2]
        kinds = {
            "Say": grpc.unary_unary_rpc_method_handler(self.say),
            "Refuse": grpc.unary_unary_rpc_method_handler(self.refuse),
            "Repeat": grpc.unary_stream_rpc_method_handler(self.repeat),
            "Join": grpc.stream_unary_rpc_method_handler(self.join),
            "Chat": grpc.stream_stream_rpc_method_handler(self.chat),
        }
        return kinds.get(method)

    async def say(self, message: bytes, context: Any) -> bytes:
        context.set_trailing_metadata((("said", "once"),))
        return message

    async def refuse(self, message: bytes, context: Any) -> bytes:
        await context.abort(grpc.StatusCode.FAILED_PRECONDITION, message.decode())
        return b""

    async def repeat(self, message: bytes, context: Any) -> AsyncIterator[bytes]:
        count, seconds = message.decode().split()
        for number in range(int(count)):
            if number:
                await asyncio.sleep(float(seconds))
            yield str(number).encode()

    async def join(self, messages: AsyncIterator[bytes], context: Any) -> bytes:
        return b"".join([message async for message in messages])

    async def chat(self, messages: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        async for message in messages:
            yield message.upper()


@contextlib.asynccontextmanager
async def grpc_application(compression: grpc.Compression = grpc.Compression.NoCompression) -> AsyncIterator[
        tuple[int, Service]]:
    service = Service()
    server = grpc.aio.server(handlers=(service,), options=QUIET, compression=compression)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield port, service
    finally:
        await server.stop(None)


@pytest.fixture
async def service(world: World) -> AsyncIterator[Service]:
    async with grpc_application() as (port, service):
        world.gate.upstreams[8080] = Upstream("127.0.0.1", port)
        yield service


@pytest.fixture
async def stub(world: World) -> AsyncIterator[Stub]:
    async with channel(world.ca_file, HOST, world.port) as opened:
        yield Stub(opened)


async def test_a_unary_call_passes_with_its_metadata_and_trailers(service: Service, stub: Stub) -> None:
    call = stub.say(b"hello", metadata=(*METADATA, ("traceparent", "00-1-2-3"), ("data-bin", b"\x00\xff")))
    assert await call == b"hello"
    assert ("said", "once") in list(await call.trailing_metadata())
    (seen,) = service.seen
    assert (seen["traceparent"], seen["data-bin"]) == ("00-1-2-3", b"\x00\xff")
    assert not [name for name in seen if name.startswith(("x-aws-proxy", "x-torpor", "x-envoy"))]


async def test_messages_of_a_server_stream_come_one_by_one(service: Service, stub: Stub) -> None:
    call = stub.repeat(f"3 {SILENCE / 2}".encode(), metadata=METADATA)
    begun = asyncio.get_running_loop().time()
    assert await call.read() == b"0"
    assert asyncio.get_running_loop().time() - begun < SILENCE  # long before the last one was made
    assert [await call.read() for _ in range(3)] == [b"1", b"2", grpc.aio.EOF]


async def test_a_client_stream_is_answered_when_it_ends(service: Service, stub: Stub) -> None:
    async def messages() -> AsyncIterator[bytes]:
        for number in range(100):
            yield f"{number},".encode()

    assert await stub.join(messages(), metadata=METADATA) == b"".join(f"{n},".encode() for n in range(100))


async def test_both_sides_of_a_stream_may_take_turns_and_be_silent(service: Service, stub: Stub) -> None:
    call = stub.chat(metadata=METADATA)
    for word in ("one", "two", "three"):
        await call.write(word.encode())
        assert await call.read() == word.upper().encode()
        await asyncio.sleep(SILENCE if word == "two" else 0)
    await call.done_writing()
    assert await call.read() is grpc.aio.EOF
    assert await call.code() is grpc.StatusCode.OK


async def test_a_status_of_the_application_is_passed_on(service: Service, stub: Stub) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await stub.refuse(b"not now", metadata=METADATA)
    assert (refused.value.code(), refused.value.details()) == (grpc.StatusCode.FAILED_PRECONDITION, "not now")


async def test_compressed_messages_pass_both_ways(world: World, stub: Stub) -> None:
    async with grpc_application(grpc.Compression.Gzip) as (port, _):
        world.gate.upstreams[8080] = Upstream("127.0.0.1", port)
        message = b"again and " * 100_000
        assert await stub.say(message, metadata=METADATA, compression=grpc.Compression.Gzip) == message
    async with serving_h2c() as port, world.client(http2=True, content_type="application/grpc",
                                                   grpc_encoding="gzip") as http:
        world.gate.upstreams[8080] = Upstream("127.0.0.1", port)
        answer = await http.post("/torpor.Stub/Say", content=b"\x01\x00\x00\x00\x00")
    assert dict(answer.json()["headers"])["grpc-encoding"] == "gzip"


@pytest.mark.parametrize(("metadata", "text"), [
    ((), "Request missing authentication"),
    ((("x-aws-proxy-auth", "a.b.c.d.e"),), "Token authentication failed"),
    ((*METADATA, ("x-aws-proxy-port", "9999")), "Access to port denied"),
])
async def test_grpc_clients_see_a_denial_as_permission_denied(service: Service, stub: Stub, text: str,
                                                              metadata: tuple[tuple[str, str], ...]) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as denied:
        await stub.say(b"hello", metadata=metadata)
    assert denied.value.code() is grpc.StatusCode.PERMISSION_DENIED
    assert service.seen == []


async def test_a_denial_of_grpc_is_the_bare_403_everybody_gets(world: World) -> None:
    async with world.client(http2=True, content_type="application/grpc", token=None) as http:
        answer = await http.post("/pkg.Service/Method", content=b"\x00\x00\x00\x00\x00")
    assert (answer.status_code, answer.text) == (403, "Request missing authentication")
    assert (answer.headers["content-type"], answer.headers["cache-control"]) == ("text/plain", "private, no-store")
    assert not [name for name in answer.headers if name.startswith(("grpc-", "x-torpor-"))]
    assert answer.headers["x-amzn-requestid"]


async def test_grpc_to_nobody_is_an_empty_502_and_unavailable(world: World, stub: Stub) -> None:
    world.gate.upstreams[8080] = Upstream("127.0.0.1", 9)
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await stub.say(b"hello", metadata=METADATA)
    assert failed.value.code() is grpc.StatusCode.UNAVAILABLE
    async with world.client(http2=True, content_type="application/grpc") as http:
        answer = await http.post("/pkg.Service/Method", content=b"")
    assert (answer.status_code, answer.content) == (502, b"")


async def test_grpc_over_the_caps_is_a_429_and_unavailable(world: World, service: Service, stub: Stub) -> None:
    world.edge._meter._caps_of = lambda _: Caps(1, 100)
    call = stub.chat(metadata=METADATA)
    await call.write(b"x")
    assert await call.read() == b"X"
    with pytest.raises(grpc.aio.AioRpcError) as throttled:
        await stub.say(b"hello", metadata=METADATA)
    assert throttled.value.code() is grpc.StatusCode.UNAVAILABLE
    async with world.client(http2=True, content_type="application/grpc") as http:
        answer = await http.post("/torpor.Stub/Say", content=b"")
    assert (answer.status_code, answer.text) == (429, "Too many requests")
    call.cancel()


async def test_what_an_application_calls_grpc_status_stays_its_own(world: World) -> None:
    """Trailers-only answers carry `grpc-status` among their headers: only Envoy's own are changed."""
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/grpc\r\n"
                     b"grpc-status: 5\r\ncontent-length: 0\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    world.gate.upstreams[8080] = Upstream("127.0.0.1", server.sockets[0].getsockname()[1])
    async with world.client() as http:
        answered = await http.get("/")
    assert (answered.status_code, answered.headers["grpc-status"]) == (200, "5")
    server.close()
