"""Spec 1.2, 1.8, 17: the exact member sets of the recorded bodies. What only newer models have is named apart."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from support.api_world import ACCOUNT, BASE, CODE, ROLE, ApiWorld, api_world

NEWER = {"kmsKeyIdentifier"}
MICROVM = {
    "egressNetworkConnectors", "endpoint", "executionRoleArn", "idlePolicy", "imageArn", "imageVersion",
    "ingressNetworkConnectors", "maximumDurationInSeconds", "microvmId", "startedAt", "state", "stateReason",
    "terminatedAt", "terminationReasonCode"}
CREATED = {
    "additionalOsCapabilities", "baseImageArn", "baseImageVersion", "buildPhaseOverrides", "buildRoleArn",
    "codeArtifact", "cpuConfigurations", "createdAt", "description", "egressNetworkConnectors", "environmentVariables",
    "hooks", "id", "imageArn", "imageVersion", "latestActiveImageVersion", "latestFailedImageVersion", "logging",
    "name", "resources", "roleConfiguration", "state", "tags", "updatedAt"}
VERSION = (CREATED - {"id", "name", "latestActiveImageVersion", "latestFailedImageVersion", "buildPhaseOverrides",
                      "roleConfiguration"}) | {"stateReason", "status", "versionStateTimeBucket"}
BUILD = {"architecture", "buildId", "buildState", "chipset", "chipsetGeneration", "createdAt", "imageArn",
         "imageVersion", "stateReason", "terminationReasonCode"}
IMAGE = {"createdAt", "id", "imageArn", "latestActiveImageVersion", "latestFailedImageVersion", "name", "state"}


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[ApiWorld]:
    async with api_world(tmp_path) as made:
        yield made


async def body(world: ApiWorld, operation: str, service: str = "lambda-microvms", **parameters: Any) -> dict[str, Any]:
    answer = await world.call(operation, service, **parameters)
    assert answer.status < 300, answer.body
    document: dict[str, Any] = json.loads(answer.body)
    return document


async def test_run_and_get(world: ApiWorld) -> None:
    arn = await world.create_image()
    made = await body(world, "RunMicrovm", imageIdentifier=arn, runHookPayload=None)
    assert set(made) == MICROVM | NEWER
    assert made["ingressNetworkConnectors"] == [
        "arn:aws:lambda:us-east-1:aws:network-connector:aws-network-connector:HTTP_INGRESS"]
    assert made["egressNetworkConnectors"] == [
        "arn:aws:lambda:us-east-1:aws:network-connector:aws-network-connector:INTERNET_EGRESS"]
    assert [made[name] for name in ("executionRoleArn", "idlePolicy", "stateReason", "terminatedAt")] == [None] * 4
    assert (made["state"], made["maximumDurationInSeconds"]) == ("PENDING", 28800)
    assert isinstance(made["startedAt"], float)
    assert made["endpoint"].endswith(".lambda-microvm.us-east-1.localhost")
    assert made["microvmId"].removeprefix("microvm-") not in made["endpoint"]
    got = await body(world, "GetMicrovm", microvmIdentifier=made["microvmId"])
    assert set(got) == MICROVM | NEWER
    listed = await body(world, "ListMicrovms")
    assert set(listed) == {"items", "nextToken"}
    assert listed["nextToken"] is None
    assert set(listed["items"][0]) == {"microvmId", "state", "imageArn", "imageVersion", "startedAt"}


async def test_create_and_update(world: ApiWorld) -> None:
    made = await body(world, "CreateMicrovmImage", name="n", baseImageArn=BASE, buildRoleArn=ROLE,
                      codeArtifact={"uri": CODE})
    assert set(made) == CREATED | NEWER
    assert made["resources"] == [{"minimumMemoryInMiB": 2048}]
    assert made["baseImageVersion"] == "1.0"
    assert [name for name, value in sorted(made.items()) if value is None] == [
        "additionalOsCapabilities", "buildPhaseOverrides", "cpuConfigurations", "description", "environmentVariables",
        "hooks", "kmsKeyIdentifier", "latestActiveImageVersion", "latestFailedImageVersion", "logging",
        "roleConfiguration", "tags"]
    arn = made["imageArn"]
    await world.until("GetMicrovmImage", lambda found: found["state"] == "CREATED", imageIdentifier=arn)
    updated = await body(world, "UpdateMicrovmImage", imageIdentifier=arn, baseImageArn=BASE, buildRoleArn=ROLE,
                         codeArtifact={"uri": CODE})
    assert set(updated) == (CREATED - {"tags"}) | NEWER


async def test_images_versions_and_builds(world: ApiWorld) -> None:
    hooks = {"port": 9000, "microvmImageHooks": {"ready": "ENABLED", "readyTimeoutInSeconds": 60}}
    arn = await world.create_image(hooks=hooks, environmentVariables={"A": "b"})
    place = {"imageIdentifier": arn, "imageVersion": "1.0"}
    assert set(await body(world, "GetMicrovmImage", imageIdentifier=arn)) == IMAGE | {"tags", "updatedAt"}
    assert set((await body(world, "ListMicrovmImages"))["items"][0]) == IMAGE
    version = await body(world, "GetMicrovmImageVersion", **place)
    assert set(version) == VERSION | NEWER
    assert version["environmentVariables"] == {"A": "b"}
    assert version["hooks"]["microvmImageHooks"]["readyTimeoutInSeconds"] == 60
    assert version["versionStateTimeBucket"].startswith("SUCCESSFUL#")
    listed = (await body(world, "ListMicrovmImageVersions", imageIdentifier=arn))["items"][0]
    assert set(listed) == VERSION | NEWER
    assert listed["environmentVariables"] is None
    build = (await body(world, "ListMicrovmImageBuilds", **place))["items"][0]
    assert set(build) == BUILD
    assert set(await body(world, "GetMicrovmImageBuild", **place, buildId=build["buildId"])) == BUILD | {
        "snapshotBuild"}


async def test_managed_images(world: ApiWorld) -> None:
    assert set((await body(world, "ListManagedMicrovmImages"))["items"][0]) == {"createdAt", "imageArn", "updatedAt"}
    version = (await body(world, "ListManagedMicrovmImageVersions", imageIdentifier=BASE))["items"][0]
    assert set(version) == {"createdAt", "imageArn", "updatedAt", "imageVersion", "status",
                            "supportedCpuConfigurations"}


async def test_suspend_resume_and_terminate_answer_an_empty_object(world: ApiWorld) -> None:
    place = {"microvmIdentifier": await world.run_microvm(await world.create_image())}
    for operation in ("SuspendMicrovm", "ResumeMicrovm", "TerminateMicrovm"):
        assert (await world.call(operation, **place)).body == b"{}"


async def test_tags_answer_204_without_a_body(world: ApiWorld) -> None:
    arn = await world.create_image()
    for operation, members in (("TagResource", {"Tags": {"a": "b"}}), ("UntagResource", {"TagKeys": ["a"]})):
        answer = await world.call(operation, Resource=arn, **members)
        assert (answer.status, answer.body) == (204, b"")
        assert "content-type" not in answer.headers
    assert (await world.call("ListTags", Resource=arn)).body == b'{"Tags":{}}'


async def test_a_connector(world: ApiWorld) -> None:
    configuration = {"VpcEgressConfiguration": {
        "SubnetIds": ["subnet-1"], "SecurityGroupIds": ["sg-1"], "NetworkProtocol": "IPv4",
        "AssociatedComputeResourceTypes": ["MicroVm"]}}
    made = await body(world, "CreateNetworkConnector", "lambda-core", Name="n", Configuration=configuration,
                      OperatorRole=f"arn:aws:iam::{ACCOUNT}:role/operator", ClientToken="t")
    assert set(made) == {"Arn", "Id", "Name", "OperatorRole", "State", "Configuration", "Version", "VersionArn"}
    assert made["State"] == "PENDING"
    got = await world.until("GetNetworkConnector", lambda found: found["State"] == "ACTIVE", service="lambda-core",
                            Identifier="n")
    assert None not in got.document.values()
    assert got.document["StateReason"] == "Initial creation"
    listed = await body(world, "ListNetworkConnectors", "lambda-core")
    assert set(listed) == {"NetworkConnectors"}
    assert listed["NetworkConnectors"][0]["Type"] == "VPC_EGRESS"
