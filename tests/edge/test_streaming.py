"""Bodies and streams pass through without being kept (spec 5.5)."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import shutil
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import h2.connection
import h2.events
import pytest

from support.edge_world import HOST, SUFFIX, TOKEN, Pass, World, client, serving
from torpor.host.base import Upstream

MIB = 1 << 20


def resident_mib(pid: int | None) -> float:
    line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


@pytest.mark.parametrize("http2", [False, True], ids=["http/1.1", "h2"])
async def test_a_large_upload_arrives_whole_and_is_not_kept_in_memory(world: World, http2: bool) -> None:
    piece, pieces = b"\x5a" * MIB, 256
    peak = before = resident_mib(world.edge.envoy.pid)

    async def body() -> AsyncIterator[bytes]:
        nonlocal peak
        for _ in range(pieces):
            yield piece
            peak = max(peak, resident_mib(world.edge.envoy.pid))

    async with world.client(http2=http2) as http:
        answer = await http.post("/upload", content=body(), headers={"content-length": str(pieces * MIB)})
    expected = hashlib.sha256()
    for _ in range(pieces):
        expected.update(piece)
    assert answer.json()["body_bytes"] == pieces * MIB
    assert answer.json()["sha256"] == expected.hexdigest()
    assert peak - before < 24


async def test_a_held_upload_waits_outside(world: World) -> None:
    """While the VM wakes, the client's body stays with the client."""
    awake = asyncio.Event()

    async def wake() -> None:
        await awake.wait()

    world.gate.before = wake
    sent = 0

    async def body() -> AsyncIterator[bytes]:
        nonlocal sent
        for _ in range(64):
            yield b"x" * MIB
            sent += 1

    before = resident_mib(world.edge.envoy.pid)
    async with world.client() as http:
        upload = asyncio.create_task(http.post("/upload", content=body(), headers={"content-length": str(64 * MIB)}))
        while not world.edge.authorizer.held:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.5)
        assert sent < 16
        assert resident_mib(world.edge.envoy.pid) - before < 16
        awake.set()
        answer = await upload
    assert answer.json()["body_bytes"] == 64 * MIB


@pytest.mark.parametrize("http2", [False, True], ids=["http/1.1", "h2"])
async def test_events_arrive_as_they_are_sent(world: World, http2: bool) -> None:
    async with world.client(http2=http2) as http, http.stream("GET", "/sse") as answer:
        events = answer.aiter_bytes()
        assert await anext(events) == b"data: 0\n\n"
        assert not world.app.hold.is_set()
        world.app.hold.set()
        assert b"".join([part async for part in events]) == b"data: 1\n\n"


async def test_a_stream_may_be_silent_for_long(world: World) -> None:
    async with world.client(http2=True) as http, http.stream("GET", "/silent?4") as answer:
        begun = time.monotonic()
        assert b"".join([part async for part in answer.aiter_bytes()]) == b"data: 0\n\ndata: 1\n\n"
    assert time.monotonic() - begun > 8


async def test_requests_of_one_connection_do_not_wait_for_each_other(world: World) -> None:
    async with world.client(http2=True) as http, http.stream("GET", "/sse") as held:
        events = held.aiter_bytes()
        await anext(events)
        answers = await asyncio.gather(*(http.get(f"/{number}") for number in range(50)))
        assert [answer.status_code for answer in answers] == [200] * 50
        world.app.hold.set()
        assert await anext(events) == b"data: 1\n\n"


async def test_requests_of_one_connection_reach_each_the_microvm_of_its_host(world: World) -> None:
    """A client may send requests for all our hosts over one connection; the certificate is the same."""
    async with serving() as other_app:
        other = "0a1b2c3d-0000-4000-8000-000000000002"
        admit = world.gate.admit

        async def by_label(label: str, token: str | None, port: int, is_websocket: bool,
                           arrived: Callable[[str], Awaitable[None]]) -> Pass:
            if label == other:
                await asyncio.sleep(0.001)
                return Pass("microvm-2", Upstream("127.0.0.1", other_app.port))
            return await admit(label, token, port, is_websocket, arrived)

        world.gate.admit = by_label  # type: ignore[method-assign]
        async with world.client(http2=True) as http:
            hosts = [HOST, other + SUFFIX] * 100
            answers = await asyncio.gather(*(http.get(f"/{n}", headers={"host": host})
                                             for n, host in enumerate(hosts)))
    for number, (answer, host) in enumerate(zip(answers, hosts, strict=True)):
        seen = answer.json()
        assert (seen["target"], dict(seen["headers"])["host"]) == (f"/{number}", host)
        assert seen["app"] == (world.app.port if host == HOST else other_app.port)


async def test_an_application_hears_that_its_client_has_left(world: World) -> None:
    has_left = asyncio.Event()

    async def stream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\nx\r\n")
        assert await reader.read() == b""
        has_left.set()
        writer.close()

    server = await asyncio.start_server(stream, "127.0.0.1", 0)
    world.gate.upstreams[8080] = Upstream("127.0.0.1", server.sockets[0].getsockname()[1])
    async with asyncio.timeout(10):
        async with world.client() as http, http.stream("GET", "/") as answer:
            await anext(answer.aiter_bytes())
            assert not has_left.is_set()
        await has_left.wait()
        while world.edge.open_requests("microvm-1"):
            await asyncio.sleep(0.02)
    server.close()


async def test_an_early_answer_reaches_a_client_that_is_still_sending(world: World) -> None:
    async with world.client() as http:
        answer = await http.post("/upload-early", content=b"x" * 100_000)
    assert answer.status_code == 413


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
@pytest.mark.parametrize(("version", "token"), [
    ("--http1.1", TOKEN), ("--http2", TOKEN), ("--http1.1", "wrong"),  # curl 7.88 gives up on a reset after an answer
])
async def test_curl_uploads_with_expect_continue(world: World, tmp_path: Path, version: str, token: str) -> None:
    """The application says 100, not the proxy: a client without the right to send is told before it sends."""
    (tmp_path / "body").write_bytes(b"y" * 3 * MIB)
    process = await asyncio.create_subprocess_exec(
        "curl", "-sS", version, "--noproxy", "*", "--cacert", str(world.ca_file), "--max-time", "20",
        "--resolve", f"{HOST}:{world.port}:127.0.0.1", "-H", f"X-aws-proxy-auth: {token}", "-H",
        "Expect: 100-continue", "--data-binary", f"@{tmp_path / 'body'}", "-w", "|%{http_code}|%{size_upload}",
        f"https://{HOST}:{world.port}/upload", stdout=asyncio.subprocess.PIPE)
    out, _ = await process.communicate()
    _, status, uploaded = out.decode().rsplit("|", 2)
    assert (status, int(uploaded)) == (("200", 3 * MIB) if token == TOKEN else ("403", 0))


async def test_a_denial_over_h2_reaches_a_client_that_is_still_sending(world: World) -> None:
    context = ssl.create_default_context(cafile=str(world.ca_file))
    context.set_alpn_protocols(["h2"])
    reader, writer = await asyncio.open_connection("127.0.0.1", world.port, ssl=context, server_hostname=HOST)
    http = h2.connection.H2Connection()
    http.initiate_connection()
    http.send_headers(1, [(":method", "POST"), (":path", "/"), (":scheme", "https"), (":authority", HOST),
                          ("content-length", "1000000")])
    http.send_data(1, b"x" * 16_000)
    writer.write(http.data_to_send())
    seen: list[h2.events.Event] = []
    async with asyncio.timeout(10):
        while not any(isinstance(event, h2.events.StreamReset) for event in seen):
            seen += http.receive_data(await reader.read(65536))
    writer.close()
    answer = next(event for event in seen if isinstance(event, h2.events.ResponseReceived))
    assert dict(answer.headers)[b":status"] == b"403"
    body = b"".join(event.data for event in seen if isinstance(event, h2.events.DataReceived))
    assert body == b"Request missing authentication"
    assert [event.error_code for event in seen if isinstance(event, h2.events.StreamReset)] == [0]


@contextlib.asynccontextmanager
async def far_away(port: int, delay: float) -> AsyncIterator[int]:
    """A port from which every byte to and from `port` takes `delay` seconds, however many follow it."""
    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        loop, last = asyncio.get_running_loop(), None
        while data := await reader.read(1 << 16):
            last = loop.call_later(delay, writer.write, data)
        if last is not None:
            await asyncio.sleep(delay)
        writer.close()

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        relays.append(asyncio.current_task())
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            await asyncio.gather(copy(reader, far_writer), copy(far_reader, writer), return_exceptions=True)
        finally:
            for each in (writer, far_writer):
                each.transport.abort()

    relays: list[asyncio.Task[None] | None] = []
    server = await asyncio.start_server(relay, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in relays:
            assert task is not None
            task.cancel()
            await asyncio.wait([task])


async def test_an_upload_over_h2_does_not_wait_for_the_far_end_every_64_kib(world: World) -> None:
    """AWS's window of 64 KiB would need 128 round trips for these 8 MiB (spec 5.5)."""
    round_trip = 0.1
    async with far_away(world.port, round_trip / 2) as port, client(port, world.ca_file, http2=True) as http:
        assert (await http.get("/")).status_code == 200
        begun = time.monotonic()
        answer = await http.post("/upload", content=b"x" * (8 * MIB))
        took = time.monotonic() - begun
    assert answer.json()["body_bytes"] == 8 * MIB
    assert took < 64 * round_trip
