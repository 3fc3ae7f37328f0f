"""One image's whole life through the AWS CLI, which is a program of its own (spec 1.1, 1.2, 16)."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support.world import World, eventually

AWS = Path(sys.executable).with_name("aws")
Aws = Callable[..., Any]


class Refused(Exception):
    """The CLI ended with an error; its text."""


@pytest.fixture
def aws(aws_environment: dict[str, str]) -> Aws:
    if not AWS.exists():
        pytest.skip("the AWS CLI is not installed in this environment")

    def call(*words: str) -> Any:
        whole = [str(AWS), "--output", "json", *words]
        done = subprocess.run(whole, env=aws_environment, capture_output=True, text=True, check=False, timeout=60)
        if done.returncode != 0:
            raise Refused(done.stderr)
        return json.loads(done.stdout) if done.stdout.strip() else None

    return call


def test_an_images_whole_life(world: World, aws: Aws, image_members: dict[str, str]) -> None:
    def microvms(operation: str, *words: str) -> Any:
        return aws("lambda-microvms", operation, *words)

    began = time.perf_counter()
    arn = microvms(
        "create-microvm-image", "--name", "from-the-cli", "--base-image-arn", image_members["base"],
        "--build-role-arn", image_members["role"], "--code-artifact", f"uri={image_members['code']}",
        "--tags", "team=a b")["imageArn"]
    image, version = ("--image-identifier", arn), ("--image-identifier", arn, "--image-version", "1.0")
    eventually(lambda: microvms("get-microvm-image", *image)["state"], lambda state: state == "CREATED")
    assert microvms("list-microvm-image-versions", *image)["items"][0]["imageVersion"] == "1.0"
    (build,) = microvms("list-microvm-image-builds", *version)["items"]
    found = microvms("get-microvm-image-build", *version, "--build-id", build["buildId"])
    assert found["buildState"] == "SUCCESSFUL"
    run = microvms("run-microvm", *image, "--idle-policy",
                   "maxIdleDurationSeconds=900,suspendedDurationSeconds=1800,autoResumeEnabled=true")
    microvm = ("--microvm-identifier", run["microvmId"])
    token = microvms("create-microvm-auth-token", *microvm, "--expiration-in-minutes", "5",
                     "--allowed-ports", "port=8080")["authToken"]
    with world.http(run["endpoint"], token) as http:
        assert http.get("/first").json()["path"] == "/first"
        microvms("suspend-microvm", *microvm)
        eventually(lambda: microvms("get-microvm", *microvm)["state"], lambda state: state == "SUSPENDED")
        assert http.get("/second").json()["path"] == "/second"
    assert microvms("get-microvm", *microvm)["state"] == "RUNNING"
    with pytest.raises(Refused, match=r"\(ValidationException\).*Cannot delete microvm image with running microvms\."):
        microvms("delete-microvm-image", *image)
    microvms("terminate-microvm", *microvm)
    eventually(lambda: microvms("get-microvm", *microvm)["state"], lambda state: state == "TERMINATED")
    assert microvms("delete-microvm-image", *image)["state"] == "DELETING"
    print(f"aws: {time.perf_counter() - began:.2f} s, most of it the starting of {AWS.name}")


def test_lambda_core_and_tags(aws: Aws, world: World) -> None:
    configuration = {"VpcEgressConfiguration": {
        "SubnetIds": ["subnet-1"], "SecurityGroupIds": [], "NetworkProtocol": "IPv4",
        "AssociatedComputeResourceTypes": ["MicroVm"]}}
    role = f"arn:aws:iam::{world.service.account}:role/operator"
    made = aws("lambda-core", "create-network-connector", "--name", "from-the-cli", "--operator-role", role,
               "--configuration", json.dumps(configuration))
    aws("lambda-microvms", "tag-resource", "--resource", made["Arn"], "--tags", "team=x")
    assert aws("lambda-microvms", "list-tags", "--resource", made["Arn"])["Tags"] == {"team": "x"}
    assert aws("lambda-core", "delete-network-connector", "--identifier", made["Id"])["Id"] == made["Id"]
