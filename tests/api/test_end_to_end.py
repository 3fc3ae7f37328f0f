"""An unmodified boto3 against the API on the real `control` and a simulated machine (spec 1.2, 16, 17)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from support.api_world import ACCOUNT, BASE, CODE, ROLE, ApiWorld, api_world, image_arn, served


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[ApiWorld]:
    async with api_world(tmp_path) as made, served(made):
        yield made


async def refused(world: ApiWorld, call: Any, **parameters: Any) -> tuple[int, str, str]:
    with pytest.raises(ClientError) as error:
        await world.boto(call, **parameters)
    response = error.value.response
    return (response["ResponseMetadata"]["HTTPStatusCode"], response["Error"]["Code"], response["Error"]["Message"])


async def test_the_main_job_from_image_to_delete(world: ApiWorld) -> None:
    client = world.client("lambda-microvms")
    created = await world.boto(client.create_microvm_image, name="counter", baseImageArn=BASE, buildRoleArn=ROLE,
                               codeArtifact={"uri": CODE}, tags={"team": "a b"}, environmentVariables={"K": "v"})
    arn = created["imageArn"]
    assert created["ResponseMetadata"]["HTTPStatusCode"] == 201
    assert (arn, created["state"], created["imageVersion"]) == (image_arn("counter"), "CREATING", "1.0")
    await world.until("GetMicrovmImage", lambda found: found["state"] == "CREATED", imageIdentifier=arn)
    version = await world.boto(client.get_microvm_image_version, imageIdentifier=arn, imageVersion="1.0")
    assert (version["state"], version["status"]) == ("SUCCESSFUL", "ACTIVE")
    assert version["environmentVariables"] == {"K": "v"}
    builds = (await world.boto(client.list_microvm_image_builds, imageIdentifier=arn, imageVersion="1.0"))["items"]
    build = await world.boto(client.get_microvm_image_build, imageIdentifier=arn, imageVersion="1.0",
                             buildId=builds[0]["buildId"])
    assert set(build["snapshotBuild"]) == {
        "memorySnapshotSizeInBytes", "codeInstallSizeInBytes", "diskSnapshotSizeInBytes"}

    made = await world.boto(client.run_microvm, imageIdentifier=arn, idlePolicy={
        "maxIdleDurationSeconds": 900, "suspendedDurationSeconds": 1800, "autoResumeEnabled": True})
    microvm_id = made["microvmId"]
    assert (made["state"], made["imageVersion"], made["maximumDurationInSeconds"]) == ("PENDING", "1.0", 28800)
    await world.until("GetMicrovm", lambda found: found["state"] == "RUNNING", microvmIdentifier=microvm_id)
    token = await world.boto(client.create_microvm_auth_token, microvmIdentifier=microvm_id, expirationInMinutes=5,
                             allowedPorts=[{"port": 8080}, {"range": {"startPort": 9000, "endPort": 9010}}])
    assert token["authToken"]["X-aws-proxy-auth"].count(".") == 4
    await world.boto(client.suspend_microvm, microvmIdentifier=microvm_id)
    await world.until("GetMicrovm", lambda found: found["state"] == "SUSPENDED", microvmIdentifier=microvm_id)
    await world.boto(client.resume_microvm, microvmIdentifier=microvm_id)
    await world.until("GetMicrovm", lambda found: found["state"] == "RUNNING", microvmIdentifier=microvm_id)
    assert [each["microvmId"] for each in (await world.boto(client.list_microvms, imageIdentifier=arn))["items"]] == [
        microvm_id]
    assert (await refused(world, client.delete_microvm_image, imageIdentifier=arn))[:2] == (400, "ValidationException")
    await world.boto(client.terminate_microvm, microvmIdentifier=microvm_id)
    ended = await world.until("GetMicrovm", lambda found: found["state"] == "TERMINATED", microvmIdentifier=microvm_id)
    assert ended.parsed["stateReason"] == "Success."
    deleted = await world.boto(client.delete_microvm_image, imageIdentifier=arn)
    assert (deleted["imageIdentifier"], deleted["state"]) == (arn, "DELETING")


async def test_an_update_replaces_everything_and_a_version_can_be_switched_off(world: ApiWorld) -> None:
    """Spec 1.11, 2.1, 2.9."""
    client = world.client("lambda-microvms")
    arn = await world.create_image(environmentVariables={"K": "v"}, description="first")
    updated = await world.boto(client.update_microvm_image, imageIdentifier=arn, baseImageArn=BASE, buildRoleArn=ROLE,
                               codeArtifact={"uri": CODE})
    assert (updated["state"], updated["imageVersion"]) == ("UPDATING", "2.0")
    assert updated["latestActiveImageVersion"] == "1.0"
    assert "description" not in updated
    assert await refused(world, client.update_microvm_image_version, imageIdentifier=arn, imageVersion="1.0",
                         status="INACTIVE") == (
        409, "ConflictException", "MicroVM Image is already in state: UPDATING")
    await world.until("GetMicrovmImage", lambda found: found["state"] == "UPDATED", imageIdentifier=arn)
    changed = await world.boto(client.update_microvm_image_version, imageIdentifier=arn, imageVersion="1.0",
                               status="INACTIVE")
    assert (changed["status"], changed["state"]) == ("INACTIVE", "SUCCESSFUL")
    assert await refused(world, client.run_microvm, imageIdentifier=arn, imageVersion="1.0") == (
        404, "ResourceNotFoundException", f"No active version found for MicroVM image {arn} and version 1.0")
    versions = (await world.boto(client.list_microvm_image_versions, imageIdentifier=arn))["items"]
    assert {each["imageVersion"] for each in versions} == {"1.0", "2.0"}
    assert all("environmentVariables" not in each for each in versions)
    deleted = await world.boto(client.delete_microvm_image_version, imageIdentifier=arn, imageVersion="1.0")
    assert (deleted["imageVersion"], deleted["state"]) == ("1.0", "DELETING")


async def test_managed_images_are_listed(world: ApiWorld) -> None:
    client = world.client("lambda-microvms")
    images = (await world.boto(client.list_managed_microvm_images))["items"]
    assert [each["imageArn"] for each in images] == [BASE]
    versions = (await world.boto(client.list_managed_microvm_image_versions, imageIdentifier=BASE))["items"]
    assert {each["status"] for each in versions} == {"AVAILABLE"}
    assert all(each["imageVersion"].isdecimal() for each in versions)


async def test_tags_are_merged_and_removed(world: ApiWorld) -> None:
    """Spec 1.2, 9.3."""
    client = world.client("lambda-microvms")
    arn = await world.create_image()
    assert (await world.boto(client.list_tags, Resource=arn))["Tags"] == {}
    await world.boto(client.tag_resource, Resource=arn, Tags={"a": "1", "b c": "ü"})
    answer = await world.boto(client.tag_resource, Resource=arn, Tags={"a": "2"})
    assert answer["ResponseMetadata"]["HTTPStatusCode"] == 204
    assert (await world.boto(client.list_tags, Resource=arn))["Tags"] == {"a": "2", "b c": "ü"}
    await world.boto(client.untag_resource, Resource=arn, TagKeys=["a", "b c"])
    assert (await world.boto(client.list_tags, Resource=arn))["Tags"] == {}
    missing = image_arn("missing")
    assert await refused(world, client.list_tags, Resource=missing) == (
        404, "ResourceNotFoundException", f"MicroVMImage not found for MicroVMImageID: {missing}")


async def test_a_connector_lives_through_lambda_core(world: ApiWorld) -> None:
    """Spec 8.2."""
    client = world.client("lambda-core")
    configuration = {"VpcEgressConfiguration": {
        "SubnetIds": ["subnet-1"], "SecurityGroupIds": ["sg-1"], "NetworkProtocol": "IPv4",
        "AssociatedComputeResourceTypes": ["MicroVm"]}}
    created = await world.boto(client.create_network_connector, Name="n", Configuration=configuration,
                               OperatorRole=f"arn:aws:iam::{ACCOUNT}:role/operator")
    assert created["ResponseMetadata"]["HTTPStatusCode"] == 202
    assert created["Configuration"] == configuration
    assert created["Arn"].rpartition(":")[2] == created["Id"]
    found = await world.boto(client.get_network_connector, Identifier="n")
    assert found["Id"] == created["Id"]
    assert [each["Type"] for each in (await world.boto(client.list_network_connectors))["NetworkConnectors"]] == [
        "VPC_EGRESS"]
    versions = await world.boto(client.list_network_connector_versions, Identifier=created["Arn"])
    assert [each["Version"] for each in versions["NetworkConnectorVersions"]] == [1]
    missing = f"arn:aws:lambda:us-east-1:{ACCOUNT}:network-connector:nc-00000000-0000-0000-0000-000000000000"
    assert await refused(world, client.get_network_connector, Identifier=missing) == (
        404, "ResourceNotFoundException", f"Network connector not found for: {missing}")
    await world.until("GetNetworkConnector", lambda found: found["State"] == "ACTIVE", service="lambda-core",
                      Identifier="n")
    updated = await world.boto(client.update_network_connector, Identifier="n", Configuration=configuration)
    assert (updated["LastUpdateStatus"], updated["LastUpdateStatusReason"]) == (
        "Successful", "No configuration changes detected")
    await world.boto(world.client("lambda-microvms").tag_resource, Resource=created["Arn"], Tags={"a": "1"})
    deleted = await world.boto(client.delete_network_connector, Identifier="n")
    assert (deleted["Id"], deleted["ResponseMetadata"]["HTTPStatusCode"]) == (created["Id"], 202)


async def test_every_paginator_walks_to_the_end(world: ApiWorld) -> None:
    client = world.client("lambda-microvms")
    for number in range(5):
        await world.create_image(f"image-{number}")

    def names() -> list[str]:
        pages = client.get_paginator("list_microvm_images").paginate(PaginationConfig={"PageSize": 2})
        return [image["name"] for page in pages for image in page["items"]]

    assert sorted(await world.boto(names)) == [f"image-{number}" for number in range(5)]
    for name in ("list_microvms", "list_managed_microvm_images"):
        def walk(name: str = name) -> Any:
            return list(client.get_paginator(name).paginate(PaginationConfig={"PageSize": 1}))

        assert await world.boto(walk)


async def test_wrong_keys_are_refused_as_aws_does(world: ApiWorld) -> None:
    """Spec 1.11."""
    unknown = world.client("lambda-microvms", access_key_id="AKIDUNKNOWN")
    assert await refused(world, unknown.list_microvms) == (
        403, "UnrecognizedClientException", "The security token included in the request is invalid.")
    wrong = world.client("lambda-microvms", secret="wrong")
    assert (await refused(world, wrong.list_microvms))[:2] == (403, "InvalidSignatureException")
    elsewhere = world.client("lambda-microvms", region="eu-central-1")
    assert (await refused(world, elsewhere.list_microvms))[:2] == (403, "AccessDeniedException")


@pytest.mark.parametrize(("call", "parameters", "expected"), [
    ("get_microvm", {"microvmIdentifier": "microvm-x"},
     (404, "ResourceNotFoundException", "MicroVM not found: microvm-x")),
    ("get_microvm_image", {"imageIdentifier": image_arn("no")},
     (404, "ResourceNotFoundException", f"MicroVMImage not found for MicroVMImageID: {image_arn('no')}")),
    ("get_microvm_image", {"imageIdentifier": "no"}, (400, "ValidationException", "Invalid ARN format: no")),
    ("run_microvm", {"imageIdentifier": "no"},
     (400, "ValidationException", "Malformed ARN - doesn't start with 'arn:'")),
    ("run_microvm", {"imageIdentifier": image_arn("no")},
     (404, "ResourceNotFoundException", f"No active version found for MicroVM image {image_arn('no')}")),
    ("list_microvms", {"nextToken": "garbled"}, (400, "ValidationException", "")),
])
async def test_recorded_refusals(world: ApiWorld, call: str, parameters: dict[str, Any],
                                 expected: tuple[int, str, str]) -> None:
    """Spec 1.3, 1.8, 1.11."""
    client = world.client("lambda-microvms")
    status, code, message = await refused(world, getattr(client, call), **parameters)
    assert (status, code, message or "") == expected
