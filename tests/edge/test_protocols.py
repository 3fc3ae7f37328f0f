"""What the application is spoken to in: HTTP/1.1 unless it asks, or is, for something else (spec 5.2, C6)."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path

import pytest

from support.edge_world import HOST, World, serving, serving_h2c
from torpor.edge.tls_probe import TlsPorts
from torpor.host.base import Upstream


async def test_an_application_is_spoken_to_in_http2_when_the_client_says_so(world: World) -> None:
    async with serving_h2c() as port, world.client(x_aws_proxy_force_h2="true") as http:
        world.gate.upstreams[8080] = Upstream("127.0.0.1", port)
        answer = await http.post("/x", content=b"body")
    seen = dict(answer.json()["headers"])
    assert (seen[":method"], seen[":path"], seen[":authority"]) == ("POST", "/x", HOST)
    assert not [name for name in seen if name.startswith(("x-aws-proxy", "x-forwarded", "x-envoy", "edge-"))]


@pytest.mark.parametrize("content_type", ["application/grpc", "application/grpc+proto"])
async def test_grpc_is_http2_without_saying_so(world: World, content_type: str) -> None:
    async with serving_h2c() as port, world.client(http2=True, content_type=content_type, te="trailers") as http:
        world.gate.upstreams[8080] = Upstream("127.0.0.1", port)
        answer = await http.post("/pkg.Service/Method", content=b"\x00\x00\x00\x00\x00")
    seen = dict(answer.json()["headers"])
    assert (answer.headers["content-type"], seen["te"], seen["content-type"]) == ("application/grpc", "trailers",
                                                                               content_type)


async def test_an_http1_application_forced_to_http2_is_a_502(world: World) -> None:
    async with world.client(x_aws_proxy_force_h2="true") as http:
        answer = await http.get("/")
    assert (answer.status_code, answer.content) == (502, b"")


def certificate(directory: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(directory / "server.pem", directory / "server.key")
    return context


async def test_an_application_with_its_own_tls_is_found_on_a_customary_port(world: World) -> None:
    async with serving(tls=certificate(world.data_dir / "ca")) as app:
        world.edge.authorizer._tls_ports = TlsPorts(frozenset({app.port}))
        world.gate.upstreams[8443] = Upstream("127.0.0.1", app.port)
        async with world.client(x_aws_proxy_port="8443") as http:
            for number in range(3):
                answer = await http.get(f"/{number}")
                assert answer.json()["target"] == f"/{number}"
        # One of the probe, one for the requests.
        assert app.connections == 2


async def test_tls_on_any_port_is_found_after_plain_text_has_failed(world: World) -> None:
    async with serving(tls=certificate(world.data_dir / "ca")) as app:
        world.gate.upstreams[9000] = Upstream("127.0.0.1", app.port)
        async with world.client(x_aws_proxy_port="9000") as http, asyncio.timeout(10):
            assert (await http.get("/")).status_code == 502
            while (answer := await http.get("/found")).status_code == 502:
                await asyncio.sleep(0.05)
    assert answer.json()["target"] == "/found"


async def test_an_application_known_to_speak_tls_is_not_failed_again_after_a_resume(world: World) -> None:
    """A resumed microVM has a new address; what its port speaks is known from its earlier life."""
    tls = certificate(world.data_dir / "ca")
    async with serving(tls=tls, address="0.0.0.0") as app, world.client() as http, asyncio.timeout(10):
        world.gate.upstreams[8080] = Upstream("127.0.0.1", app.port)
        while (await http.get("/")).status_code == 502:
            await asyncio.sleep(0.05)
        world.gate.upstreams[8080] = Upstream("127.0.0.2", app.port)
        assert (await http.get("/resumed")).json()["target"] == "/resumed"


async def test_an_application_of_plain_text_is_asked_about_tls_at_most_once(world: World) -> None:
    async with world.client() as http:
        for _ in range(3):
            assert (await http.get("/close")).status_code == 502
            await asyncio.sleep(0.3)
        before = world.app.connections
        assert (await http.get("/")).status_code == 200
    # Three hang-ups, their retries on a new connection never, and one question.
    assert before == 4


async def test_a_customary_tls_port_may_speak_plain_text(world: World) -> None:
    world.edge.authorizer._tls_ports = TlsPorts(frozenset({world.app.port}))
    async with world.client() as http:
        assert (await http.get("/")).status_code == 200
