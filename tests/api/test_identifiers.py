"""Forms of ids, names and states (spec 1.3, 1.5, and C1, C8, C9, C14, C15, C20, C22 of spec 14)."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from enum import StrEnum
from pathlib import Path

import boto3
import pytest

from support.api_world import ApiWorld, api_world
from torpor.model.connector import ConnectorState, UpdateStatus
from torpor.model.image import BuildState, ImageState, VersionState, VersionStatus
from torpor.model.managed import ManagedStatus
from torpor.model.microvm import MicrovmState

UUID = r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[ApiWorld]:
    async with api_world(tmp_path) as made:
        yield made


async def test_ids_have_the_recorded_forms(world: ApiWorld) -> None:
    arn = await world.create_image()
    image = await world.call("GetMicrovmImage", imageIdentifier=arn)
    assert re.fullmatch(UUID, image.document["id"])
    builds = await world.call("ListMicrovmImageBuilds", imageIdentifier=arn, imageVersion="1.0")
    assert re.fullmatch(UUID, builds.document["items"][0]["buildId"])
    microvm = (await world.call("RunMicrovm", imageIdentifier=arn)).document
    assert re.fullmatch(f"microvm-{UUID}", microvm["microvmId"])
    label = microvm["endpoint"].split(".")[0]
    assert re.fullmatch(UUID, label)
    assert label not in microvm["microvmId"]
    assert "://" not in microvm["endpoint"]


async def test_the_reason_of_an_end_is_state_reason_and_nothing_is_called_termination_message(world: ApiWorld) -> None:
    microvm_id = await world.run_microvm(await world.create_image())
    await world.call("TerminateMicrovm", microvmIdentifier=microvm_id)
    ended = await world.until("GetMicrovm", lambda found: found["state"] == "TERMINATED", microvmIdentifier=microvm_id)
    assert ended.document["stateReason"] == "Success."
    assert "terminationMessage" not in ended.document


@pytest.mark.parametrize(("service", "shape", "ours"), [
    ("lambda-microvms", "MicrovmImageState", ImageState), ("lambda-microvms", "MicrovmImageVersionState", VersionState),
    ("lambda-microvms", "MicrovmImageVersionStatus", VersionStatus), ("lambda-microvms", "BuildState", BuildState),
    ("lambda-microvms", "MicrovmState", MicrovmState),
    ("lambda-microvms", "ManagedMicrovmImageVersionStatus", ManagedStatus),
    ("lambda-core", "NetworkConnectorState", ConnectorState),
    ("lambda-core", "NetworkConnectorLastUpdateStatus", UpdateStatus),
])
def test_states_are_the_models(service: str, shape: str, ours: type[StrEnum]) -> None:
    client = boto3.client(service, region_name="us-east-1", aws_access_key_id="a", aws_secret_access_key="b")
    assert {each.value for each in ours} == set(client.meta.service_model.shape_for(shape).enum)
