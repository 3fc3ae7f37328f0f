"""What passes an endpoint besides plain HTTP, the same on every engine, fresh and after a sleep (spec 5.2, 5.5)."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import grpc
import grpc.aio
import httpx
import pytest
from websockets.sync.client import connect
from websockets.typing import Subprotocol

from support.grpc_client import Stub, channel
from support.protocols import answers_http2, protocols_image
from support.world import REAL_ENGINE, Microvm, World, eventually

pytestmark = pytest.mark.timeout(300)
IDLE = {"maxIdleDurationSeconds": 900, "suspendedDurationSeconds": 3600, "autoResumeEnabled": True}
MIB = 1 << 20


@pytest.fixture
def kind(world: World, tmp_path: Path) -> str:
    """An image whose application speaks HTTP/2 and gRPC; the simulated application does so always."""
    return protocols_image(world, tmp_path)


@pytest.fixture(params=["launched", "woken"])
def vm(world: World, kind: str, request: pytest.FixtureRequest) -> Iterator[Microvm]:
    """Fresh from its launch; or asleep, so that the test's first request wakes it."""
    with world.microvm(kind, idlePolicy=IDLE) as found:
        answers_http2(found)
        if request.param == "woken":
            found.suspend()
        yield found


def ask(vm: Microvm, path: str, content: bytes = b"", **headers: str) -> httpx.Response:
    named = {"x-aws-proxy-force-h2": "true"} | {name.replace("_", "-"): value for name, value in headers.items()}
    return vm.http.post(path, content=content, headers=named)


def opened(vm: Microvm) -> grpc.aio.Channel:
    host, _, port = vm.endpoint.partition(":")
    return channel(Path(vm.world.service.ca_file), host, int(port or 443))


async def test_an_application_of_http2_is_reached_by_the_header(vm: Microvm) -> None:
    said = ask(vm, "/a/path", b"12345").json()
    assert (said["http_version"], said["path"], said["body_bytes"]) == ("2", "/a/path", 5)
    assert said["headers"]["host"].split(":")[0] == vm.endpoint.split(":")[0]


async def test_every_kind_of_grpc_call_passes(vm: Microvm) -> None:
    metadata = (("x-aws-proxy-auth", vm.token()), ("x-aws-proxy-port", "8080"))

    async def words() -> AsyncIterator[bytes]:
        for word in (b"a", b"b", b"c"):
            yield word

    async with opened(vm) as at:
        stub = Stub(at)
        call = stub.say(b"hello", metadata=metadata)
        assert await call == b"hello"
        first = int(dict(await call.trailing_metadata())["count"])
        assert first > 1  # the memory of the launch is still there
        assert [part async for part in stub.repeat(b"3 0.1", metadata=metadata)] == [b"0", b"1", b"2"]
        assert await stub.join(words(), metadata=metadata) == b"abc"
        chat = stub.chat(metadata=metadata)
        for word in (b"one", b"two"):
            await chat.write(word)
            assert await chat.read() == word
        await chat.done_writing()
        assert await chat.read() is grpc.aio.EOF
        assert int(dict(await chat.trailing_metadata())["count"]) == first + 3
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.refuse(b"not now", metadata=metadata)
        assert (refused.value.code(), refused.value.details()) == (grpc.StatusCode.FAILED_PRECONDITION, "not now")


async def test_grpc_without_a_token_is_denied_and_wakes_nobody(vm: Microvm) -> None:
    before = vm.state
    async with opened(vm) as at:
        with pytest.raises(grpc.aio.AioRpcError) as denied:
            await Stub(at).say(b"hello")
    assert denied.value.code() is grpc.StatusCode.PERMISSION_DENIED
    assert vm.state == before


async def test_a_stream_may_be_silent_for_longer_than_a_connection_is_kept(vm: Microvm) -> None:
    metadata = (("x-aws-proxy-auth", vm.token()),)
    async with opened(vm) as at:
        begun = time.monotonic()
        parts = [part async for part in Stub(at).repeat(b"2 6", metadata=metadata)]
        assert (parts, time.monotonic() - begun > 6) == ([b"0", b"1"], True)


def test_a_large_upload_over_http2_arrives_whole(vm: Microvm) -> None:
    with vm.world.http(vm.endpoint, {"X-aws-proxy-auth": vm.token()}, http2=True) as http:
        answer = http.post("/upload", content=b"x" * (4 * MIB), headers={"x-aws-proxy-force-h2": "true"})
    assert (answer.http_version, answer.json()["body_bytes"]) == ("HTTP/2", 4 * MIB)


@pytest.mark.parametrize("by", ["headers", "subprotocols"])
def test_a_websocket_wakes_a_sleeping_microvm(world: World, by: str) -> None:
    with world.microvm(idlePolicy=IDLE) as vm:
        token = vm.token()
        vm.suspend()
        headers = {"X-aws-proxy-auth": token, "X-aws-proxy-port": "8080"} if by == "headers" else {}
        offered = [*map(Subprotocol, (
            "lambda-microvms", f"lambda-microvms.authentication.{token}", "lambda-microvms.port.8080"))]
        with connect(f"wss://{vm.endpoint}/ws", ssl=world.tls, additional_headers=headers, proxy=None,
                     open_timeout=60, subprotocols=offered if by == "subprotocols" else None) as socket:
            socket.send("hello")
            assert socket.recv(20) == "hello"
            assert socket.subprotocol == ("lambda-microvms" if by == "subprotocols" else None)
        assert vm.state == "RUNNING"


@pytest.mark.parametrize("world", [REAL_ENGINE], indirect=True)
@pytest.mark.real
def test_applications_with_tls_of_their_own_are_found_out(world: World, kind: str) -> None:
    with world.microvm(kind, idlePolicy=IDLE) as vm:
        answers_http2(vm)
        for _ in range(2):
            # A customary port is asked before the first request; another one after plain text has failed, once.
            assert vm.http.get("/tls", headers={"x-aws-proxy-port": "8443"}).json()["path"] == "/tls"
            eventually(lambda: vm.http.get("/tls", headers={"x-aws-proxy-port": "9090"}).status_code,
                       lambda status: status == 200, 20)
            vm.suspend()
        # What it spoke before its sleep is remembered: no request fails.
        assert vm.http.get("/tls", headers={"x-aws-proxy-port": "9090"}).status_code == 200
