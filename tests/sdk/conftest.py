"""A simulated service with an artifact, and the environment by which AWS's own tools reach it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.world import World, application_zip, running_world


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with running_world("simulated", tmp_path_factory.mktemp("sdk")) as found:
        yield found


@pytest.fixture(scope="session")
def code_uri(world: World) -> str:
    return world.upload(application_zip())


@pytest.fixture
def aws_environment(world: World, tmp_path: Path) -> dict[str, str]:
    """What `torpor env` prints, and nothing of the developer's own AWS settings."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("AWS_") and "proxy" not in name}
    service = world.service
    return kept | {
        "HOME": str(tmp_path),
        "AWS_ENDPOINT_URL_LAMBDA_MICROVMS": service.api_url,
        "AWS_ENDPOINT_URL_LAMBDA_CORE": service.api_url,
        "AWS_ENDPOINT_URL_CLOUDWATCH_LOGS": service.api_url,
        "AWS_ENDPOINT_URL_S3": service.s3_url,
        "AWS_ACCESS_KEY_ID": service.access_key_id,
        "AWS_SECRET_ACCESS_KEY": service.secret_access_key,
        "AWS_REGION": service.region,
        "AWS_DEFAULT_REGION": service.region,
        "AWS_EC2_METADATA_DISABLED": "true",
    }


@pytest.fixture
def image_members(world: World, code_uri: str) -> dict[str, str]:
    """Of an image: base, role and code."""
    return {
        "base": f"arn:aws:lambda:{world.service.region}:aws:microvm-image:al2023-1",
        "role": f"arn:aws:iam::{world.service.account}:role/build",
        "code": code_uri,
    }
