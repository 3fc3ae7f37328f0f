"""The door: what is answered before, around and instead of an operation (spec 1.1, 1.11)."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from botocore.awsrequest import AWSRequest

from support.api_wire import HOST, sent_by_botocore, signed
from support.api_world import ApiWorld, api_world, exchange, image_arn
from torpor.config import LimitSettings

SLASH_ARN = "arn:aws:lambda:us-east-1:000000000000:microvm-image/n"
IMAGES = "/2025-09-09/microvm-images"


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[ApiWorld]:
    async with api_world(tmp_path) as made:
        yield made


async def test_health_needs_no_signature(world: ApiWorld) -> None:
    status, headers, body = await exchange(world.app, "GET", "/torpor/v1/health", "", [], b"")
    assert (status, body, headers["content-type"]) == (200, b'{"ready":true}', "application/json")


async def test_every_answer_carries_a_request_id(world: ApiWorld) -> None:
    good = await world.call("ListMicrovms")
    bad = await world.call("GetMicrovm", microvmIdentifier="x")
    unsigned = await exchange(world.app, "GET", "/2025-09-09/microvms", "", [], b"")
    ids = [good.headers["x-amzn-requestid"], bad.headers["x-amzn-requestid"], unsigned[1]["x-amzn-requestid"]]
    assert len(set(ids)) == 3
    assert all(len(each) == 36 for each in ids)


async def test_a_request_without_a_signature_is_refused(world: ApiWorld) -> None:
    status, headers, body = await exchange(world.app, "GET", "/2025-09-09/microvms", "", [], b"")
    assert (status, headers["x-amzn-errortype"]) == (403, "MissingAuthenticationTokenException")
    assert body == b'{"message":"Missing Authentication Token"}'


@pytest.mark.parametrize("arn", [image_arn("n"), image_arn("n").replace(":", "%3A")])
async def test_colons_of_an_arn_may_be_raw_or_encoded(world: ApiWorld, arn: str) -> None:
    """Spec 1.3."""
    answer = await world.ask("GET", f"{IMAGES}/{arn}")
    assert (answer.status, answer.message) == (404, f"MicroVMImage not found for MicroVMImageID: {image_arn('n')}")


async def test_the_slash_form_of_an_arn_is_denied(world: ApiWorld) -> None:
    """Spec 1.3."""
    answer = await world.ask("GET", f"{IMAGES}/{SLASH_ARN.replace('/', '%2F')}")
    assert (answer.status, answer.error, answer.message) == (403, "AccessDeniedException", None)


async def test_a_raw_slash_in_an_arn_is_the_gateways_page(world: ApiWorld) -> None:
    """Spec 1.3."""
    answer = await world.ask("GET", f"{IMAGES}/{SLASH_ARN}")
    assert (answer.status, answer.headers["content-type"]) == (404, "text/html")


async def test_an_unknown_route_is_an_unknown_operation(world: ApiWorld) -> None:
    answer = await world.ask("GET", "/2025-09-09/nothing")
    assert (answer.status, answer.error) == (404, "UnknownOperationException")


async def test_an_unsupported_region_is_denied_with_a_null_message(world: ApiWorld) -> None:
    """Spec 1.11."""
    request = AWSRequest(method="GET", url=f"http://{HOST}/2025-09-09/microvms", data=b"")
    signed(request, world.keys, "mars-north-1")
    headers = [(name.lower().encode(), value.encode()) for name, value in request.headers.items()]
    status, found, body = await exchange(
        world.app, "GET", "/2025-09-09/microvms", "", [*headers, (b"host", HOST.encode())], b"")
    assert (status, found["x-amzn-errortype"], body) == (403, "AccessDeniedException", b'{"message":null}')


async def test_a_large_body_is_refused(world: ApiWorld) -> None:
    answer = await world.ask("POST", "/2025-09-09/microvms", b"x" * (6 * 1024 * 1024 + 1))
    assert (answer.status, answer.error) == (413, "RequestTooLargeException")


async def test_a_body_that_says_it_is_large_is_not_read(world: ApiWorld) -> None:
    headers = [(b"content-length", b"99999999999999999999999999")]
    status, _, _ = await exchange(world.app, "POST", "/2025-09-09/microvms", "", headers, b"")
    assert status == 413


async def test_too_many_headers_are_refused(world: ApiWorld) -> None:
    headers = [(b"x-%d" % number, b"v" * 1000) for number in range(70)]
    status, found, _ = await exchange(world.app, "GET", "/2025-09-09/microvms", "", headers, b"")
    assert (status, found["x-amzn-errortype"]) == (400, "RequestHeaderSectionTooLarge")


async def test_an_unexpected_error_is_logged_with_its_request_and_not_told(
    world: ApiWorld, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(*_: Any) -> None:
        raise RuntimeError("the secret path")

    monkeypatch.setattr(world.control.microvms, "list", broken)
    with caplog.at_level(logging.ERROR):
        answer = await world.call("ListMicrovms")
    assert (answer.status, answer.error) == (500, "InternalServerException")
    assert b"secret" not in answer.body
    assert answer.headers["x-amzn-requestid"] in caplog.text
    assert "the secret path" in caplog.text
    assert world.credential.secret not in caplog.text


async def test_a_client_that_leaves_before_its_body_gets_no_answer(world: ApiWorld) -> None:
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "raw_path": b"/2025-09-09/microvms", "query_string": b"", "headers": []}
    await world.app(scope, receive, send)
    assert sent == []


async def test_a_body_in_pieces_is_put_together(world: ApiWorld) -> None:
    request = signed(sent_by_botocore("lambda-microvms", "RunMicrovm", {"imageIdentifier": "no"}), world.keys)
    body = request.data if isinstance(request.data, bytes) else request.data.encode()
    pieces = [{"type": "http.request", "body": bytes([each]), "more_body": True} for each in body]
    pieces.append({"type": "http.request", "body": b"", "more_body": False})
    sent: list[Any] = []

    async def receive() -> Any:
        return pieces.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(name.lower().encode(), value.encode() if isinstance(value, str) else value)
               for name, value in request.headers.items()]
    await world.app({"type": "http", "method": "POST", "raw_path": b"/2025-09-09/microvms", "query_string": b"",
                     "headers": [*headers, (b"host", HOST.encode())]}, receive, send)
    assert b"Malformed ARN" in sent[1]["body"]


@pytest.mark.parametrize(("path", "status"), [("/nowhere", 404), ("/torpor/v1/microvms/microvm-1/exec", 403)])
async def test_a_websocket_is_refused_before_it_opens(world: ApiWorld, path: str, status: int) -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> dict[str, Any]:
        return {"type": "websocket.connect"}

    scope = {"type": "websocket", "raw_path": path.encode(), "query_string": b"", "headers": []}
    await world.app(scope, receive, send)
    assert [each["type"] for each in sent] == ["websocket.http.response.start", "websocket.http.response.body"]
    assert sent[0]["status"] == status


async def test_lifespan_is_answered(world: ApiWorld) -> None:
    sent: list[str] = []

    async def send(message: Any) -> None:
        sent.append(message["type"])

    messages = iter(("lifespan.startup", "lifespan.shutdown"))

    async def receive() -> dict[str, Any]:
        return {"type": next(messages)}

    await world.app({"type": "lifespan"}, receive, send)
    assert sent == ["lifespan.startup.complete", "lifespan.shutdown.complete"]


async def test_rates_are_metered_before_anything_is_parsed(tmp_path: Path) -> None:
    """Spec 10.1: AWS's rates by configuration."""
    async with api_world(tmp_path, limits=LimitSettings(preset="aws")) as world:
        answers = [await world.ask("POST", "/2025-09-09/microvms", b"garbage") for _ in range(6)]
        assert [answer.status for answer in answers] == [400] * 5 + [429]
        assert answers[-1].error == "ThrottlingException"
        assert answers[-1].headers["retry-after"] == "1"
        assert answers[-1].document == {"message": "Rate exceeded", "serviceCode": None, "quotaCode": None}


async def test_a_session_acts_with_its_token_alone(world: ApiWorld) -> None:
    session = await world.control.accounts.create_session(
        world.credential.principal, timedelta(hours=1), "s")
    with_token = replace(world, credential=session)
    assert (await with_token.call("ListMicrovms")).status == 200
    without = replace(world, credential=replace(session, session_token=None))
    assert (await without.call("ListMicrovms")).error == "UnrecognizedClientException"
