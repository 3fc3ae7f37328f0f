"""Tags of images and connectors (spec 1.2, 9.3)."""

from __future__ import annotations

import pytest

from support.catalogue_world import ACCOUNT, CALLER, OTHER, REGION, REQUEST, World, image_arn, world_fixture
from torpor.model.errors import Denied, InvalidParameter, NotFound

CONNECTOR = {
    "Name": "private", "ClientToken": "t", "OperatorRole": f"arn:aws:iam::{ACCOUNT}:role/r",
    "Configuration": {"VpcEgressConfiguration": {
        "SubnetIds": ["subnet-1"], "NetworkProtocol": "IPv4", "AssociatedComputeResourceTypes": ["MicroVm"],
    }},
}  # fmt: skip

world = world_fixture()


@pytest.mark.parametrize("kind", ["image", "connector"])
async def test_tags_are_merged_listed_and_taken_away(world: World, kind: str) -> None:
    """Spec 1.2: Tag merges; `{"Tags":{}}` when none."""
    tags = world.catalogue.tags
    if kind == "image":
        arn = (await world.catalogue.images.create(CALLER, "app", REQUEST, {}))[0].arn
    else:
        arn = (await world.catalogue.connectors.create(CALLER, CONNECTOR)).arn
    assert await tags.list(CALLER, arn) == {}
    await tags.add(CALLER, arn, {"team": "a", "cost": "1"})
    await tags.add(CALLER, arn, {"team": "b", "empty": ""})
    assert await tags.list(CALLER, arn) == {"team": "b", "cost": "1", "empty": ""}
    await tags.remove(CALLER, arn, ["cost", "not there"])
    assert await tags.list(CALLER, arn) == {"team": "b", "empty": ""}
    await world.restart()
    assert await world.catalogue.tags.list(CALLER, arn) == {"team": "b", "empty": ""}


async def test_tags_given_at_creation_are_on_the_image(world: World) -> None:
    """Spec 9.3."""
    await world.catalogue.images.create(CALLER, "app", REQUEST, {"team": "a"})
    await world.rested(image_arn("app"))
    assert (await world.catalogue.images.get(CALLER, image_arn("app"))).tags == {"team": "a"}
    await world.catalogue.tags.add(CALLER, image_arn("app"), {"team": "b"})
    assert (await world.catalogue.images.get(CALLER, image_arn("app"))).tags == {"team": "b"}


async def test_tagging_what_is_missing_is_refused(world: World) -> None:
    """Spec 1.11."""
    tags, connector = world.catalogue.tags, f"arn:aws:lambda:{REGION}:{ACCOUNT}:network-connector:nc-1"
    for arn, text in (
        (image_arn("none"), f"MicroVMImage not found for MicroVMImageID: {image_arn('none')}"),
        (connector, f"Network connector not found for: {connector}"),
        (f"arn:aws:lambda:{REGION}:{ACCOUNT}:function:x", "Resource not found: "),
        (f"arn:aws:lambda:{REGION}:{ACCOUNT}:microvm:microvm-1", "Resource not found: "),
    ):
        for call in (tags.list(CALLER, arn), tags.add(CALLER, arn, {"a": "b"}), tags.remove(CALLER, arn, ["a"])):
            with pytest.raises(NotFound, match=text):
                await call
    with pytest.raises(Denied):
        await tags.list(CALLER, image_arn("x", account=OTHER))


async def test_a_resource_has_at_most_fifty_tags(world: World) -> None:
    many = {f"key-{number}": "" for number in range(51)}
    with pytest.raises(InvalidParameter):
        await world.catalogue.images.create(CALLER, "app", REQUEST, many)
    await world.catalogue.images.create(CALLER, "app", REQUEST, {})
    many.pop("key-0")
    await world.catalogue.tags.add(CALLER, image_arn("app"), many)
    with pytest.raises(InvalidParameter):
        await world.catalogue.tags.add(CALLER, image_arn("app"), {"one more": ""})
