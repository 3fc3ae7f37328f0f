"""The endpoint as clients meet it: a real Envoy, a real application, a gate that does what the test says (spec 5)."""

from __future__ import annotations

import asyncio
import time

import httpx
import pytest

from support.edge_world import HOST, LABEL, SUFFIX, TOKEN, World, free_port
from torpor.host.base import Upstream
from torpor.model.errors import GateThrottled, GateUnavailable


@pytest.mark.parametrize("http2", [False, True], ids=["http/1.1", "h2"])
async def test_a_request_reaches_the_application_with_the_clients_own_headers_and_a_request_id(
        world: World, http2: bool) -> None:
    async with world.client(http2=http2, authorization="Bearer app", traceparent="00-1-2-03", x_request_id="mine",
                            x_forwarded_for="1.2.3.4", x_aws_proxy_anything="secret", x_torpor_inject="evil",
                            x_envoy_original_dst_host="10.0.0.1:1", x_amzn_requestid="forged") as http:
        answer = await http.get("/a//b/../c?q=%2F")
    assert answer.status_code == 200
    assert answer.http_version == ("HTTP/2" if http2 else "HTTP/1.1")
    seen = answer.json()
    headers = dict(seen["headers"])
    assert seen["target"].startswith("/a")
    request_id = headers.pop("x-amzn-requestid")
    assert len(request_id) == 36
    assert answer.headers["x-amzn-requestid"] == request_id
    assert headers == {"host": HOST, "accept": "*/*", "accept-encoding": headers["accept-encoding"],
                       "user-agent": headers["user-agent"], "authorization": "Bearer app",
                       "traceparent": "00-1-2-03", "x-request-id": "mine", "x-forwarded-for": "1.2.3.4"}
    assert dict(answer.headers) == {"server": "app/1", "date": "Thu, 01 Jan 2026 00:00:00 GMT", "x-custom": "kept",
                                    "content-type": "application/json", "x-amzn-requestid": request_id,
                                    "content-length": answer.headers["content-length"]}
    assert world.gate.asked == [(LABEL, TOKEN, 8080)]


@pytest.mark.parametrize(("token", "host", "port", "text"), [
    (None, HOST, None, "Request missing authentication"),
    ("not-a-token", HOST, None, "Request missing authentication"),
    ("a..b.c.d", HOST, None, "Token authentication failed"),
    (TOKEN, "other" + SUFFIX, None, "Token authentication failed"),
    (TOKEN, "example.com", None, "Token authentication failed"),
    (TOKEN, f"{HOST}.example.com", None, "Token authentication failed"),
    (TOKEN, HOST, "9999", "Access to port denied"),
])
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST"])
async def test_a_denial_has_its_text_and_is_not_to_be_stored(
        world: World, token: str | None, host: str, port: str | None, text: str, method: str) -> None:
    extra = {"x_aws_proxy_port": port} if port else {}
    async with world.client(token=token, host=host, **extra) as http:
        answer = await http.request(method, "/", content=b"body" if method == "POST" else None)
    assert answer.status_code == 403
    assert answer.text == ("" if method == "HEAD" else text)
    assert answer.headers["cache-control"] == "private, no-store"
    assert answer.headers.get("content-type") == (None if method == "HEAD" else "text/plain")
    assert len(answer.headers["x-amzn-requestid"]) == 36
    assert "server" not in answer.headers
    assert world.app.requests == 0


@pytest.mark.parametrize("port", ["0", "65536", "abc", "-1", "80 80", "8080,9090", "+80", "٣"])
async def test_a_port_that_is_none_is_a_bad_request(world: World, port: str) -> None:
    async with world.client() as http:
        answer = await http.get("/", headers=[(b"x-aws-proxy-port", port.encode())])
    assert answer.status_code == 400
    assert world.gate.asked == []


@pytest.mark.parametrize("host", [HOST, f"{HOST}:8443", HOST.upper()])
async def test_the_host_counts_with_and_without_a_port_and_in_any_case(world: World, host: str) -> None:
    async with world.client(host=host) as http:
        answer = await http.get("/")
    assert answer.status_code == 200
    assert dict(answer.json()["headers"])["host"] == host


async def test_what_cannot_be_delivered_is_an_empty_502(world: World) -> None:
    world.gate.upstreams[9000] = Upstream("127.0.0.1", free_port())
    async with world.client() as http:
        begun = time.monotonic()
        nobody = await http.get("/", headers={"x-aws-proxy-port": "9000"})
        assert time.monotonic() - begun < 1.0
        hung_up = await http.get("/close")

        async def unavailable() -> None:
            raise GateUnavailable("suspended and not to be woken")

        world.gate.before = unavailable
        asleep = await http.get("/")
    for answer in (nobody, hung_up, asleep):
        assert (answer.status_code, answer.content) == (502, b"")
        assert len(answer.headers["x-amzn-requestid"]) == 36


async def test_a_shell_token_on_a_plain_request_is_an_empty_502(world: World) -> None:
    world.gate.is_shell = True
    async with world.client() as http:
        answer = await http.get("/shell")
    assert (answer.status_code, answer.content) == (502, b"")
    assert world.app.requests == 0


async def test_a_request_over_the_caps_is_answered_429(world: World) -> None:
    async def full() -> None:
        raise GateThrottled

    world.gate.before = full
    async with world.client() as http:
        assert (await http.get("/")).status_code == 429


async def test_a_gate_that_breaks_is_a_500_and_nothing_passes(world: World) -> None:
    async def broken() -> None:
        raise RuntimeError("a bug")

    world.gate.before = broken
    async with world.client() as http:
        answer = await http.get("/")
    assert (answer.status_code, answer.content) == (500, b"")
    assert world.app.requests == 0


async def test_without_an_authorizer_nothing_passes(world: World) -> None:
    await world.edge.authorizer.stop()
    async with world.client() as http:
        answer = await http.get("/")
    assert answer.status_code == 500
    assert world.app.requests == 0


async def test_the_simulated_hosts_headers_reach_its_application(world: World) -> None:
    world.gate.upstreams[8080] = Upstream("127.0.0.1", world.app.port, {"x-torpor-microvm": "microvm-1"})
    async with world.client(x_torpor_microvm="microvm-of-another") as http:
        seen = dict((await http.get("/")).json()["headers"])
    assert seen["x-torpor-microvm"] == "microvm-1"


async def test_held_requests_are_delivered_when_the_gate_resolves(world: World) -> None:
    awake = asyncio.Event()

    async def wake() -> None:
        await awake.wait()

    world.gate.before = wake
    # httpx gives up on a stream that is answered before it has said the end of its body, so bodies go by HTTP/1.1.
    async with world.client(http2=True) as http2, world.client() as http1:
        requests = [asyncio.create_task(http2.get(f"/{n}")) for n in range(100)]
        requests += [asyncio.create_task(http1.post(f"/{n}", content=b"x" * 1000)) for n in range(100, 120)]
        async with asyncio.timeout(30):
            while world.edge.authorizer.held < 120:
                await asyncio.sleep(0.01)
        assert world.app.requests == 0
        awake.set()
        answers = await asyncio.gather(*requests)
    assert [answer.status_code for answer in answers] == [200] * 120
    assert {answer.json()["target"] for answer in answers} == {f"/{n}" for n in range(120)}
    assert sum(answer.json()["body_bytes"] for answer in answers) == 20_000


@pytest.mark.parametrize("http2", [False, True], ids=["http/1.1", "h2"])
async def test_a_client_that_leaves_while_held_takes_its_question_back(world: World, http2: bool) -> None:
    world.gate.before = asyncio.Event().wait
    async with world.client(http2=http2) as http:
        with pytest.raises(httpx.ReadTimeout):
            await http.get("/", timeout=httpx.Timeout(5, read=0.3))
    async with asyncio.timeout(5):
        while world.gate.cancelled == 0:
            await asyncio.sleep(0.01)
    assert world.edge.authorizer.held == 0
