"""How images are asked for, named, listed and repeated by a client token (spec 1.2, 1.3, 1.4, 1.8, 1.11, 2.1, 14)."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from support.catalogue_world import (
    ACCOUNT,
    BASE,
    CALLER,
    ELSEWHERE,
    OTHER,
    REGION,
    REQUEST,
    STRANGER,
    World,
    hooks,
    image_arn,
    world_fixture,
)
from torpor.config import ImageSettings
from torpor.model.errors import Conflict, Denied, Invalid, NotFound
from torpor.model.hooks import Hook
from torpor.model.image import ImageState, VersionState, VersionStatus
from torpor.model.paging import PageRequest

INTERNET = f"arn:aws:lambda:{REGION}:aws:network-connector:aws-network-connector:INTERNET_EGRESS"
SECOND = timedelta(seconds=1)
S, V = ImageState, VersionState

world = world_fixture()


# Creation


async def test_a_new_image_is_creating_and_has_its_defaults_filled_in(world: World) -> None:
    """Spec 1.8, 2.1."""
    world.host.hold()
    image, version = await world.catalogue.images.create(CALLER, "app", REQUEST, {"team": "a"})
    assert (image.state, image.latest_active_version, image.latest_failed_version) == (S.CREATING, None, None)
    assert image.arn == image_arn("app")
    assert image.tags == {"team": "a"}
    assert (version.version, version.state, version.status) == ("1.0", V.PENDING, VersionStatus.INACTIVE)
    assert (version.memory_mib, version.base_image_version) == (2048, "1")
    assert version.egress_connectors == (INTERNET,)
    assert version.description is None


async def test_a_built_image_is_created_and_its_version_becomes_active_by_itself(world: World) -> None:
    """Spec 1.5, 2.3."""
    image, version = await world.image()
    assert (image.state, image.latest_active_version) == (S.CREATED, "1.0")
    assert (version.state, version.status, version.state_reason) == (V.SUCCESSFUL, VersionStatus.ACTIVE, None)


async def test_a_name_is_taken_also_while_its_image_is_deleting(world: World) -> None:
    """Spec 1.11, 2.9."""
    text = "A MicroVM image with the name 'app' already exists in this account"
    await world.image()
    with pytest.raises(Invalid, match=text):
        await world.catalogue.images.create(CALLER, "app", REQUEST, {})
    world.host.hold()
    await world.catalogue.images.delete(CALLER, image_arn("app"))
    with pytest.raises(Invalid, match=text):
        await world.catalogue.images.create(CALLER, "app", REQUEST, {})
    world.host.release()
    await world.gone(image_arn("app"))
    await world.catalogue.images.create(CALLER, "app", REQUEST, {})


async def test_accounts_and_regions_have_names_of_their_own(world: World) -> None:
    """Spec 1.3."""
    elsewhere = replace(REQUEST, base_image_arn=BASE.replace(REGION, "eu-west-1"))
    await world.catalogue.images.create(CALLER, "app", REQUEST, {})
    await world.catalogue.images.create(STRANGER, "app", REQUEST, {})
    image, _ = await world.catalogue.images.create(ELSEWHERE, "app", elsewhere, {})
    assert image.arn == image_arn("app", "eu-west-1")


REFUSALS: list[tuple[dict[str, Any], str]] = [
    ({"base_image_arn": "al2023-1"}, "Invalid ARN format: al2023-1"),
    ({"base_image_version": "1.0"}, "Expected a single major version number"),
    ({"base_image_version": "latest"}, "Expected a single major version number"),
    ({"base_image_version": "999"}, f"No managed MicroVM Image with arn {BASE} and version 999 is available"),
    ({"base_image_arn": image_arn("app"), "base_image_version": "1"},
     f"No managed MicroVM Image with arn {image_arn('app')} and version 1 is available"),
    ({"memory_mib": 3000},
     (f"The requested memory size of 3000 MiB is not supported by base MicroVM image {BASE}. "
     "Supported memory sizes in MiB are: [512, 1024, 2048, 4096, 8192].")),
    ({"code_artifact_uri": "https://example.com/app.zip"},
     "CodeArtifact URI must be a valid S3 URI in the format: s3://<bucket>/<key>"),
    ({"code_artifact_uri": "s3://bucket"},
     "CodeArtifact URI must be a valid S3 URI in the format: s3://<bucket>/<key>"),
    ({"code_artifact_uri": f"{ACCOUNT}.dkr.ecr.{REGION}.amazonaws.com/app:1"},
     "CodeArtifact URI must be a valid S3 URI in the format: s3://<bucket>/<key>"),
    ({"environment": {"AWS_REGION": "x"}}, "Environment variable key 'AWS_REGION' is reserved"),
    ({"hooks": hooks(Hook.RUN)},
     ("The ready (/ready) MicroVM image hook must be enabled when any MicroVM lifecycle hook "
     "(run, resume, suspend, or terminate) is enabled.")),
    ({"hooks": hooks(Hook.READY, port=None)}, "The hooks port must be specified when any hook is enabled."),
    ({"egress_connectors": ("INTERNET_EGRESS",)}, "Malformed network connector ARN"),
    ({"egress_connectors": (INTERNET.replace("INTERNET_EGRESS", "NO_EGRESS"),)},
     f"Unrecognized managed network connector ARN: {INTERNET.replace('INTERNET_EGRESS', 'NO_EGRESS')}"),
    ({"egress_connectors": (INTERNET, INTERNET)}, "Only one egress network connector can be provided"),
]


@pytest.mark.parametrize(("changes", "text"), REFUSALS, ids=[text[:40] for _, text in REFUSALS])
async def test_what_is_asked_wrongly_is_refused_with_the_literal_text(
    world: World, changes: dict[str, Any], text: str
) -> None:
    """Spec 1.4, 1.11, 2.1: on create and on update, and no image is created."""
    wrong = replace(REQUEST, **changes)
    with pytest.raises(Invalid) as refused:
        await world.catalogue.images.create(CALLER, "other", wrong, {})
    assert refused.value.message == text
    await world.image()
    with pytest.raises(Invalid) as refused:
        await world.catalogue.images.update(CALLER, image_arn("app"), wrong)
    assert refused.value.message == text
    assert (await world.catalogue.images.list(CALLER, "other", PageRequest())).items == []


@pytest.mark.parametrize("hook", [Hook.RUN, Hook.RESUME, Hook.SUSPEND, Hook.TERMINATE])
async def test_each_runtime_hook_needs_the_ready_hook(world: World, hook: Hook) -> None:
    """Spec 3.1."""
    with pytest.raises(Invalid, match="The ready"):
        await world.catalogue.images.create(CALLER, "app", replace(REQUEST, hooks=hooks(hook, Hook.VALIDATE)), {})
    await world.catalogue.images.create(CALLER, "app", replace(REQUEST, hooks=hooks(hook, Hook.READY)), {})


async def test_checks_come_one_at_a_time_in_a_fixed_order(world: World) -> None:
    """Spec 1.11: order of checks."""
    wrong = replace(REQUEST, base_image_version="1.0", memory_mib=1, environment={"AWS_REGION": ""})
    with pytest.raises(Invalid, match="Expected a single"):
        await world.catalogue.images.create(CALLER, "app", wrong, {})
    with pytest.raises(Invalid, match="memory size"):
        await world.catalogue.images.create(CALLER, "app", replace(wrong, base_image_version="0"), {})


async def test_another_architecture_is_built_for_this_machine_unless_the_setting_is_strict(tmp_path: Path) -> None:
    """Spec 2.5: existing code asks for ARM_64."""
    asked = replace(REQUEST, request={"cpuConfigurations": [{"architecture": "ARM_64"}]})
    world = World(tmp_path)
    await world.start()
    _, version = await world.catalogue.images.create(CALLER, "app", asked, {})
    assert version.request == asked.request
    builds = await world.catalogue.images.list_builds(
        CALLER, image_arn("app"), "1.0", None, None, None, PageRequest()
    )
    assert [build.architecture for build in builds.items] == ["X86_64"]
    await world.crash()
    world.config = replace(world.config, images=ImageSettings(strict_architecture=True))
    await world.start()
    with pytest.raises(Invalid, match="The requested architecture ARM_64 is not supported"):
        await world.catalogue.images.create(CALLER, "other", asked, {})
    await world.crash()


# Identifiers


async def test_an_image_is_named_by_its_whole_arn(world: World) -> None:
    """Spec 1.3."""
    images = world.catalogue.images
    await world.image()
    with pytest.raises(Invalid, match=r"^Invalid ARN format: app$"):
        await images.get(CALLER, "app")
    with pytest.raises(Invalid, match=r"^Malformed ARN - doesn't start with 'arn:'$"):
        await images.runnable(CALLER, "app", None)
    with pytest.raises(Denied):
        await images.get(CALLER, image_arn("app").replace("microvm-image:", "microvm-image/"))


async def test_an_image_of_another_account_is_denied_and_of_another_region_unknown(world: World) -> None:
    """Spec 1.3, 9.4."""
    await world.image()
    foreign = image_arn("app", account=OTHER)
    images = world.catalogue.images
    for call in (
        images.get(CALLER, foreign), images.delete(CALLER, foreign), images.update(CALLER, foreign, REQUEST),
        images.runnable(CALLER, foreign, None), images.list_versions(CALLER, foreign, PageRequest()),
        images.get_version(CALLER, foreign, "1.0"),
    ):
        with pytest.raises(Denied):
            await call
    with pytest.raises(NotFound):
        await images.get(ELSEWHERE, image_arn("app"))
    with pytest.raises(NotFound):
        await images.get(CALLER, image_arn("app", "eu-west-1"))


async def test_what_is_missing_is_said_in_the_words_of_the_service(world: World) -> None:
    """Spec 1.11."""
    images, arn = world.catalogue.images, image_arn("none")
    whole = f"MicroVMImage not found for MicroVMImageID: {arn}"
    part = f"MicroVMImage not found for MicroVMImage: {arn}, Version: 1.0"
    page = PageRequest()
    cases = [
        (images.get(CALLER, arn), whole), (images.update(CALLER, arn, REQUEST), whole),
        (images.delete(CALLER, arn), whole), (images.list_versions(CALLER, arn, page), whole),
        (images.get_version(CALLER, arn, "1.0"), part), (images.delete_version(CALLER, arn, "1.0"), part),
        (images.set_version_status(CALLER, arn, "1.0", VersionStatus.ACTIVE), part),
        (images.list_builds(CALLER, arn, "1.0", None, None, None, page), part),
        (images.get_build(CALLER, arn, "1.0", "x"), part),
        (images.runnable(CALLER, arn, None), f"No active version found for MicroVM image {arn}"),
        (images.runnable(CALLER, arn, "1.0"), f"No active version found for MicroVM image {arn} and version 1.0"),
    ]
    for call, text in cases:
        with pytest.raises(NotFound) as missing:
            await call
        assert missing.value.message == text


# Lists


async def test_the_page_is_cut_before_the_name_filter_applies(world: World) -> None:
    """Spec 1.8: a page may be empty while there is a next one."""
    images = world.catalogue.images
    for name in ("alpha", "beta", "gamma"):
        await images.create(CALLER, name, REQUEST, {})
        await world.rested(image_arn(name))
        await world.clock.advance(SECOND)
    page = await images.list(CALLER, "alph", PageRequest(max_results=2))
    assert page.items == []
    assert page.cursor is not None
    page = await images.list(CALLER, "alph", PageRequest(2, page.cursor))
    assert [image.name for image in page.items] == ["alpha"]
    assert page.cursor is None


async def test_pages_are_stable_while_images_come_and_go(world: World) -> None:
    """Spec 1.8."""
    images = world.catalogue.images
    names = [f"image-{number}" for number in range(5)]
    for name in names:  # all at one moment of the clock
        await images.create(CALLER, name, REQUEST, {})
        await world.rested(image_arn(name))
    first = await images.list(CALLER, None, PageRequest(max_results=2))
    await images.delete(CALLER, first.items[-1].arn)
    await world.gone(first.items[-1].arn)
    await world.clock.advance(SECOND)
    await images.create(CALLER, "newcomer", REQUEST, {})
    seen = [image.name for image in first.items]
    cursor = first.cursor
    while cursor is not None:
        page = await images.list(CALLER, None, PageRequest(2, cursor))
        seen += [image.name for image in page.items]
        cursor = page.cursor
    assert sorted(seen) == names


async def test_a_cursor_is_good_for_its_own_list_alone(world: World) -> None:
    """Spec 1.8: 400 with a null message."""
    images = world.catalogue.images
    for name in ("a", "b"):
        await images.create(CALLER, name, REQUEST, {})
    cursor = (await images.list(CALLER, None, PageRequest(max_results=1))).cursor
    assert cursor is not None
    for caller, name_filter, garbled in (
        (STRANGER, None, cursor), (CALLER, "a", cursor), (CALLER, None, cursor[:-4]), (CALLER, None, "å"),
        (CALLER, None, ""), (CALLER, None, cursor.rstrip("=") + "!"),
    ):
        with pytest.raises(Invalid) as refused:
            await images.list(caller, name_filter, PageRequest(1, garbled))
        assert refused.value.message is None


# Client tokens


async def test_the_same_client_token_makes_one_image(world: World) -> None:
    """Spec 1.10."""
    images = world.catalogue.images
    first = await images.create(CALLER, "app", REQUEST, {"a": "b"}, "token")
    again = await images.create(CALLER, "app", REQUEST, {"a": "b"}, "token")
    assert again[0].id == first[0].id
    assert again[1].version == "1.0"
    with pytest.raises(Conflict):
        await images.create(CALLER, "app", replace(REQUEST, memory_mib=512), {"a": "b"}, "token")
    with pytest.raises(Conflict):
        await images.create(CALLER, "other", REQUEST, {"a": "b"}, "token")
    # Another account, region and operation have tokens of their own.
    await images.create(STRANGER, "app", REQUEST, {"a": "b"}, "token")
    await world.rested(first[0].arn)
    updated, version = await images.update(CALLER, first[0].arn, REQUEST, "token")
    assert version.version == "2.0"
    assert (await images.update(CALLER, updated.arn, REQUEST, "token"))[1].version == "2.0"


async def test_simultaneous_creates_with_one_token_make_one_image(world: World) -> None:
    """Spec 1.10."""
    images = world.catalogue.images
    made = await asyncio.gather(*(images.create(CALLER, "app", REQUEST, {}, "token") for _ in range(8)))
    assert len({image.id for image, _ in made}) == 1


async def test_a_token_is_remembered_across_a_crash_and_forgotten_with_its_image(world: World) -> None:
    """Spec 1.10, where AWS's own memory outlives the image and traps the name."""
    first, _ = await world.catalogue.images.create(CALLER, "app", REQUEST, {}, "token")
    await world.rested(first.arn)
    await world.restart()
    assert (await world.catalogue.images.create(CALLER, "app", REQUEST, {}, "token"))[0].id == first.id
    await world.catalogue.images.delete(CALLER, first.arn)
    await world.gone(first.arn)
    second, _ = await world.catalogue.images.create(CALLER, "app", REQUEST, {}, "token")
    assert second.id != first.id
    assert (await world.rested(second.arn)).state is S.CREATED
