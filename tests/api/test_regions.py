"""The region comes from the signature's scope; each has resources of its own (spec 1.11, 10.1)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from botocore.exceptions import ClientError

from support.api_world import ACCOUNT, BASE, CODE, ROLE, ApiWorld, api_world, served
from torpor.config import Config, ConfigError, load

OTHER = "eu-west-1"


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[ApiWorld]:
    async with api_world(tmp_path, regions=[OTHER]) as made, served(made):
        yield made


async def test_the_same_name_is_another_image_in_another_region(world: ApiWorld) -> None:
    here = await world.create_image("counter")
    there = world.client("lambda-microvms", region=OTHER)
    assert (await world.boto(there.list_microvm_images))["items"] == []
    made = await world.boto(there.create_microvm_image, name="counter", baseImageArn=BASE.replace("us-east-1", OTHER),
                            buildRoleArn=ROLE, codeArtifact={"uri": CODE})
    assert made["imageArn"] == f"arn:aws:lambda:{OTHER}:{ACCOUNT}:microvm-image:counter"
    assert made["egressNetworkConnectors"] == [
        f"arn:aws:lambda:{OTHER}:aws:network-connector:aws-network-connector:INTERNET_EGRESS"]
    listed = (await world.boto(world.client("lambda-microvms").list_microvm_images))["items"]
    assert [each["imageArn"] for each in listed] == [here]


async def test_a_microvm_is_found_in_its_own_region_alone_and_its_endpoint_names_it(world: ApiWorld) -> None:
    there = world.client("lambda-microvms", region=OTHER)
    arn = await world.create_image("counter")
    made = await world.boto(world.client("lambda-microvms").run_microvm, imageIdentifier=arn)
    assert ".lambda-microvm.us-east-1.localhost" in made["endpoint"]
    with pytest.raises(ClientError) as error:
        await world.boto(there.get_microvm, microvmIdentifier=made["microvmId"])
    assert error.value.response["Error"]["Message"] == f"MicroVM not found: {made['microvmId']}"
    with pytest.raises(ClientError) as error:
        await world.boto(there.run_microvm, imageIdentifier=arn)
    assert error.value.response["ResponseMetadata"]["HTTPStatusCode"] == 404


async def test_a_region_that_is_not_configured_is_denied(world: ApiWorld) -> None:
    with pytest.raises(ClientError) as error:
        await world.boto(world.client("lambda-microvms", region="ap-south-1").list_microvms)
    response = error.value.response
    assert (response["ResponseMetadata"]["HTTPStatusCode"], response["Error"]["Code"]) == (403, "AccessDeniedException")


def test_only_the_default_region_is_served_unless_others_are_named(tmp_path: Path) -> None:
    assert Config(region="eu-north-1").served_regions == ("eu-north-1",)
    file = tmp_path / "torpor.toml"
    file.write_text('region = "us-west-2"\nregions = ["eu-west-1", "us-west-2"]\n')
    assert load(file).served_regions == ("us-west-2", "eu-west-1")


@pytest.mark.parametrize("value", ['"eu-west-1"', "[1]", '["EU"]', '["a.b"]', '[""]'])
def test_a_region_must_be_a_name(tmp_path: Path, value: str) -> None:
    file = tmp_path / "torpor.toml"
    file.write_text(f"regions = {value}\n")
    with pytest.raises(ConfigError):
        load(file)
