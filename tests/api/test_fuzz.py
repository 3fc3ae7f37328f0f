"""Whatever is sent: never a 5xx, always AWS's error shape. `TORPOR_FUZZ` is the number of examples of each kind."""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from botocore.awsrequest import AWSRequest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from support.api_shapes import parameters_of
from support.api_wire import HOST, sent_by_botocore, signed
from support.api_world import ApiWorld, api_world, exchange, image_arn, served
from torpor.api.extras import EXTRAS
from torpor.api.spec import Operation, Shape, all_operations

EXAMPLES = int(os.environ.get("TORPOR_FUZZ", "250"))
CODE = re.compile(r"[A-Z][A-Za-z]+")
OPERATIONS = list(all_operations().values())
ROUTES = [(op.method, op.uri) for op in OPERATIONS] + [(method, uri) for method, uri, _ in EXTRAS]
UNCHECKED = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))


@dataclass
class Fuzzed:
    """A world whose loop runs while a request is made."""

    runner: asyncio.Runner
    world: ApiWorld
    arn: str
    microvm_id: str

    def send(self, request: AWSRequest) -> None:
        status, headers, body = self.runner.run(self.world.send(request))
        check(status, headers, body)

    def exchange(self, method: str, path: str, query: str, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
        check(*self.runner.run(exchange(self.world.app, method, path, query, headers, body)))


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fuzzed]:
    stack = AsyncExitStack()

    async def start() -> tuple[ApiWorld, str, str]:
        world = await stack.enter_async_context(api_world(tmp_path_factory.mktemp("fuzz")))
        arn = await world.create_image()
        return world, arn, await world.run_microvm(arn)

    with asyncio.Runner() as runner:
        try:
            yield Fuzzed(runner, *runner.run(start()))
        finally:
            runner.run(stack.aclose())


def check(status: int, headers: dict[str, str], body: bytes) -> None:
    """A success, or an error as AWS shapes it."""
    assert 200 <= status < 500, (status, body)
    assert len(headers["x-amzn-requestid"]) == 36
    assert b"Traceback" not in body
    if status < 300 or headers["content-type"] == "text/html":
        return
    assert CODE.fullmatch(headers["x-amzn-errortype"])
    document = json.loads(body)
    assert "message" in document or "Message" in document


def placed(fuzzed: Fuzzed, given: dict[str, Any], is_real: bool) -> dict[str, Any]:
    """The members, with names of things that exist where one was drawn so."""
    real = {"imageIdentifier": fuzzed.arn, "microvmIdentifier": fuzzed.microvm_id, "imageVersion": "1.0",
            "Resource": fuzzed.arn, "Identifier": "n"}
    return {name: real.get(name, value) if is_real else value for name, value in given.items()}


@pytest.mark.parametrize("is_valid", [True, False], ids=["valid", "nearly valid"])
@UNCHECKED
@given(data=st.data())
def test_members_of_the_right_types(fuzzed: Fuzzed, is_valid: bool, data: st.DataObject) -> None:
    operation = data.draw(st.sampled_from(OPERATIONS))
    given = data.draw(parameters_of(operation.input, is_valid=is_valid))
    given = placed(fuzzed, given, data.draw(st.booleans()))
    fuzzed.send(sent_by_botocore(operation.service, operation.name, given))


TEXT = st.text(alphabet=st.characters(exclude_categories=()), max_size=40)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT | st.just("x" * 100_000) | st.just(10**400),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4), max_leaves=30)
GARBAGE = st.binary(max_size=300) | st.sampled_from([
    b"[" * 200_000, b'{"a":' * 100_000, b'{"imageIdentifier":"\xff\xfe"}', b'{"imageIdentifier":"\\ud800"}', b"\x00",
    b"\xef\xbb\xbf{}", b"NaN", b'{"maximumDurationInSeconds":1e999}', b'{"maximumDurationInSeconds":-0}', b"9" * 5000,
])


def document_for(shape: Shape) -> st.SearchStrategy[dict[str, Any]]:
    """The right names with any values."""
    members = {member.wire_name: member.shape for member in shape.members.values()}

    def any_value(inner: Shape) -> st.SearchStrategy[Any]:
        options: list[st.SearchStrategy[Any]] = [JSON]
        if inner.type == "structure":
            options.append(document_for(inner))
        if inner.element is not None:
            options.append(st.lists(any_value(inner.element), max_size=3))
        return st.one_of(options)

    return st.fixed_dictionaries({}, optional={name: any_value(inner) for name, inner in members.items()})


@UNCHECKED
@given(data=st.data())
def test_members_of_any_type(fuzzed: Fuzzed, data: st.DataObject) -> None:
    operation: Operation = data.draw(st.sampled_from([op for op in OPERATIONS if op.has_body]))
    document = data.draw(document_for(operation.input))
    body = json.dumps(document).encode()
    labels = {"imageIdentifier": fuzzed.arn, "microvmIdentifier": fuzzed.microvm_id, "imageVersion": "1.0",
              "Resource": fuzzed.arn, "Identifier": "n"}
    path = operation.uri
    for name, value in labels.items():
        path = path.replace(f"{{{name}}}", quote(value, safe=""))
    fuzzed.send(AWSRequest(method=operation.method, url=f"http://{HOST}{path}", data=body))


@UNCHECKED
@given(data=st.data())
def test_any_body_path_and_query(fuzzed: Fuzzed, data: st.DataObject) -> None:
    method, uri = data.draw(st.sampled_from(ROUTES))
    if uri.endswith("/simulated/clock"):
        return  # A clock moved by years ends everything the other examples use.
    real = st.sampled_from([fuzzed.arn, fuzzed.microvm_id, "1.0", "counter", image_arn("x"),
                            image_arn("x").replace(":x", "/x")])
    labels = st.text(min_size=1, max_size=30).map(lambda text: quote(text.encode("utf-8", "replace"), safe="")) | (
        real.map(lambda text: quote(text, safe=""))) | st.sampled_from(["%ff", "%", "%zz", "a%2Fb", "%00", "a:b"])
    path = re.sub(r"\{\w+\}", lambda _: data.draw(labels), uri)
    names = st.sampled_from(["maxResults", "nextToken", "tagKeys", "imageIdentifier", "State", "MaxItems", "Marker",
                             "after", "X-Amz-Date"])
    values = st.text(max_size=20).map(lambda text: quote(text.encode("utf-8", "replace"))) | st.sampled_from(
        ["%ff", "1", "50", "99999999999999999999", "-1", "", "%00"])
    query = "&".join(f"{name}={value}" for name, value in data.draw(st.lists(st.tuples(names, values), max_size=4)))
    request = AWSRequest(method=method, url=f"http://{HOST}{path}" + (f"?{query}" if query else ""),
                         data=data.draw(GARBAGE), headers={"content-type": data.draw(st.sampled_from(
                             ["application/json", "text/xml", "multipart/form-data", ""]))})
    fuzzed.send(request)


@UNCHECKED
@given(data=st.data())
def test_any_headers_without_a_right_signature(fuzzed: Fuzzed, data: st.DataObject) -> None:
    method = data.draw(st.sampled_from(["GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS", "BREW"]))
    path = data.draw(st.sampled_from([uri for _, uri in ROUTES]) | st.text(max_size=30).map(lambda text: f"/{text}"))
    names = st.sampled_from([b"authorization", b"x-amz-date", b"date", b"host", b"x-amz-security-token",
                             b"x-amz-content-sha256", b"content-length"]) | st.binary(min_size=1, max_size=10)
    credential = fuzzed.world.credential.access_key_id
    start = f"AWS4-HMAC-SHA256 Credential={credential}/20260101/us-east-1/lambda/aws4_request, "
    values = st.binary(max_size=60) | st.sampled_from([
        b"20260101T000000Z", b"UNSIGNED-PAYLOAD", b"STREAMING-AWS4-HMAC-SHA256-PAYLOAD",
        f"{start}SignedHeaders=host, Signature=x".encode(), f"{start}SignedHeaders=;;;, Signature=\xe9".encode()])
    headers = data.draw(st.lists(st.tuples(names, values), max_size=8))
    fuzzed.exchange(method, path, data.draw(st.text(max_size=30)), headers, data.draw(GARBAGE))


RAW = [
    b"", b"\r\n", b"GET", b"GET / HTTP/1.1\r\n", b"GET / HTTP/9.9\r\n\r\n", b"BREW / HTTP/1.1\r\nhost: x\r\n\r\n",
    b"GET /%zz HTTP/1.1\r\nhost: x\r\n\r\n", b"GET /\xff\xfe HTTP/1.1\r\nhost: x\r\n\r\n",
    b"GET http://other/2025-09-09/microvms HTTP/1.1\r\nhost: x\r\n\r\n", b"OPTIONS * HTTP/1.1\r\nhost: x\r\n\r\n",
    b"CONNECT a:1 HTTP/1.1\r\nhost: a:1\r\n\r\n", b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n",
    b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\nabc",
    b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
    b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
    b"GET / HTTP/1.1\r\nhost: x\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n",
    b"GET /torpor/v1/health HTTP/1.1\r\nhost: x\r\n\r\n" * 20,
    b"GET /2025-09-09/microvms HTTP/1.1\r\nhost: x\r\n\r\n" * 20,
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"GET / HTTP/1.1\r\n" + b"".join(b"h%d: v\r\n" % n for n in range(2000)) + b"\r\n",
    b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\nhost: x\r\n\r\n",
]


async def test_malformed_truncated_and_pipelined_http(tmp_path: Path) -> None:
    async with api_world(tmp_path) as world, served(world):
        port = int(world.url.rpartition(":")[2])
        for raw in RAW:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(raw)
            writer.write_eof()
            async with asyncio.timeout(10):
                answered = await reader.read()
            writer.close()
            statuses = [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3})", answered)]
            assert all(status < 500 for status in statuses), (raw[:60], answered[:300])
        assert (await world.boto(world.client("lambda-microvms").list_microvms))["items"] == []


async def test_pipelined_requests_are_answered_in_order(tmp_path: Path) -> None:
    async with api_world(tmp_path) as world, served(world):
        port = int(world.url.rpartition(":")[2])
        request = signed(AWSRequest("GET", f"{world.url}/2025-09-09/microvms", data=b""), world.keys)
        lines = "".join(f"{name}: {value}\r\n" for name, value in request.headers.items())
        raw = f"GET /2025-09-09/microvms HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\n{lines}\r\n".encode()
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(raw * 10)
        answered = b""
        async with asyncio.timeout(10):
            while answered.count(b'{"nextToken":null,"items":[]}') < 10:
                answered += await reader.read(65536)
        writer.close()
        assert answered.count(b"HTTP/1.1 200") == 10
