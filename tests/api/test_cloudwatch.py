"""CloudWatch Logs' wire: JSON 1.1 of one URL, `logs:` permissions on groups and streams, accounts apart."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest

from support.api_wire import HOST
from support.api_world import ACCOUNT, ApiWorld, api_world, exchange
from torpor.api.cloudwatch.operations import LOG_OPERATIONS
from torpor.api.spec import LOGS_SERVED
from torpor.model.account import PrincipalKind
from torpor.model.ids import AccountId
from torpor.model.logs import owned

GROUP = "/aws/lambda-microvms/x"
NOW = int(datetime.now(UTC).timestamp() * 1000)
ARN = f"arn:aws:logs:us-east-1:{ACCOUNT}:log-group:{GROUP}"


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[ApiWorld]:
    async with api_world(tmp_path) as made:
        for account, text in ((ACCOUNT, "mine"), ("1" * 12, "theirs")):
            group = owned(account, "us-east-1", GROUP)
            await made.control.logs.append(group, "s", [(datetime.now(UTC), "stdout", text)])
        yield made


async def call(world: ApiWorld, operation: str, *, body: bytes | None = None, **members: Any) -> tuple[int, Any]:
    request = AWSRequest(method="POST", url=f"http://{HOST}/", data=body or json.dumps(members).encode(), headers={
        "x-amz-target": f"Logs_20140328.{operation}", "content-type": "application/x-amz-json-1.1"})  # fmt: skip
    SigV4Auth(world.keys, "logs", "us-east-1").add_auth(request)
    headers = [(name.lower().encode(), str(value).encode()) for name, value in request.headers.items()]
    headers += [] if "host" in {name.decode() for name, _ in headers} else [(b"host", HOST.encode())]
    status, answered, content = await exchange(world.app, "POST", "/", "", headers, request.data)
    assert answered["content-type"] == "application/x-amz-json-1.1"
    return status, json.loads(content or b"{}")


async def user(world: ApiWorld, *allowed: tuple[str, str]) -> ApiWorld:
    statements = [{"Effect": "Allow", "Action": action, "Resource": resource} for action, resource in allowed]
    policies = {"p": {"Version": "2012-10-17", "Statement": statements}} if statements else {}
    accounts = world.control.accounts
    principal = await accounts.put_principal(AccountId(ACCOUNT), PrincipalKind.USER, "u", policies)
    return replace(world, credential=await accounts.create_key(principal.arn))


def test_what_is_read_from_the_model_is_what_is_served() -> None:
    assert set(LOG_OPERATIONS) == LOGS_SERVED


async def test_accounts_see_lines_of_their_own_alone(world: ApiWorld) -> None:
    status, found = await call(world, "FilterLogEvents", logGroupName=GROUP)
    assert (status, [each["message"] for each in found["events"]]) == (200, ["mine"])
    status, found = await call(world, "DescribeLogGroups")
    assert [each["arn"] for each in found["logGroups"]] == [f"{ARN}:*"]
    status, found = await call(world, "FilterLogEvents", logGroupIdentifier=ARN.replace(ACCOUNT, "1" * 12))
    assert (status, found["__type"]) == (400, "ResourceNotFoundException")


@pytest.mark.parametrize(("operation", "members", "resource"), [
    ("FilterLogEvents", {"logGroupName": GROUP}, f"{ARN}:*"),
    ("DescribeLogStreams", {"logGroupIdentifier": ARN}, f"{ARN}:*"),
    ("GetLogEvents", {"logGroupName": GROUP, "logStreamName": "s"}, f"{ARN}:log-stream:s"),
    ("PutLogEvents", {"logGroupName": GROUP, "logStreamName": "s", "logEvents": [{"timestamp": NOW, "message": "m"}]},
     f"{ARN}:log-stream:s"),
    ("PutRetentionPolicy", {"logGroupName": GROUP, "retentionInDays": 1}, f"{ARN}:*"),
    ("DeleteLogGroup", {"logGroupName": GROUP}, f"{ARN}:*"),
])  # fmt: skip
async def test_each_operation_needs_its_own_permission(world: ApiWorld, operation: str, members: dict[str, Any],
                                                       resource: str) -> None:  # fmt: skip
    other = await user(world, ("logs:CreateLogGroup", "*"), (f"logs:{operation}", f"{ARN}-other:*"))
    status, found = await call(other, operation, **members)
    assert (status, found["__type"]) == (400, "AccessDeniedException")
    assert f"is not authorized to perform: logs:{operation} on resource: {resource}" in found["message"]
    status, _ = await call(await user(world, (f"logs:{operation}", resource)), operation, **members)
    assert status == 200


@pytest.mark.parametrize(("operation", "body", "code"), [
    ("FilterLogEvents", b"no json", "SerializationException"),
    ("FilterLogEvents", b'{"limit":"x"}', "SerializationException"),
    ("FilterLogEvents", b'{"logGroupName":"x","limit":0}', "InvalidParameterException"),
    ("FilterLogEvents", b"{}", "InvalidParameterException"), ("PutMetricFilter", b"{}", "UnknownOperationException"),
    ("", b"{}", "UnknownOperationException"),
    ("GetLogEvents", b'{"logGroupName":"/aws/lambda-microvms/x","logStreamName":"s","nextToken":"z/1"}',
     "InvalidParameterException"),
    ("DescribeLogGroups", b'{"nextToken":"\\u00e9"}', "InvalidParameterException"),
])  # fmt: skip
async def test_what_is_wrong_has_its_code(world: ApiWorld, operation: str, body: bytes, code: str) -> None:
    status, found = await call(world, operation, body=body)
    assert (status, found["__type"]) == (400, code)
