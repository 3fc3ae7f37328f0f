"""Spec 9.4: which action on which resource each operation needs, and the text of a denial."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from support.api_world import ACCOUNT, BASE, CODE, ROLE, ApiWorld, api_world, image_arn
from torpor.model.account import PrincipalKind
from torpor.model.ids import AccountId

ARN = image_arn("counter")
OTHER = image_arn("other")
ROLE_ARN = f"arn:aws:iam::{ACCOUNT}:role/run"
CONNECTOR = "arn:aws:lambda:us-east-1:aws:network-connector:aws-network-connector"
CREATE = {"name": "other", "baseImageArn": BASE, "buildRoleArn": ROLE, "codeArtifact": {"uri": CODE}}
UPDATE = {"imageIdentifier": ARN, "baseImageArn": BASE, "buildRoleArn": ROLE, "codeArtifact": {"uri": CODE}}
VERSION = {"imageIdentifier": ARN, "imageVersion": "1.0"}
VPC = {"VpcEgressConfiguration": {"SubnetIds": ["subnet-1"], "NetworkProtocol": "IPv4",
                                  "AssociatedComputeResourceTypes": ["MicroVm"]}}


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[ApiWorld]:
    async with api_world(tmp_path) as made:
        yield made


async def user(world: ApiWorld, *statements: dict[str, Any]) -> ApiWorld:
    """The same world for a user who may do no more than these statements allow."""
    policies = {"p": {"Version": "2012-10-17", "Statement": list(statements)}} if statements else {}
    accounts = world.control.accounts
    principal = await accounts.put_principal(AccountId(ACCOUNT), PrincipalKind.USER, "u", policies)
    return replace(world, credential=await accounts.create_key(principal.arn))


def allow(action: str | list[str], resource: str = "*") -> dict[str, Any]:
    return {"Effect": "Allow", "Action": action, "Resource": resource}


NEEDS: list[tuple[str, dict[str, Any], str, str]] = [
    ("CreateMicrovmImage", CREATE, "lambda:CreateMicrovmImage", "*"),
    ("CreateMicrovmImage", CREATE, "iam:PassRole", ROLE),
    ("CreateMicrovmImage", CREATE, "lambda:PassNetworkConnector", f"{CONNECTOR}:INTERNET_EGRESS"),
    ("UpdateMicrovmImage", UPDATE, "lambda:UpdateMicrovmImage", ARN),
    ("UpdateMicrovmImage", UPDATE, "iam:PassRole", ROLE),
    ("UpdateMicrovmImage", UPDATE, "lambda:PassNetworkConnector", f"{CONNECTOR}:INTERNET_EGRESS"),
    ("GetMicrovmImage", {"imageIdentifier": ARN}, "lambda:GetMicrovmImage", ARN),
    ("ListMicrovmImages", {}, "lambda:ListMicrovmImages", "*"),
    ("DeleteMicrovmImage", {"imageIdentifier": ARN}, "lambda:DeleteMicrovmImage", ARN),
    ("GetMicrovmImageVersion", VERSION, "lambda:GetMicrovmImageVersion", ARN),
    ("ListMicrovmImageVersions", {"imageIdentifier": ARN}, "lambda:ListMicrovmImageVersions", ARN),
    ("UpdateMicrovmImageVersion", {**VERSION, "status": "INACTIVE"}, "lambda:UpdateMicrovmImageVersion", ARN),
    ("DeleteMicrovmImageVersion", VERSION, "lambda:DeleteMicrovmImageVersion", ARN),
    ("GetMicrovmImageBuild", {**VERSION, "buildId": "b"}, "lambda:GetMicrovmImageBuild", ARN),
    ("ListMicrovmImageBuilds", VERSION, "lambda:ListMicrovmImageBuilds", ARN),
    ("ListManagedMicrovmImages", {}, "lambda:ListManagedMicrovmImages", "*"),
    ("ListManagedMicrovmImageVersions", {"imageIdentifier": BASE}, "lambda:ListManagedMicrovmImageVersions", BASE),
    ("RunMicrovm", {"imageIdentifier": ARN}, "lambda:RunMicrovm", ARN),
    ("RunMicrovm", {"imageIdentifier": ARN}, "lambda:PassNetworkConnector", f"{CONNECTOR}:HTTP_INGRESS"),
    ("RunMicrovm", {"imageIdentifier": ARN}, "lambda:PassNetworkConnector", f"{CONNECTOR}:INTERNET_EGRESS"),
    ("RunMicrovm", {"imageIdentifier": ARN, "executionRoleArn": ROLE_ARN}, "iam:PassRole", ROLE_ARN),
    ("ListMicrovms", {}, "lambda:ListMicrovms", "*"),
    ("GetMicrovm", {"microvmIdentifier": "VM"}, "lambda:GetMicrovm", ARN),
    ("SuspendMicrovm", {"microvmIdentifier": "VM"}, "lambda:SuspendMicrovm", ARN),
    ("ResumeMicrovm", {"microvmIdentifier": "VM"}, "lambda:ResumeMicrovm", ARN),
    ("TerminateMicrovm", {"microvmIdentifier": "VM"}, "lambda:TerminateMicrovm", ARN),
    ("CreateMicrovmAuthToken", {"microvmIdentifier": "VM", "expirationInMinutes": 5, "allowedPorts": [{"port": 1}]},
     "lambda:CreateMicrovmAuthToken", ARN),
    ("CreateMicrovmShellAuthToken", {"microvmIdentifier": "VM", "expirationInMinutes": 5},
     "lambda:CreateMicrovmShellAuthToken", ARN),
    ("ListTags", {"Resource": ARN}, "lambda:ListTags", ARN),
    ("TagResource", {"Resource": ARN, "Tags": {"a": "b"}}, "lambda:TagResource", ARN),
    ("UntagResource", {"Resource": ARN, "TagKeys": ["a"]}, "lambda:UntagResource", ARN),
]


@pytest.mark.parametrize(("operation", "parameters", "action", "resource"), NEEDS,
                         ids=[f"{operation} needs {action.partition(':')[2]}" for operation, _, action, _ in NEEDS])
async def test_an_operation_needs_its_action_on_its_resource_and_no_more(
    world: ApiWorld, operation: str, parameters: dict[str, Any], action: str, resource: str
) -> None:
    microvm_id = await world.run_microvm(await world.create_image())
    given = {name: microvm_id if value == "VM" else value for name, value in parameters.items()}
    needed = [allow(each, on) for op, _, each, on in NEEDS if op == operation]
    all_but_one = [each for each in needed if each != allow(action, resource)]
    denied = await (await user(world, *all_but_one)).call(operation, **given)
    assert (denied.status, denied.error) == (403, "AccessDeniedException")
    assert denied.message == (
        f"User: arn:aws:iam::{ACCOUNT}:user/u is not authorized to perform: {action} on resource: {resource} "
        f"because no identity-based policy allows the {action} action")
    allowed = await (await user(world, *needed)).call(operation, **given)
    assert allowed.error != "AccessDeniedException", allowed.body


@pytest.mark.parametrize(("operation", "parameters", "names_it"), [
    ("CreateNetworkConnector", {"Name": "m", "Configuration": VPC, "OperatorRole": ROLE, "ClientToken": "u"}, False),
    ("GetNetworkConnector", {"Identifier": "n"}, True),
    ("ListNetworkConnectors", {}, False),
    ("ListNetworkConnectorVersions", {"Identifier": "n"}, True),
    ("UpdateNetworkConnector", {"Identifier": "n"}, True),
    ("DeleteNetworkConnector", {"Identifier": "n"}, True),
])
async def test_a_connector_operation_needs_its_action_on_the_connector(
    world: ApiWorld, operation: str, parameters: dict[str, Any], names_it: bool
) -> None:
    made = await world.call("CreateNetworkConnector", "lambda-core", Name="n", Configuration=VPC, OperatorRole=ROLE,
                            ClientToken="t")
    assert made.status == 202, made.body
    resource = made.parsed["Arn"] if names_it else "*"
    denied = await (await user(world, allow("iam:PassRole"))).call(operation, "lambda-core", **parameters)
    assert (denied.status, denied.error) == (403, "AccessDeniedException")
    assert f"lambda:{operation} on resource: {resource} " in denied.document["Message"]
    allowed = await (await user(world, allow("iam:PassRole"), allow(f"lambda:{operation}", resource))).call(
        operation, "lambda-core", **parameters)
    assert allowed.error != "AccessDeniedException", allowed.body


async def test_another_accounts_image_is_denied(world: ApiWorld) -> None:
    foreign = ARN.replace(ACCOUNT, "111111111111")
    answer = await world.call("GetMicrovmImage", imageIdentifier=foreign)
    assert (answer.status, answer.error) == (403, "AccessDeniedException")


async def test_torpors_own_routes_need_their_own_actions(world: ApiWorld) -> None:
    nobody = await user(world)
    for method, path in (("GET", "limits"), ("GET", "stats"), ("GET", "microvms"), ("DELETE", "simulated/faults"),
                         ("GET", "images/counter/versions/1.0/logs")):
        assert (await nobody.ask(method, f"/torpor/v1/{path}")).error == "AccessDeniedException"
    somebody = await user(world, allow("torpor:*"))
    assert (await somebody.ask("GET", "/torpor/v1/limits")).status == 200
