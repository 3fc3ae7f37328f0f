"""Every call leaves a record of who did what, refused ones too, and no secret in it (spec 9.2)."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from support.api_world import ApiWorld, api_world, exchange
from torpor.control.audit import Wanted

ACCOUNT = "000000000000"


async def records(world: ApiWorld, count: int, **wanted: Any) -> list[dict[str, Any]]:
    """The newest, once there are so many."""
    async with asyncio.timeout(10):
        while True:
            found, _ = await world.control.audit.lookup(Wanted(ACCOUNT, **wanted), None, 1000)
            if len(found) >= count:
                return found
            await asyncio.sleep(0.01)


async def unsigned(world: ApiWorld, path: str) -> int:
    status, _, _ = await exchange(world.app, "GET", path, "", [(b"host", b"localhost")], b"")
    return status


@pytest.fixture
async def world(tmp_path: Path) -> Any:
    async with api_world(tmp_path) as found:
        yield found


async def test_a_call_is_recorded_as_cloudtrail_shapes_it(world: ApiWorld) -> None:
    await world.ask("GET", "/2025-09-09/microvms/microvm-none")
    (found,) = await records(world, 1)
    assert found["eventSource"] == "lambda.amazonaws.com"
    assert (found["eventName"], found["readOnly"], found["managementEvent"]) == ("GetMicrovm", True, True)
    assert found["userIdentity"]["arn"] == f"arn:aws:iam::{ACCOUNT}:root"
    assert found["userIdentity"]["type"] == "Root"
    assert found["requestParameters"] == {"microvmIdentifier": "microvm-none"}
    assert (found["errorCode"], found["errorMessage"]) == (
        "ResourceNotFoundException", "MicroVM not found: microvm-none")  # fmt: skip
    assert {"eventVersion", "eventTime", "awsRegion", "requestID", "eventID", "eventType", "eventCategory",
            "recipientAccountId", "sourceIPAddress", "userAgent"} <= found.keys()  # fmt: skip


async def test_nobody_known_and_calls_that_are_none_are_recorded_too(world: ApiWorld) -> None:
    await unsigned(world, "/2025-09-09/microvms")
    await world.ask("GET", "/2025-09-09/nowhere")
    unknown, nobody = await records(world, 2)
    assert (nobody["userIdentity"], nobody["eventName"]) == ({"type": "Unknown"}, "ListMicrovms")
    assert nobody["errorCode"] == "MissingAuthenticationTokenException"
    assert unknown["errorCode"] == "UnknownOperationException"


async def test_secrets_and_payloads_are_hidden(world: ApiWorld) -> None:
    secret = "the-secret-of-this-test"
    body = json.dumps({"imageIdentifier": f"arn:aws:lambda:us-east-1:{ACCOUNT}:microvm-image:x",
                       "runHookPayload": secret}).encode()  # fmt: skip
    await world.ask("POST", "/2025-09-09/microvms", body)
    await world.ask("POST", "/2025-09-09/microvm-images", json.dumps({
        "name": "x", "environmentVariables": {"A": secret}}).encode())  # fmt: skip
    found = await records(world, 2)
    assert secret not in json.dumps(found)
    run = next(each for each in found if each["eventName"] == "RunMicrovm")
    assert run["requestParameters"]["runHookPayload"] == "HIDDEN_DUE_TO_SECURITY_REASONS"
    assert run["requestParameters"]["microvmImageArn"].endswith(":x")
    assert (run["readOnly"], run["eventCategory"]) == (False, "Data")


async def test_records_are_looked_up_over_the_api_by_who_may(world: ApiWorld) -> None:
    for _ in range(3):
        await world.ask("GET", "/2025-09-09/microvms")
    await records(world, 3)
    answer = await world.ask("GET", "/torpor/v1/audit?maxResults=2&eventName=ListMicrovms")
    page = json.loads(answer.body)
    assert [each["eventName"] for each in page["items"]] == ["ListMicrovms"] * 2
    assert page["nextToken"]
    assert (await world.ask("GET", "/torpor/v1/audit?maxResults=0")).status == 400
    assert (await world.ask("GET", "/torpor/v1/audit?nextToken=%21")).status == 400
    assert await unsigned(world, "/torpor/v1/audit") == 403
