"""One image's whole life through boto3 (spec 1.2, 1.6, 5, 16)."""

from __future__ import annotations

import time
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError

from support.world import World, eventually


def test_an_images_whole_life(world: World, aws_environment: dict[str, str], image_members: dict[str, str],
                              monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    for name, value in aws_environment.items():
        monkeypatch.setenv(name, value)
    client = boto3.client("lambda-microvms")  # the endpoint comes from the environment alone
    began = time.perf_counter()
    arn = client.create_microvm_image(
        name="from-boto3", baseImageArn=image_members["base"], buildRoleArn=image_members["role"],
        codeArtifact={"uri": image_members["code"]}, tags={"team": "a b"})["imageArn"]
    eventually(lambda: client.get_microvm_image(imageIdentifier=arn)["state"], lambda state: state == "CREATED")
    version = {"imageIdentifier": arn, "imageVersion": "1.0"}
    versions = client.list_microvm_image_versions(imageIdentifier=arn)["items"]
    assert [each["imageVersion"] for each in versions] == ["1.0"]
    assert client.get_microvm_image_version(**version)["status"] == "ACTIVE"
    (build,) = client.list_microvm_image_builds(**version)["items"]
    assert client.get_microvm_image_build(**version, buildId=build["buildId"])["buildState"] == "SUCCESSFUL"
    run = client.run_microvm(imageIdentifier=arn, idlePolicy={
        "maxIdleDurationSeconds": 900, "suspendedDurationSeconds": 1800, "autoResumeEnabled": True})
    microvm = {"microvmIdentifier": run["microvmId"]}
    token = client.create_microvm_auth_token(**microvm, expirationInMinutes=5, allowedPorts=[{"port": 8080}])
    with world.http(run["endpoint"], token["authToken"]) as http:
        assert http.get("/first").json()["path"] == "/first"
        client.suspend_microvm(**microvm)
        eventually(lambda: client.get_microvm(**microvm)["state"], lambda state: state == "SUSPENDED")
        assert http.get("/second").json()["path"] == "/second"
    assert client.get_microvm(**microvm)["state"] == "RUNNING"
    client.terminate_microvm(**microvm)
    ended = eventually(lambda: client.get_microvm(**microvm), lambda found: found["state"] == "TERMINATED")
    assert ended["stateReason"] == "Success."
    assert client.delete_microvm_image(imageIdentifier=arn)["state"] == "DELETING"
    eventually(lambda: _is_gone(client, arn), bool)
    print(f"boto3: {time.perf_counter() - began:.2f} s")


def test_an_eight_hour_life_passes_in_a_moment(world: World) -> None:
    """Spec 4.1: by `/torpor/v1/simulated/clock`, over HTTP."""
    began = time.perf_counter()
    run = world.client.run_microvm(imageIdentifier=world.image("plain"))
    microvm = {"microvmIdentifier": run["microvmId"]}
    eventually(lambda: world.client.get_microvm(**microvm)["state"], lambda state: state == "RUNNING")
    world.pass_time(8 * 3600 + 1)
    ended = eventually(lambda: world.client.get_microvm(**microvm), lambda found: found["state"] == "TERMINATED")
    life = (ended["terminatedAt"] - ended["startedAt"]).total_seconds()
    assert 8 * 3600 <= life < 8 * 3600 + 5
    assert "maximum duration" in ended["stateReason"]
    print(f"eight hours: {time.perf_counter() - began:.2f} s")


def _is_gone(client: Any, arn: str) -> bool:
    try:
        client.get_microvm_image(imageIdentifier=arn)
    except ClientError as error:
        return bool(error.response["Error"]["Code"] == "ResourceNotFoundException")
    return False
